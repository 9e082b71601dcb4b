"""AdamW, or Muon with AdamW, with warm-up, a constant or cosine learning rate, and clipping by global norm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from mf_jax.configurable import check_at_least
from mf_jax.parallel.sharding import is_box


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Attributes:
    kind: "adamw", or "muon": the matrices of the stacked blocks by Muon, everything else by AdamW with Nesterov's
      momentum, as in optax.contrib.muon.
    learning_rate: AdamW's, after warm-up.
    muon_learning_rate: of those matrices, on the same schedule as `learning_rate`. The entries of an update have a root
      mean square near 0.2 times it, whatever the shape, as AdamW's do (Liu et al. 2025, arXiv 2502.16982).
    schedule: after `warmup` steps, "constant" or "cosine" (it reaches zero after the last step).
    warmup: steps in which the learning rate rises to its full value.
    b1, b2: decay of AdamW's first and second moment.
    weight_decay: on matrices only; norms, biases, gates and embeddings are left alone.
    clip: largest global norm of the gradient.
    moments: dtype in which Adam's two moments and Muon's one are kept, "float32" or "bfloat16", which halves them. They
      are updated in float32 either way.
    """

    kind: str = "adamw"
    learning_rate: float = 1e-4
    muon_learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: int = 1000
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.01
    clip: float = 1.0
    moments: str = "float32"

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon"):
            raise ValueError(f"optimizer.kind is {self.kind!r}; it must be 'adamw' or 'muon'")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"optimizer.schedule is {self.schedule!r}; it must be 'constant' or 'cosine'")
        least = dict(learning_rate=0, muon_learning_rate=0, warmup=0, b1=0, b2=0, weight_decay=0)
        check_at_least("optimizer", self, **least, clip=1e-12)
        if self.moments not in ("float32", "bfloat16"):
            raise ValueError(f"optimizer.moments is {self.moments!r}; it must be 'float32' or 'bfloat16'")
        slowest = max(self.b1, self.b2)
        if self.moments == "bfloat16" and slowest > LARGEST_HALF_DECAY:
            raise ValueError(
                f"optimizer.moments is 'bfloat16' with a decay of {slowest}; an update would change a moment by less "
                f"than bfloat16 can tell apart. Keep b1 and b2 at {LARGEST_HALF_DECAY} or below, or take 'float32'"
            )


MUON_MOMENTUM = 0.95

# bfloat16 has 8 significant bits: a moment that is to decay must do so by more than half a unit in the last of them.
LARGEST_HALF_DECAY = 0.99


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Of AdamW at update 0, 1, ...: warm-up is lr (step + 1) / (warmup + 1), so that no update is lost at zero."""
    return _schedule(config, config.learning_rate, steps)


def _schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - config.warmup, 1))

    def rise(step: jax.Array) -> jax.Array:
        return peak * (step + 1) / (config.warmup + 1)

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


def _share(params: Any) -> Any:
    """Whose each parameter is: "muon" has the kernels of stacked blocks, (layers, input, output), "adamw" all else."""

    def share(path: tuple, leaf: Any) -> str:
        value = leaf.value if is_box(leaf) else leaf
        return "muon" if "'kernel'" in jax.tree_util.keystr(path[-1:]) and value.ndim == 3 else "adamw"

    return jax.tree_util.tree_map_with_path(share, params, is_leaf=is_box)


def _scaled_by_shape(update_LIO: jax.Array) -> jax.Array:
    """An orthogonal matrix scaled so that its entries have a root mean square of 0.2."""
    return update_LIO * (0.2 * math.sqrt(max(update_LIO.shape[1:])))


def _muon(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    layout = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return optax.chain(
        contrib.scale_by_muon(
            beta=MUON_MOMENTUM,
            mu_dtype=jnp.dtype(config.moments),
            weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: layout, updates),
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_scaled_by_shape, updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(_schedule(config, config.muon_learning_rate, steps)),
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    optimizer = optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
        nesterov=config.kind == "muon",
    )
    if config.moments != "float32":
        optimizer = _kept_in(jnp.dtype(config.moments), optimizer)
    if config.kind == "muon":
        optimizer = optax.partition({"muon": _muon(config, steps), "adamw": optimizer}, _share)
    return optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
