"""The `evaluate` section of a config."""

from __future__ import annotations

import dataclasses
import math

from mf_jax.configurable import check_at_least


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Attributes:
    split: of the data source. images: how many of it, from the first; 0 for all.
    steps: Euler steps. batch: images at a time.
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
