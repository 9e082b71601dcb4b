"""Training FLUX.2 with a part of its parameters frozen."""

import jax
import numpy as np
import pytest

from mf_jax.config.loading import resolve
from mf_jax.joint_model import build_model
from mf_jax.models.weight_table import flatten
from mf_jax.parallel import sharding
from mf_jax.training import train_state, train_step
from mf_jax.training.config import ObjectiveConfig

OBJECTIVE = ObjectiveConfig()
SEED = 7
FROZEN = ("backbone/double/image", "backbone/double/text")


@pytest.fixture
def flux2_config(tiny_config):
    tiny_config["model"] = dict(
        kind="flux2", width=32, heads=2, double_blocks=1, single_blocks=1, axes=(4, 4, 4, 4), mlp_ratio=1.0
    )
    return tiny_config


def under(prefixes, names):
    return {name for name in names if name.startswith(tuple(f"{prefix}/" for prefix in prefixes))}


def test_frozen_parameters(flux2_config, randomised, make_batch):
    """They stay as they are to the last bit, without optimizer state, and still take part; all the rest moves."""
    unfrozen = resolve(flux2_config)
    flux2_config["train"]["freeze"] = FROZEN
    config = resolve(flux2_config)
    model, mesh = build_model(config), sharding.make_mesh(sharding.MeshConfig())
    start = randomised(train_state.abstract_params(model, config, mesh), seed=1)
    state = train_state.new(model, config, mesh, jax.tree.map(np.copy, start))
    step = jax.jit(
        train_step.make_train_step(model, OBJECTIVE, config.optimizer.make(config.train.steps), SEED, 1, 0.9)
    )
    losses, batches = [], [make_batch(8, seed) for seed in range(2)]
    for batch in batches:
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["loss"]))

    flat = flatten(start)
    held, trained = under(FROZEN, flat), flatten(state.params)
    assert len(held) == 2 * 9
    assert set(flatten(state.untrained)) == held and set(trained) == set(flatten(state.ema)) == set(flat) - held
    for name, value in flatten(state.untrained).items():
        np.testing.assert_array_equal(value, flat[name], err_msg=name)
    for name, value in trained.items():
        assert np.any(np.asarray(value) != flat[name]), name

    whole = jax.jit(lambda p: train_step.loss_and_gradient(model, OBJECTIVE, SEED, 1, {}, p, {}, batches[0], 0)[0])
    assert losses[0] == pytest.approx(float(whole(start)), rel=1e-5)
    assert np.isfinite(losses[1]) and losses[1] != losses[0]

    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]]
    assert any("'double']['depth']" in path for path in paths)
    assert not any("'double']['image']" in path or "'double']['text']" in path for path in paths)
    full = train_state.abstract(model, unfrozen).opt_state
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (full, state.opt_state)]
    assert sizes[0] - sizes[1] == 2 * sum(flat[name].size for name in held)
