"""AdamW with warm-up, a constant or cosine learning rate, and clipping by global norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from mf_jax.settings import check_at_least


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes:
    schedule: after `warmup` steps, "constant" or "cosine" (it reaches zero after the last step).
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

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"optimizer.schedule is {self.schedule!r}; it must be 'constant' or 'cosine'")
        check_at_least("optimizer", self, learning_rate=0, warmup=0, b1=0, b2=0, weight_decay=0, clip=1e-12)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of update 0, 1, ...: warm-up is lr (step + 1) / (warmup + 1), so that none is lost at zero."""
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        after = optax.cosine_decay_schedule(config.learning_rate, max(steps - config.warmup, 1))

    def rise(step: jax.Array) -> jax.Array:
        return config.learning_rate * (step + 1) / (config.warmup + 1)

    return optax.join_schedules([rise, after], [config.warmup])


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
