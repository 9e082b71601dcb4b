"""The optimizers of the config section `optimizer`: AdamW and Muon, with learning-rate schedule and clipping."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from mf_jax.configurable import check_at_least, check_one_of
from mf_jax.parallel.sharding import is_box

MUON_MOMENTUM = 0.95

# bfloat16 has 8 significant bits: the decay of a moment must change it by more than half a unit in the last of them.
LARGEST_HALF_DECAY = 0.99


@dataclasses.dataclass(frozen=True)
class AdamWConfig:
    """AdamW for all parameters.

    Attributes:
      learning_rate: highest, after the warm-up. warmup: steps in which the rate rises to it.
      b1, b2: decay of the first and the second moment.
      schedule: after `warmup` steps, "constant" or "cosine" (it reaches zero after the last step).
      weight_decay: on matrices only, not on norms, biases, gates and embeddings.
      clip: largest global norm of the gradient.
      moments: dtype in which the moments are kept, "float32" or "bfloat16", which halves them. They are updated in
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
        check_one_of("optimizer.schedule", self.schedule, ("constant", "cosine"))
        check_at_least("optimizer", self, learning_rate=0, warmup=0, b1=0, b2=0, weight_decay=0, clip=1e-12)
        check_one_of("optimizer.moments", self.moments, ("float32", "bfloat16"))
        slowest = max(self.b1, self.b2)
        if self.moments == "bfloat16" and slowest > LARGEST_HALF_DECAY:
            raise ValueError(
                f"optimizer.moments is 'bfloat16' with a decay of {slowest}; an update would change a moment by less "
                f"than bfloat16 can tell apart. Keep b1 and b2 at {LARGEST_HALF_DECAY} or below, or take 'float32'"
            )

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate at update 0, 1, ... of a run of so many steps.

        Warm-up is lr (step + 1) / (warmup + 1), so that the first update is not zero.
        """
        return self._scheduled(self.learning_rate, steps)

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of so many steps."""
        return optax.chain(optax.clip_by_global_norm(self.clip), self._adamw(steps, nesterov=False))

    def _scheduled(self, peak: float, steps: int) -> optax.Schedule:
        if self.schedule == "constant":
            after = optax.constant_schedule(peak)
        else:
            after = optax.cosine_decay_schedule(peak, max(steps - self.warmup, 1))

        def rise(step: jax.Array) -> jax.Array:
            return peak * (step + 1) / (self.warmup + 1)

        return optax.join_schedules([rise, after], [self.warmup])

    def _adamw(self, steps: int, nesterov: bool) -> optax.GradientTransformation:
        optimizer = optax.adamw(
            self.rate(steps),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            mask=_is_matrix,
            nesterov=nesterov,
        )
        return optimizer if self.moments == "float32" else _kept_in(jnp.dtype(self.moments), optimizer)


@dataclasses.dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon on the matrices of the stacked blocks, AdamW with Nesterov's momentum on all else, as in optax.contrib.muon.

    Attributes:
      muon_learning_rate: of those matrices, on the same schedule as `learning_rate`. The entries of an update have a
        root mean square near 0.2 times it, whatever the shape, as AdamW's do (Liu et al. 2025, arXiv 2502.16982).
    """

    muon_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("optimizer", self, muon_learning_rate=0)

    def make(self, steps: int) -> optax.GradientTransformation:
        shares = {"muon": self._muon(steps), "adamw": self._adamw(steps, nesterov=True)}
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.partition(shares, _share))

    def _muon(self, steps: int) -> optax.GradientTransformation:
        layout = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        return optax.chain(
            contrib.scale_by_muon(
                beta=MUON_MOMENTUM,
                mu_dtype=jnp.dtype(self.moments),
                weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: layout, updates),
            ),
            optax.stateless(lambda updates, _: jax.tree.map(_scaled_by_shape, updates)),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(self._scheduled(self.muon_learning_rate, steps)),
        )


KINDS: dict[str, type[AdamWConfig]] = {"adamw": AdamWConfig, "muon": MuonConfig}


def _is_matrix(params: Any) -> Any:
    """True for kernels, whether or not they are still boxed with their axis names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "'kernel'" in jax.tree_util.keystr(path[-2:]), params)


def _kept_in(dtype: jnp.dtype, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with its state stored in `dtype` between updates and cast to float32 for each (floating arrays only)."""

    def cast(state: Any, to: jnp.dtype) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(gradient, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def _share(params: Any) -> Any:
    """The optimizer of each parameter: "muon" for kernels of stacked blocks (layers, input, output), else "adamw"."""

    def share(path: tuple, leaf: Any) -> str:
        value = leaf.value if is_box(leaf) else leaf
        return "muon" if "'kernel'" in jax.tree_util.keystr(path[-1:]) and value.ndim == 3 else "adamw"

    return jax.tree_util.tree_map_with_path(share, params, is_leaf=is_box)


def _scaled_by_shape(update_LIO: jax.Array) -> jax.Array:
    """An orthogonal matrix scaled so that its entries have a root mean square of 0.2."""
    return update_LIO * (0.2 * math.sqrt(max(update_LIO.shape[1:])))
