"""The config sections checkpoint, init, sample and evaluate; those of a component lie beside the component."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from mf_jax.configurable import check_at_least


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often checkpoints are saved, and which are kept.

    Attributes:
      every: steps between checkpoints. keep: how many of the latest are kept.
      keep_every: checkpoints whose step is a multiple of it are kept as well (0: none).
    """

    every: int = 1000
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        check_at_least("checkpoint", self, every=1, keep=1, keep_every=0)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where a new run takes its initial weights from.

    Attributes:
      checkpoint: directory of a run, an import or an export that a new run starts from; "" starts from scratch. Arrays
        are taken by path, where the shapes agree.
      weights: which weights of the checkpoint, "ema" or "params"; an import has one set, and both mean it.
      clone: {path here: path in the checkpoint}: arrays under the first that the checkpoint lacks are copies of those
        under the second. All others that it lacks are initialised as from scratch.
    """

    checkpoint: str = ""
    weights: str = "ema"
    clone: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights not in ("ema", "params"):
            raise ValueError(f"init.weights is {self.weights!r}; it must be 'ema' or 'params'")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Default options of the sampler.

    Attributes:
      steps: Euler steps. mu: shift of the grid.
      guidance: classifier-free guidance scale; modes that condition on the leading modality (i2d) use 1.
      guide: "all" guides every modality, as the official code does; the name of one ("image") only that.
      log2_alpha: in joint sampling, warp of the schedule of all but the leading modality; above 0 the leading one, the
        image, resolves first. 0 leaves all on one grid.
      partial_log2_alpha: the same in partial conditioning; the smaller, the stronger the condition.
    """

    steps: int = 50
    mu: float = 1.1
    guidance: float = 4.0
    guide: str = "all"
    log2_alpha: float = 5.0
    partial_log2_alpha: float = -8.0

    def __post_init__(self) -> None:
        check_at_least("sample", self, steps=1, guidance=0)
        if not isinstance(self.guide, str):
            raise ValueError(f"sample.guide is {self.guide!r}; it must be 'all' or the name of a modality")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Default options of an evaluation.

    Attributes:
      split: of the data source. images: how many of it, from the first; 0 for all.
      steps: Euler steps. batch: predictions at a time, on all devices together; the members of ensembles count.
      ensemble: samples per image that are joined into one prediction; ensemble_mode: how (evaluation/ensemble.py).
      seed: of the sampling noise.
      depth_range: metres to which the lstsq protocol clips (a choice per data set; Marigold: KITTI 1e-5 to 80, ...).
    """

    split: str = "test"
    images: int = 0
    steps: int = 50
    ensemble: int = 1
    ensemble_mode: str = "scale_only"
    batch: int = 32
    seed: int = 0
    depth_range: tuple[float, float] = (1e-3, 80.0)

    def __post_init__(self) -> None:
        check_at_least("evaluate", self, images=0, steps=1, ensemble=1, batch=1, seed=0)
        if self.ensemble_mode not in ("scale_only", "median", "marigold"):
            raise ValueError(
                f"evaluate.ensemble_mode is {self.ensemble_mode!r}; it must be 'scale_only', 'median' or 'marigold'"
            )
        low, high = self.depth_range
        if not 0 < low < high < math.inf:
            raise ValueError(f"evaluate.depth_range is {self.depth_range}; it must be 0 < smallest < largest < inf")
