"""AdamW with warm-up, a constant or cosine learning rate, and clipping by global norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mf_jax.settings import check_at_least


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes:
    schedule: after `warmup` steps, "constant" or "cosine" (it reaches zero after the last step).
    weight_decay: on matrices only; norms, biases, gates and embeddings are left alone.
    clip: largest global norm of the gradient.
    moments: dtype in which Adam's two moments are kept, "float32" or "bfloat16", which halves them. They are updated in
      float32 either way.
    """

    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup: int = 1000
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.01
    clip: float = 1.0
    moments: str = "float32"

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"optimizer.schedule is {self.schedule!r}; it must be 'constant' or 'cosine'")
        check_at_least("optimizer", self, learning_rate=0, warmup=0, b1=0, b2=0, weight_decay=0, clip=1e-12)
        if self.moments not in ("float32", "bfloat16"):
            raise ValueError(f"optimizer.moments is {self.moments!r}; it must be 'float32' or 'bfloat16'")
        slowest = max(self.b1, self.b2)
        if self.moments == "bfloat16" and slowest > LARGEST_HALF_DECAY:
            raise ValueError(
                f"optimizer.moments is 'bfloat16' with a decay of {slowest}; an update would change a moment by less "
                f"than bfloat16 can tell apart. Keep b1 and b2 at {LARGEST_HALF_DECAY} or below, or take 'float32'"
            )


# bfloat16 has 8 significant bits: a moment that is to decay must do so by more than half a unit in the last of them.
LARGEST_HALF_DECAY = 0.99


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


def _kept_in(dtype: jnp.dtype, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with the floating arrays of its state kept in `dtype` between updates, and float32 within them."""

    def cast(state: Any, to: jnp.dtype) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(gradient, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    adamw = optax.adamw(
        learning_rate(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=_is_matrix
    )
    if config.moments != "float32":
        adamw = _kept_in(jnp.dtype(config.moments), adamw)
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw)
