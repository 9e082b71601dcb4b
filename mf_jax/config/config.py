"""The whole config of a run: every section as the dataclass that the code uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mf_jax.config.sections import CheckpointConfig, EvaluateConfig, InitConfig, SampleConfig
from mf_jax.configurable import Kinds, Named, Section, check_one_of, part
from mf_jax.data.config import DataConfig
from mf_jax.diffusion.noise_levels import Mode
from mf_jax.modalities.base import Modality
from mf_jax.modalities.registry import ModalitySpec
from mf_jax.models.backbones import KINDS as BACKBONES
from mf_jax.models.backbones import BackboneConfig, FlatDiTConfig
from mf_jax.models.text.encoders import KINDS as TEXT_ENCODERS
from mf_jax.models.text.encoders import ByteText, TextConfig
from mf_jax.parallel.sharding import MeshConfig
from mf_jax.training.config import ObjectiveConfig, TrainConfig
from mf_jax.training.optimizer import KINDS as OPTIMIZERS
from mf_jax.training.optimizer import AdamWConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """A complete, checked config; `loading.resolve` makes it.

    Attributes:
      seed: of the parameters, the data order and all noise.
      data: what is read. modalities: what the model learns, by name. modes: training cases, by name.
      text: how prompts become features. model: the transformer. objective: the loss. optimizer, train: the training.
      checkpoint, mesh: how it is saved and laid over devices. init: what a new run starts from.
      sample, evaluate: defaults of these verbs.
    """

    data: DataConfig = dataclasses.field(metadata=part(Section(DataConfig)))
    modalities: Mapping[str, Modality] = dataclasses.field(metadata=part(Named(ModalitySpec())))
    modes: Mapping[str, Mode] = dataclasses.field(metadata=part(Named(Section(Mode))))
    seed: int = 0
    objective: ObjectiveConfig = dataclasses.field(
        default_factory=ObjectiveConfig, metadata=part(Section(ObjectiveConfig))
    )
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig, metadata=part(Section(TrainConfig)))
    optimizer: AdamWConfig = dataclasses.field(default_factory=AdamWConfig, metadata=part(Kinds(OPTIMIZERS)))
    checkpoint: CheckpointConfig = dataclasses.field(
        default_factory=CheckpointConfig, metadata=part(Section(CheckpointConfig))
    )
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata=part(Section(MeshConfig)))
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig, metadata=part(Section(SampleConfig)))
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig, metadata=part(Section(EvaluateConfig)))
    init: InitConfig = dataclasses.field(default_factory=InitConfig, metadata=part(Section(InitConfig)))
    text: TextConfig = dataclasses.field(default_factory=ByteText, metadata=part(Kinds(TEXT_ENCODERS)))
    model: BackboneConfig = dataclasses.field(default_factory=FlatDiTConfig, metadata=part(Kinds(BACKBONES)))

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number and at least 0")
        self._check_modalities()
        self._check_modes()
        check_one_of("sample.guide", self.sample.guide, ("all", *self.modalities))

    def _check_modalities(self) -> None:
        positions = {name: modality.position for name, modality in self.modalities.items()}
        if len(set(positions.values())) < len(positions):
            raise ValueError(f"modalities share a position: {positions}; give each its own")
        if "text" in self.modalities:
            raise ValueError("a modality cannot be called 'text'; give modalities.text another name")

    def _check_modes(self) -> None:
        for name, mode in self.modes.items():
            if name == "partial" or (name == "joint" and mode.clean):
                raise ValueError(
                    f"modes.{name} holds {mode.clean} clean; 'joint' is the name of sampling without conditions, "
                    "'partial' that of sampling with renoised ones: give this mode another name"
                )
            for clean in mode.clean:
                if clean not in self.modalities:
                    raise ValueError(
                        f"modes.{name}.clean names {clean!r}; the modalities are {', '.join(self.modalities)}"
                    )
            if set(mode.clean) == set(self.modalities):
                raise ValueError(f"modes.{name} holds every modality clean; one must be left to learn")
        total = sum(mode.probability for mode in self.modes.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the probabilities of modes sum to {total:g}; they must sum to 1")
