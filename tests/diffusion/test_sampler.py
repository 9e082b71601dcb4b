"""The Euler sampler on Gaussian data, where the best prediction and the exact solution are known in closed form.

Data N(mean, S) over the modalities, one number per modality in each token: the best clean prediction from
x_t = D x_0 + T eps with D = diag(1 - t), T = diag(t) is mean + S D (D S D + T^2)^-1 (x_t - D mean).

Legend: B batch, N tokens, C channels per token, K modalities.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.diffusion.sampler import euler
from mf_jax.diffusion.schedule import schedules

B, N, C = 2, 150, 1
PAIR = ("image", "depth")
MEAN_K = np.array([0.7, -0.4])
COVARIANCE = np.array([[1.5, 0.8], [0.8, 0.6]])
TEXT, NULL = np.full((B, 1), 2, np.int32), np.zeros((B, 1), np.int32)


def normal(seed, names=PAIR, shape=(B, N, C)):
    generator = np.random.default_rng(seed)
    return {name: np.float32(generator.standard_normal(shape)) for name in names}


def best(mean_K, covariance, prediction):
    """The best network for Gaussian data: raw outputs by modality."""

    def predict(x, t, text):
        del text
        names = [name for name in PAIR if name in x]
        state = jnp.stack([x[name] for name in names], axis=-1)
        t_BK = jnp.stack([t[name] for name in names], axis=-1)
        D, T = jax.vmap(jnp.diag)(1 - t_BK), jax.vmap(jnp.diag)(t_BK)
        gain = covariance @ D @ jnp.linalg.inv(D @ covariance @ D + T @ T)
        centred = state - (1 - t_BK)[:, None, None] * mean_K
        clean = mean_K + jnp.einsum("bij,bncj->bnci", gain, centred)
        velocity = (state - clean) / jnp.maximum(t_BK, 1e-6)[:, None, None]
        outputs = {"x": clean, "v": velocity}
        return {name: outputs[prediction[name]][..., i] for i, name in enumerate(names)}

    return predict


def sample(predict, noise, steps, prediction, conditions=None, t_floor=1e-4, guidance=None, **schedule):
    """`euler` with what a test does not care about filled in."""
    conditions = conditions or {}
    names = tuple(name for name in PAIR if name in noise)
    pinned = schedule.pop("pinned", {name: 0.0 for name in conditions})
    return euler(
        predict,
        noise,
        schedules(names, steps, pinned, **schedule),
        dict.fromkeys(names, prediction) if isinstance(prediction, str) else prediction,
        conditions,
        TEXT,
        NULL,
        guidance or dict.fromkeys(names, 1.0),
        t_floor,
    )


def recorded(predict):
    """`predict`, and the list of its calls' (x, t, text); to be used under jax.disable_jit."""
    calls = []

    def record(x, t, text):
        calls.append(jax.tree.map(np.asarray, (x, t, text)))
        return predict(x, t, text)

    return record, calls


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("mu", [0.0, 1.1])
def test_first_order_convergence_to_the_exact_flow(prediction, mu):
    """One modality N(m, s^2): the flow takes eps to m + s eps."""
    m, s = 0.7, 0.5
    noise = normal(0, ("depth",))
    exact = m + s * noise["depth"].astype(np.float64)
    predict = best(np.array([m]), np.array([[s * s]]), {"depth": prediction})
    errors = []
    for steps in (40, 80, 160):
        result = jax.jit(lambda n, k=steps: sample(predict, n, k, prediction, mu=mu))(noise)["depth"]
        errors.append(float(np.sqrt(np.mean((result - exact) ** 2))))
    assert errors[-1] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2.0, abs=0.15), errors


def test_joint_sampling_of_correlated_modalities_converges_to_the_exact_flow():
    """On one common schedule S_t = (1-t)^2 S + t^2 I, so the flow takes eps to mean + S^(1/2) eps."""
    noise = normal(1)
    values, vectors = np.linalg.eigh(COVARIANCE)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    exact = MEAN_K + np.stack([noise[name] for name in PAIR], axis=-1) @ root.T
    prediction = {"image": "v", "depth": "x"}
    result = jax.jit(lambda n: sample(best(MEAN_K, COVARIANCE, prediction), n, 200, prediction))(noise)
    got = np.stack([result[name] for name in PAIR], axis=-1)
    assert np.sqrt(np.mean((got - exact) ** 2)) < 0.01
    assert np.abs(exact - MEAN_K).max() > 1.0


@pytest.mark.parametrize(("given", "wanted"), [("image", "depth"), ("depth", "image")])
@pytest.mark.parametrize("prediction", ["x", "v"])
def test_a_condition_gives_the_exact_conditional_distribution(given, wanted, prediction):
    """p(b | a) is normal: the flow takes eps to E[b | a] + std[b | a] eps, for every a."""
    noise = normal(2)
    value = np.float32(MEAN_K[PAIR.index(given)] + 1.2 * normal(3, (given,))[given])
    i, j = PAIR.index(wanted), PAIR.index(given)
    slope = COVARIANCE[i, j] / COVARIANCE[j, j]
    exact = MEAN_K[i] + slope * (value - MEAN_K[j])
    exact = exact + np.sqrt(COVARIANCE[i, i] - slope * COVARIANCE[i, j]) * noise[wanted]
    predict = best(MEAN_K, COVARIANCE, dict.fromkeys(PAIR, prediction))
    conditions = {given: (value, np.ones(value.shape, bool))}
    result = jax.jit(lambda n: sample(predict, n, 200, prediction, conditions))(noise)
    assert np.sqrt(np.mean((result[wanted] - exact) ** 2)) < 0.01
    np.testing.assert_array_equal(result[given], value)


@pytest.mark.parametrize("steps", [1, 7, 58, 80])
def test_the_last_step_returns_the_predicted_clean_tokens(steps):
    """Also where the last noise level is below the floor under t, as it is with 80 steps."""
    noise = normal(4)
    clean = normal(5)
    last = schedules(PAIR, steps, {})["image"][-2]
    assert (last < 0.05) == (steps == 80)

    def predict(x, t, text):
        """The image as clean tokens, the depth as a velocity; another answer than in the last step before."""
        late = (t["image"] <= last * 1.0001)[:, None, None]
        return {"image": jnp.where(late, clean["image"], 0.3), "depth": jnp.where(late, clean["depth"], 0.2)}

    prediction = {"image": "x", "depth": "v"}
    result = sample(predict, noise, steps, prediction, t_floor=0.05)
    np.testing.assert_array_equal(result["image"], clean["image"])
    expected = noise["depth"] + (last - 1.0) * 0.2 - last * clean["depth"]
    np.testing.assert_allclose(result["depth"], expected, atol=2e-5)


def test_floor_under_t_between_the_steps():
    """With 200 steps several nodes lie below 0.05: there the step is (x - y) dt / 0.05."""
    noise = normal(6, ("depth",), (1, 3, 1))
    t = schedules(("depth",), 200, {})["depth"].astype(np.float64)
    state = noise["depth"].astype(np.float64)
    for now, after in itertools.pairwise(t):
        y = 0.5 + now * np.sin(3 * state)
        state = y if after == 0 else state + (after - now) * (state - y) / max(now, 0.05)

    def predict(x, t, text):
        return {"depth": 0.5 + t["depth"][:, None, None] * jnp.sin(3 * x["depth"])}

    result = jax.jit(lambda n: sample(predict, n, 200, "x", t_floor=0.05))(noise)["depth"]
    np.testing.assert_allclose(result, state, atol=2e-5)


def guided_by_hand(predict, noise, steps, prediction, guidance, t_floor, log2_alpha):
    """Two separate forward passes per step, in float64."""
    t = {n: s.astype(np.float64) for n, s in schedules(PAIR, steps, {}, log2_alpha=log2_alpha).items()}
    state = {name: eps.astype(np.float64) for name, eps in noise.items()}
    for k in range(steps):
        now = {name: np.full(B, t[name][k]) for name in PAIR}
        conditional, null = predict(state, now, TEXT), predict(state, now, NULL)
        for name in PAIR:
            y = null[name] + guidance[name] * (conditional[name] - null[name])
            here = t[name][k]
            velocity = y if prediction[name] == "v" else (state[name] - y) / max(here, t_floor)
            if t[name][k + 1] == 0.0 and prediction[name] == "x":
                state[name] = np.asarray(y, np.float64)
            else:
                state[name] = state[name] + (t[name][k + 1] - here) * np.asarray(velocity, np.float64)
    return state


@pytest.mark.parametrize("guidance", [{"image": 4.0, "depth": 4.0}, {"image": 4.0, "depth": 1.0}])
def test_guidance(guidance):
    def predict(x, t, text):
        """Every output sees both modalities, both levels and the text."""
        phase = text[:, :, None].astype(jnp.float32)
        level = (t["image"] + 0.5 * t["depth"])[:, None, None]
        mixed = 0.5 * x["image"] + 0.3 * x["depth"] + level
        return {"image": 0.2 * mixed + 0.1 * phase, "depth": 0.4 * mixed - 0.05 * phase * x["image"]}

    noise = normal(7)
    prediction = {"image": "v", "depth": "x"}
    expected = guided_by_hand(predict, noise, 12, prediction, guidance, 0.05, {"depth": 2.0})
    result = jax.jit(
        lambda n: sample(predict, n, 12, prediction, t_floor=0.05, guidance=guidance, log2_alpha={"depth": 2.0})
    )(noise)
    for name in PAIR:
        np.testing.assert_allclose(result[name], expected[name], atol=5e-5, err_msg=name)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, B), (2.0, 2 * B)])
def test_forward_passes_per_step(scale, rows):
    """One call per step; unguided it holds the batch once, with the prompt, guided also with the null prompt."""
    predict, calls = recorded(lambda x, t, text: x)
    with jax.disable_jit():
        sample(predict, normal(8), 5, "x", guidance=dict.fromkeys(PAIR, scale))
    assert len(calls) == 5
    for x, t, text in calls:
        assert x["image"].shape == (rows, N, C) and t["depth"].shape == (rows,)
        np.testing.assert_array_equal(text, TEXT if rows == B else np.stack([TEXT, NULL], axis=1).reshape(rows, -1))


def test_what_the_network_is_shown():
    """Targets start as the noise; a clean condition stays as it is; every level is the schedule's."""
    noise, clean = normal(9), normal(10)
    predict, calls = recorded(lambda x, t, text: {name: 0.1 * v for name, v in x.items()})
    with jax.disable_jit():
        sample(predict, noise, 4, "x", {"image": (clean["image"], np.ones((B, N, C), bool))})
    t = schedules(PAIR, 4, {"image": 0.0})
    np.testing.assert_array_equal(calls[0][0]["depth"], noise["depth"])
    for k, (x, level, _) in enumerate(calls):
        np.testing.assert_array_equal(x["image"], clean["image"])
        for name in PAIR:
            np.testing.assert_array_equal(level[name], np.full(B, t[name][k]))
    assert not np.array_equal(calls[1][0]["depth"], noise["depth"])


@pytest.mark.parametrize("log2_alpha", [None, -8.0], ids=["clean", "renoised"])
def test_missing_entries_of_a_condition_hold_the_noise(log2_alpha):
    noise, clean = normal(11), normal(12)
    valid = np.random.default_rng(0).random((B, N, C)) < 0.5
    junk = np.where(valid, clean["depth"], np.nan).astype(np.float32)
    predict, calls = recorded(lambda x, t, text: {name: 0.1 * v for name, v in x.items()})
    schedule = {} if log2_alpha is None else dict(pinned={}, log2_alpha={"depth": log2_alpha})
    with jax.disable_jit():
        result = sample(predict, noise, 5, "x", {"depth": (junk, valid)}, **schedule)
    for x, _, _ in calls:
        np.testing.assert_array_equal(x["depth"][~valid], noise["depth"][~valid])
        assert np.all(np.isfinite(x["depth"]))
    assert np.all(np.isfinite(result["image"]))
    np.testing.assert_array_equal(result["depth"], junk)


def test_a_renoised_condition_is_shown_at_the_noise_level_of_its_schedule():
    noise, clean = normal(13), normal(14)
    predict, calls = recorded(lambda x, t, text: {name: 0.1 * v for name, v in x.items()})
    with jax.disable_jit():
        sample(
            predict, noise, 6, "x", {"depth": (clean["depth"], np.ones((B, N, C), bool))}, pinned={},
            log2_alpha={"depth": -3.0},
        )  # fmt: skip
    t = schedules(PAIR, 6, {}, log2_alpha={"depth": -3.0})
    assert calls[0][1]["depth"][0] == 1.0 and calls[-1][1]["depth"][0] < calls[-1][1]["image"][0]
    for k, (x, level, _) in enumerate(calls):
        s = float(t["depth"][k])
        np.testing.assert_array_equal(level["depth"], np.full(B, t["depth"][k]))
        np.testing.assert_allclose(x["depth"], (1 - s) * clean["depth"] + s * noise["depth"], atol=3e-7)


def test_an_example_does_not_depend_on_the_others():
    noise = normal(15)
    predict = best(MEAN_K, COVARIANCE, dict.fromkeys(PAIR, "x"))
    both = sample(predict, noise, 8, "x")
    changed = {name: np.concatenate([v[:1], v[1:] * 3]) for name, v in noise.items()}
    other = sample(predict, changed, 8, "x")
    for name in PAIR:
        np.testing.assert_array_equal(both[name][0], other[name][0])
