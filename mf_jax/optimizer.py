"""AdamW with warm-up, a constant or cosine learning rate, and clipping by global norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes:
    schedule: "constant" or "cosine" (to zero at the last step) after `warmup` steps.
    weight_decay: on matrices only; norms, biases, gates and embeddings are left alone.
    clip: largest global norm of the gradient.
    """

    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup: int = 1000
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.01
    clip: float = 1.0


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step.

    Raises:
      ValueError: an unknown schedule.
    """
    warmup = min(config.warmup, steps)
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(steps - warmup, 1))
    else:
        raise ValueError(f"optimizer.schedule is {config.schedule!r}; it must be 'constant' or 'cosine'")
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), after], [warmup])


def _is_matrix(params: Any) -> Any:
    """True for kernels, whether or not they are still boxed with their axis names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "'kernel'" in jax.tree_util.keystr(path[-2:]), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=_is_matrix
        ),
    )
