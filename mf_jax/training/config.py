"""The sections `train` and `objective` of a config, and the protocol of the config that training needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from mf_jax.configurable import check_at_least
from mf_jax.training.optimizer import AdamWConfig


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The training objective: caption dropout, floor of t, self-distillation.

    Attributes:
      caption_dropout: share of examples trained with the empty prompt.
      t_floor: smallest t that the velocity-space loss divides by.
      distill_high, distill_low: weight of self-distillation (eq. 8), high t + low (1 - t) with the mean noise level t
        of the other modalities. The teacher is the model that training starts from (init.checkpoint), shown the
        leading modality alone. 0 and 0: none.
    """

    caption_dropout: float = 0.1
    t_floor: float = 0.05
    distill_high: float = 0.0
    distill_low: float = 0.0

    @property
    def distills(self) -> bool:
        return self.distill_high > 0 or self.distill_low > 0

    def __post_init__(self) -> None:
        check_at_least("objective", self, distill_high=0, distill_low=0)
        if not 0.0 <= self.caption_dropout <= 1.0 or not 0.0 < self.t_floor < 1.0:
            raise ValueError(
                f"objective.caption_dropout is {self.caption_dropout}, it must be in [0, 1]; "
                f"objective.t_floor is {self.t_floor}, it must be above 0 and below 1"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, batch size, averaging and outputs of a training run.

    Attributes:
      steps: in total. batch: examples per step over all devices. accumulate: parts that a batch is computed in.
      ema_decay: of the weights that are evaluated. log_every: steps between log entries.
      freeze: paths of parameters that are not trained, with everything under them: "backbone/double/image".
      compilation_cache: directory for compiled programs, which runs may share; "": the one that jax is configured with
        (JAX_COMPILATION_CACHE_DIR), else WORKDIR/compilation_cache.
      profile_steps: (first, last): jax's profiler traces the run from step first to step last into WORKDIR/profile.
      dump_hlo: write the compiled step to WORKDIR/hlo, as jax lowers it and as XLA optimises it.
      compiler_options: {name: value} for XLA's compiler, beside those of training/compiler_options.py for the device;
        None removes one of those.
    """

    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    ema_decay: float = 0.999
    log_every: int = 50
    freeze: tuple[str, ...] = ()
    compilation_cache: str = ""
    profile_steps: tuple[int, ...] = ()
    dump_hlo: bool = False
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_at_least("train", self, steps=1, batch=1, accumulate=1, log_every=1)
        if self.batch % self.accumulate:
            raise ValueError(f"train.batch {self.batch} is not divisible by train.accumulate {self.accumulate}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"train.ema_decay is {self.ema_decay}; it must be in [0, 1)")
        if not isinstance(self.compilation_cache, str):
            raise ValueError(f"train.compilation_cache is {self.compilation_cache!r}; it must be a directory or ''")
        if not isinstance(self.dump_hlo, bool):
            raise ValueError(f"train.dump_hlo is {self.dump_hlo!r}; it must be True or False")
        for name, value in self.compiler_options.items():
            if value is not None and not isinstance(value, bool | int | float | str):
                raise ValueError(
                    f"train.compiler_options.{name} is {value!r}; it must be a number, True, False or a string"
                )
        if self.profile_steps != () and not self._is_window(self.profile_steps):
            raise ValueError(
                f"train.profile_steps is {self.profile_steps!r}; it must be (first, last) with "
                f"0 <= first < last <= train.steps ({self.steps}), or ()"
            )

    def _is_window(self, value: object) -> bool:
        if not isinstance(value, tuple) or len(value) != 2 or any(type(step) is not int for step in value):
            return False
        return 0 <= value[0] < value[1] <= self.steps


class Recipe(Protocol):
    """Protocol of a config with the sections that the train state and the train step depend on."""

    @property
    def seed(self) -> int: ...

    @property
    def objective(self) -> ObjectiveConfig: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def optimizer(self) -> AdamWConfig: ...
