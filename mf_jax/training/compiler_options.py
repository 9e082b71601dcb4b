"""Options that XLA's compilers get for the train step, by kind of device; `train` and `compile` use the same.

Each entry says what it is for; benchmarks/results/2026-11-25_step_speed.txt has steps predicted with and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TPU: dict[str, Any] = {
    # Above this size a gather and the product that waits for it become a loop of permutes around products with a part
    # of the inner dimension, which write the whole result in every round: at these widths more than the loop hides.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}
BY_PREFIX = {"TPU": TPU}  # of jax's device_kind


def compiler_options(device_kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options for a device kind as jax reports it.

    Args:
      given: train.compiler_options of the config: replaces entries of the table and adds to them; None removes one.
    """
    table = next((options for prefix, options in BY_PREFIX.items() if device_kind.startswith(prefix)), {})
    return {name: value for name, value in (table | dict(given)).items() if value is not None}
