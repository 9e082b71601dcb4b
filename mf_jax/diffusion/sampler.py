"""The Euler sampler of all tasks: the schedule and role of a modality say whether and when it is generated.

Roles: a *target* starts as noise and is denoised; a *condition* is held clean at t = 0; a *renoised* condition is shown
at the noise level of its schedule, x_t = (1 - t) x_cond + t eps (partial conditioning, section 5 of the paper).

Legend: B batch, N tokens, C channels per token, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.diffusion.path import clean_of, interpolate, velocity_of

Tokens = dict[str, jax.Array]
Predict = Callable[[Tokens, Tokens, Any], Tokens]  # (x_t, t_B, text condition) -> raw outputs


def euler(
    predict: Predict,
    noise: Tokens,
    schedules: Mapping[str, np.ndarray | jax.Array],
    prediction: Mapping[str, str],
    conditions: Mapping[str, tuple[jax.Array, jax.Array]],
    text: Any,
    null_text: Any,
    guidance: Mapping[str, float | jax.Array],
    t_floor: float,
) -> Tokens:
    """Integrates every target from noise to data; the last step returns the predicted clean tokens.

    Args:
      predict: raw network outputs by modality.
      noise: eps_BNC for every modality; where targets start, and what missing or renoised entries of conditions hold.
      schedules: noise levels (S + 1,) by modality, descending to 0 for targets.
      prediction: "x" or "v" by modality.
      conditions: {modality: (clean tokens x_BNC, valid_BNC)}; all others are targets.
      text, null_text: conditional and unconditional text input, trees of arrays with leading axis B.
      guidance: scale by modality, applied to the raw outputs: null + scale * (conditional - null); 1 where there is
        none. The number 1 for all targets costs one forward pass per step. Anything else (an array's value is not
        looked at) costs two, as one of twice the batch: row 2 i is example i with its text, row 2 i + 1 with the null
        text, so that on a mesh no example leaves its device.
      t_floor: floor under t when a clean prediction is turned into a velocity.

    Returns:
      {modality: clean tokens x_BNC}; conditions come back as they were given.
    """
    batch = next(iter(noise.values())).shape[0]
    scales = [guidance.get(name, 1.0) for name in noise if name not in conditions]
    guided = any(isinstance(scale, jax.Array) or scale != 1.0 for scale in scales)
    both_texts = jax.tree.map(_alternating, text, null_text) if guided else None

    def outputs(x: Tokens, t: Tokens) -> Tokens:
        if not guided:
            return predict(x, t, text)
        x, t = jax.tree.map(lambda value: _alternating(value, value), (x, t))
        raw = predict(x, t, both_texts)
        return {n: y[1::2] + guidance.get(n, 1.0) * (y[::2] - y[1::2]) for n, y in raw.items()}

    def shown(state: Tokens, t: Tokens) -> Tokens:
        """The network's input: targets as they stand, conditions at their noise level."""
        x = dict(state)
        for name, (clean, valid) in conditions.items():
            x[name] = interpolate(clean, noise[name], t[name], valid)
        return x

    def step(state: Tokens, nodes: tuple[Tokens, Tokens]) -> tuple[Tokens, None]:
        now, after = nodes
        t = {name: jnp.full((batch,), now[name]) for name in noise}
        x = shown(state, t)
        y = outputs(x, t)
        new = {}
        for name in state:
            moved = x[name] + (after[name] - now[name]) * velocity_of(
                y[name], x[name], t[name], prediction[name], t_floor
            )
            clean = clean_of(y[name], x[name], t[name], prediction[name])
            arrives = (after[name] == 0.0) & (now[name] > 0.0)
            new[name] = jnp.where(arrives, clean, jnp.where(now[name] > 0.0, moved, x[name]))
        return new, None

    start = {name: eps for name, eps in noise.items() if name not in conditions}
    nodes = {name: jnp.asarray(schedules[name], jnp.float32) for name in noise}
    now = {name: node[:-1] for name, node in nodes.items()}
    after = {name: node[1:] for name, node in nodes.items()}
    state, _ = jax.lax.scan(step, start, (now, after))
    return {name: conditions[name][0] if name in conditions else state[name] for name in noise}


def _alternating(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[0], b[0], a[1], b[1], ..."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
