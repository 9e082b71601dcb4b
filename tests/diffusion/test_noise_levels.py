"""Noise levels against their defining density, integrated here, and the draw of the training mode.

Legend: B batch.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from mf_jax.diffusion.noise_levels import LogitNormal, Mode, PlateauLogitNormal, draw

DRAWS = 20_000
MODES = {"d2i": Mode(0.2, ("depth",)), "i2d": Mode(0.2, ("image",)), "joint": Mode(0.6)}
PAIR = {"image": LogitNormal(), "depth": PlateauLogitNormal()}
SHAPES = [(1.1, 1.0), (0.0, 1.0), (-0.5, 0.6), (2.0, 1.3)]


def logit_normal_density(t, mu, sigma):
    """d/dt of Phi((logit(t) - mu) / sigma)."""
    z = (math.log(t / (1 - t)) - mu) / sigma
    return math.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * sigma * t * (1 - t))


def reference(kind, mu, sigma):
    """(density, its breaking points): the mode is found by maximising, not by the root equation."""
    if kind is LogitNormal:
        return lambda t: logit_normal_density(t, mu, sigma), []
    coarse = np.linspace(1e-4, 1 - 1e-4, 20_001)
    peak = coarse[np.argmax([logit_normal_density(t, mu, sigma) for t in coarse])]
    mode = optimize.minimize_scalar(
        lambda t: -logit_normal_density(t, mu, sigma),
        bounds=(max(peak - 1e-3, 1e-9), min(peak + 1e-3, 1 - 1e-9)),
        method="bounded",
        options={"xatol": 1e-10},
    ).x
    top = logit_normal_density(mode, mu, sigma)
    mass = integrate.quad(logit_normal_density, 0, mode, args=(mu, sigma))[0] + (1 - mode) * top
    return lambda t: (logit_normal_density(t, mu, sigma) if t < mode else top) / mass, [mode]


def integrated_cdf(kind, mu, sigma, t_B):
    density, breaks = reference(kind, mu, sigma)
    return np.array(
        [integrate.quad(density, 1e-12, t, points=[b for b in breaks if b < t] or None, limit=200)[0] for t in t_B]
    )


@pytest.fixture(scope="module")
def drawn():
    """(t of each modality, position of the mode) of many examples."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    t, mode_B = draw(keys, PAIR, MODES)
    return {name: np.asarray(t_B) for name, t_B in t.items()}, np.asarray(mode_B)


@pytest.mark.parametrize("kind", [LogitNormal, PlateauLogitNormal])
@pytest.mark.parametrize(("mu", "sigma"), SHAPES)
def test_cdf_is_the_integral_of_the_density(kind, mu, sigma):
    t_B = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(kind(mu, sigma).cdf(jnp.array(t_B)), integrated_cdf(kind, mu, sigma, t_B), atol=2e-6)


@pytest.mark.parametrize("kind", [LogitNormal, PlateauLogitNormal])
@pytest.mark.parametrize(("mu", "sigma"), SHAPES)
def test_quantile_inverts_cdf(kind, mu, sigma):
    distribution = kind(mu, sigma)
    u_B = jnp.linspace(1e-3, 1 - 1e-3, 401)
    t_B = distribution.quantile(u_B)
    assert bool(jnp.all(jnp.diff(t_B) > 0))
    np.testing.assert_allclose(distribution.cdf(t_B), u_B, atol=3e-6)


@pytest.mark.parametrize("kind", [LogitNormal, PlateauLogitNormal])
@pytest.mark.parametrize(("mu", "sigma"), SHAPES)
def test_draws_follow_the_density(kind, mu, sigma):
    keys = jax.random.split(jax.random.key(3), DRAWS)
    t_B = np.asarray(draw(keys, {"x": kind(mu, sigma)}, {"only": Mode(1.0)})[0]["x"], np.float64)
    grid = np.linspace(0, 1, 2001)[1:-1]
    cdf = integrated_cdf(kind, mu, sigma, grid)
    result = stats.kstest(t_B, lambda t: np.interp(t, [0, *grid, 1], [0, *cdf, 1]))
    assert result.pvalue > 1e-3, result


def test_paper_values_of_the_plateau():
    distribution = PlateauLogitNormal(1.1, 1.0)
    assert distribution.mode == pytest.approx(0.86074, abs=1e-5)
    assert distribution.probability_below_mode == pytest.approx(0.68157, abs=1e-5)
    assert float(distribution.cdf(jnp.float32(0.86074))) == pytest.approx(0.68157, abs=1e-4)


def test_share_of_draws_below_the_plateau(drawn):
    t, mode_B = drawn
    free = t["depth"][mode_B != list(MODES).index("d2i")]
    p = 0.68157
    assert abs(np.mean(free <= 0.86074) - p) < 3 * math.sqrt(p * (1 - p) / free.size)


def test_quantile_is_finite_and_within_bounds_at_the_extremes():
    for kind in (LogitNormal, PlateauLogitNormal):
        t_B = np.asarray(kind().quantile(jnp.array([1e-6, 1 - 1e-6])))
        assert np.all((t_B > 0) & (t_B <= 1))


def test_mode_proportions(drawn):
    _, mode_B = drawn
    counts = np.bincount(mode_B, minlength=3)
    expected = DRAWS * np.array([mode.probability for mode in MODES.values()])
    assert stats.chisquare(counts, expected).pvalue > 1e-3, counts


def test_a_mode_of_probability_zero_is_never_drawn():
    modes = {"first": Mode(0.0), "joint": Mode(1.0), "last": Mode(0.0)}
    keys = jax.random.split(jax.random.key(1), DRAWS)
    assert set(np.asarray(draw(keys, PAIR, modes)[1]).tolist()) == {1}


def test_exactly_the_clean_modalities_are_pinned_at_zero(drawn):
    t, mode_B = drawn
    names = list(MODES)
    for modality, mode in (("image", "i2d"), ("depth", "d2i")):
        pinned = mode_B == names.index(mode)
        assert np.all(t[modality][pinned] == 0.0)
        assert np.all(t[modality][~pinned] > 0.0)


def test_levels_are_independent_of_each_other_and_of_the_mode(drawn):
    t, mode_B = drawn
    joint = mode_B == list(MODES).index("joint")
    quantiles = {name: np.asarray(PAIR[name].cdf(jnp.array(t[name][joint]))) for name in PAIR}
    table = np.histogram2d(quantiles["image"], quantiles["depth"], bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    other = t["image"][mode_B == list(MODES).index("d2i")]
    assert stats.ks_2samp(t["image"][joint], other).pvalue > 1e-3


def test_a_draw_does_not_depend_on_the_batch(drawn):
    few, mode_B = draw(jax.random.split(jax.random.key(0), DRAWS)[2:5], PAIR, MODES)
    np.testing.assert_array_equal(drawn[1][2:5], mode_B)
    for name in PAIR:
        np.testing.assert_array_equal(drawn[0][name][2:5], few[name])
