"""image->depth on held-out records: predict, align, score, report."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Attributes:
    split: of the data source. images: how many of it, from the first; 0 for all.
    steps: Euler steps. ensemble: samples per image that are joined into one prediction. batch: images at a time.
    """

    split: str = "test"
    images: int = 256
    steps: int = 50
    ensemble: int = 1
    batch: int = 32
