"""mf_jax: training, sampling and evaluation of Modality Forcing models."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mf_jax.inference.pipeline import Pipeline


def load(
    directory: str | pathlib.Path, step: int | None = None, weights: str = "ema", trust_code: bool = False
) -> Pipeline:
    """The trained model in a run's directory, with `.sample(...)`; see mf_jax.inference.pipeline.load.

    Imported on the first call: the data workers import this package too, and must not import jax.
    """
    from mf_jax.inference import pipeline

    return pipeline.load(directory, step, weights, trust_code=trust_code)
