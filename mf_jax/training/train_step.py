"""One training step: draw noise levels, noise the tokens, predict, masked velocity loss, gradient, update, EMA.

All randomness is folded from (seed, step, position in the batch): there is no generator state to lose, and an example's
noise depends neither on the mesh nor on gradient accumulation. Losses are sums over measured entries divided by the
count over the whole batch, on all devices and in all accumulated parts: never a mean of means.

Legend: B batch, N tokens, C channels per token, L text ids, R modes, S noise bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from mf_jax.diffusion import loss, noise_levels
from mf_jax.diffusion.path import interpolate, velocity_of
from mf_jax.joint_model import JointModel
from mf_jax.modalities.base import Batch
from mf_jax.parallel import sharding
from mf_jax.training import ema, partition, train_state
from mf_jax.training.config import ObjectiveConfig, Recipe
from mf_jax.training.train_state import TrainState

NOISE_BINS = 5
DISTILL = "distill"  # among the losses
STEPS_STREAM = 1  # first fold of the seed for the steps; initialisation has train_state.INIT_STREAM


def _draw(model: JointModel, seed: int, step: jax.Array, batch_size: int) -> dict[str, Any]:
    """The random numbers of a step but for the noise, which is drawn from `noise_key` where it is used.

    Returns:
      t: noise levels (B,) by modality; mode: index (B,); caption_u: uniform (B,); noise_key: keys (B,).
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STEPS_STREAM), step)
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))
    level_B, caption_B, noise_B = jnp.split(jax.vmap(lambda k: jax.random.split(k, 3))(key_B), 3, axis=1)
    distributions = {name: m.noise for name, m in model.modalities.items()}
    t, mode_B = noise_levels.draw(level_B[:, 0], distributions, model.modes)
    return {
        "t": t,
        "mode": mode_B,
        "caption_u": jax.vmap(jax.random.uniform)(caption_B[:, 0]),
        "noise_key": noise_B[:, 0],
    }


def _errors(
    model: JointModel,
    objective: ObjectiveConfig,
    frozen_params: dict[str, Any],
    teacher: Any,
    params: Any,
    untrained: Any,
    batch: Batch,
    drawn: dict[str, Any],
    masks: dict[str, Any],
) -> dict[str, jax.Array]:
    """Squared velocity errors summed over each example, (B,) by modality; DISTILL: the weighted one to the teacher."""
    dropped_B = drawn["caption_u"] < objective.caption_dropout if objective.caption_dropout else None
    batch = model.training_features(frozen_params, batch, dropped_B)
    clean = model.encode(batch)
    x, eps = {}, {}
    for i, (name, x0_BNC) in enumerate(clean.items()):
        key_B = jax.vmap(jax.random.fold_in, (0, None))(drawn["noise_key"], i)
        eps[name] = jax.vmap(lambda k, shape=x0_BNC.shape[1:]: jax.random.normal(k, shape))(key_B)
        x[name] = interpolate(x0_BNC, eps[name], drawn["t"][name], masks["valid"][name])
    y = model.predict(partition.combine(params, untrained), x, drawn["t"], batch)
    errors = {
        name: loss.squared_error(
            y[name],
            clean[name],
            eps[name],
            drawn["t"][name],
            masks["supervised"][name],
            m.prediction,
            objective.t_floor,
        )
        for name, m in model.modalities.items()
    }
    if objective.distills:
        name = model.leading
        t_B, prediction = drawn["t"][name], model.modalities[name].prediction
        taught = model.predict(partition.combine(teacher, untrained), {name: x[name]}, {name: t_B}, batch)
        student_v, teacher_v = (
            velocity_of(raw, x[name], t_B, prediction, objective.t_floor) for raw in (y[name], taught[name])
        )
        apart = jnp.where(masks["supervised"][name], student_v - teacher_v, 0.0)
        others_B = jnp.mean(jnp.stack([t for other, t in drawn["t"].items() if other != name]), axis=0)
        weight_B = objective.distill_high * others_B + objective.distill_low * (1.0 - others_B)
        errors[DISTILL] = weight_B * jnp.sum(jnp.square(apart), axis=(1, 2))
    return errors


def _split(tree: Any, parts: int) -> Any:
    """(B, ...) -> (parts, B / parts, ...), each part spread over all devices: part i is examples i, i + parts, ..."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def loss_and_gradient(
    model: JointModel,
    objective: ObjectiveConfig,
    seed: int,
    accumulate: int,
    frozen_params: dict[str, Any],
    params: Any,
    untrained: Any,
    batch: Batch,
    step: jax.Array,
    teacher: Any = None,
) -> tuple[jax.Array, Any, dict[str, Any]]:
    """Loss, gradient and statistics of one batch.

    Args:
      accumulate: parts that the batch is computed in, one after the other; losses and gradients are those of the whole.
      frozen_params: parameters of the frozen networks by name; and the features of the empty prompt as EMPTY_PROMPT
        where the text encoder is frozen and captions are dropped.
      params, untrained: the model's; the gradient is that of params.
      teacher: parameters of the model that training started from, as `params`; only self-distillation reads them.

    Returns:
      loss: sum over modalities of weight * (masked sum of squared velocity errors / global count); self-distillation
        counts as the leading modality does.
      gradient: as `params`.
      statistics: {"sum"|"count": {modality: (R, S)}} by mode and noise bin; {"missing": {modality: examples in which
        nothing of it was measured}}.
    """
    valid = model.valid(batch)
    batch_size = next(iter(valid.values())).shape[0]
    drawn = _draw(model, seed, step, batch_size)
    supervised = {name: loss.loss_mask(valid[name], drawn["t"][name]) for name in model.modalities}
    masks = {"valid": valid, "supervised": supervised}
    counts = {name: jnp.sum(mask, axis=(1, 2)).astype(jnp.float32) for name, mask in supervised.items()}
    scale = {name: m.weight / jnp.maximum(jnp.sum(counts[name]), 1.0) for name, m in model.modalities.items()}
    if objective.distills:
        counts[DISTILL], scale[DISTILL] = counts[model.leading], scale[model.leading]

    def part_loss(params: Any, *part: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        errors = _errors(model, objective, frozen_params, teacher, params, untrained, *part)
        total = sum(scale[name] * jnp.sum(error_B) for name, error_B in errors.items())
        return cast("jax.Array", total), errors

    gradient_of = jax.value_and_grad(part_loss, has_aux=True)
    if accumulate == 1:
        (value, errors), gradient = gradient_of(params, batch, drawn, masks)
    else:

        def add(carry: tuple[jax.Array, Any], part: tuple[dict[str, Any], ...]) -> tuple[tuple[jax.Array, Any], Any]:
            (value, errors), gradient = gradient_of(params, *part)
            return (carry[0] + value, jax.tree.map(jnp.add, carry[1], gradient)), errors

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (value, gradient), errors = jax.lax.scan(add, start, _split((batch, drawn, masks), accumulate))
        errors = jax.tree.map(lambda e: e.swapaxes(0, 1).reshape(batch_size), errors)
    missing = {name: jnp.sum(~jnp.any(v, axis=(1, 2))) for name, v in valid.items()}
    return value, gradient, _statistics(model, errors, counts, drawn, missing)


def _statistics(model: JointModel, errors: Any, counts: Any, drawn: dict[str, Any], missing: Any) -> dict[str, Any]:
    """The statistics of `loss_and_gradient`: sums and counts (R, S) by modality, and `missing` unchanged."""
    result: dict[str, Any] = {"sum": {}, "count": {}, "missing": missing}
    for name in errors:
        t_B = drawn["t"][model.leading if name == DISTILL else name]
        noise_bin = jnp.clip((t_B * NOISE_BINS).astype(jnp.int32), 0, NOISE_BINS - 1)
        cell = drawn["mode"] * NOISE_BINS + noise_bin
        for kind, value_B in (("sum", errors[name]), ("count", counts[name])):
            chosen = cell[:, None] == jnp.arange(len(model.modes) * NOISE_BINS)
            cells = jnp.sum(jnp.where(chosen, value_B[:, None], 0.0), axis=0)
            result[kind][name] = cells.reshape(len(model.modes), NOISE_BINS)
    return result


def make_train_step(
    model: JointModel,
    objective: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate: int,
    ema_decay: float,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """The train step as a function: (state, frozen_params, batch, teacher=None) -> (next state, metrics).

    The arguments are those of `loss_and_gradient`; metrics are its loss and statistics, and the norms of the gradient,
    the parameters and their average, as device arrays.
    """

    def train_step(
        state: TrainState, frozen_params: dict[str, Any], batch: Batch, teacher: Any = None
    ) -> tuple[TrainState, dict[str, Any]]:
        value, gradient, statistics = loss_and_gradient(
            model, objective, seed, accumulate, frozen_params, state.params, state.untrained, batch, state.step, teacher
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = ema.update(state.ema, params, state.step, ema_decay)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(gradient),
            "param_norm": optax.tree.norm(params),
            "ema_norm": optax.tree.norm(average),
            **statistics,
        }
        return TrainState(state.step + 1, params, state.untrained, average, opt_state), metrics

    return train_step


def jit_train_step(model: JointModel, config: Recipe, mesh: jax.sharding.Mesh) -> Any:
    """The jitted train step of a config, which the loop runs and the verb `compile` compiles.

    The state is donated and keeps its sharding. Unused arguments (the autoencoder's decoder) stay arguments of the
    compiled program: they occupy the devices' memory, so the compiler has to count them.
    """
    optimizer = config.optimizer.make(config.train.steps)
    step = make_train_step(
        model, config.objective, optimizer, config.seed, config.train.accumulate, config.train.ema_decay
    )
    layout = train_state.state_shardings(model, config, mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)), keep_unused=True)
