"""The dtypes that parameters can be held in: the transformers give the same bits, and what reads float32 keeps it.

Legend: B batch, N tokens of one modality.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.models.flat_dit import FlatDiT
from mf_jax.models.flux2 import Flux2
from mf_jax.models.read_dtypes import read_dtypes
from mf_jax.models.stream import Stream
from mf_jax.models.weight_table import flatten

B, N, GRID = 2, 4, (2, 2)
STREAMS = (Stream("image", 16, position=0, decoder_blocks=0), Stream("depth", 12, position=1, decoder_blocks=1))
MODELS = {
    "flat_dit": lambda dtype: FlatDiT(STREAMS, width=32, layers=2, heads=2, kv_heads=1, dtype=dtype),
    "flux2": lambda dtype: Flux2(
        STREAMS, width=32, heads=2, double_blocks=1, single_blocks=2, axes=(4, 4, 4, 4), dtype=dtype
    ),
}
NORMS = ("q_norm/scale", "k_norm/scale", "pre_norm/scale", "post_norm/scale", "_out_norm/scale")
HEADS = ("image_out/kernel", "depth_out/kernel")


def problem(kind, dtype, randomised):
    """(forward, its parameters, its other arguments)."""
    model = MODELS[kind](dtype)
    generator = np.random.default_rng(3)
    x = {s.name: generator.standard_normal((B, N, s.channels)).astype(np.float32) for s in STREAMS}
    t = {s.name: generator.random(B).astype(np.float32) for s in STREAMS}
    text = generator.standard_normal((B, 3, 8)).astype(np.float32)
    grids = dict.fromkeys(x, GRID)
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), x, t, grids, text)["params"]))

    def forward(params, x, t, text):
        return model.apply({"params": params}, x, t, grids, text)

    return forward, randomised(shapes, seed=1), (x, t, text)


@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_weights_give_the_bits_of_casting_in_every_call(kind, randomised):
    forward, params, rest = problem(kind, jnp.bfloat16, randomised)
    held = read_dtypes(forward, params, *rest)
    # Otherwise XLA may leave out a rounding to bfloat16 that is followed by a conversion back.
    run = jax.jit(forward, compiler_options={"xla_allow_excess_precision": False})
    expected = run(params, *rest)
    got = run(jax.tree.map(lambda value, like: value.astype(like.dtype), params, held), *rest)
    rounded = run(jax.tree.map(lambda value: value.astype(jnp.bfloat16), params), *rest)
    for name, value in expected.items():
        assert value.dtype == got[name].dtype == jnp.float32 and np.ptp(value) > 0.1
        np.testing.assert_array_equal(got[name], value)
        assert not np.array_equal(rounded[name], value)  # as it would be with every parameter in bfloat16


@pytest.mark.parametrize("kind", MODELS)
def test_norms_and_heads_keep_float32_and_nothing_else_does(kind, randomised):
    forward, params, rest = problem(kind, jnp.bfloat16, randomised)
    for path, leaf in flatten(read_dtypes(forward, params, *rest)).items():
        kept = path.endswith(NORMS) or path in HEADS
        assert leaf.dtype == (jnp.float32 if kept else jnp.bfloat16), path
    forward, params, rest = problem(kind, jnp.float32, randomised)
    assert {leaf.dtype for leaf in jax.tree.leaves(read_dtypes(forward, params, *rest))} == {jnp.dtype(jnp.float32)}


def test_a_parameter_that_is_read_in_two_ways_or_handed_on_keeps_its_dtype():
    def function(p, x):
        half = {name: value.astype(jnp.bfloat16) for name, value in p.items() if name != "unread"}
        inside = jax.jit(lambda a, b: a + b.astype(jnp.bfloat16))(half["scanned"], p["nested"])
        both = half["both"] * jnp.sum(p["both"])
        _, rows = jax.lax.scan(lambda c, row: (c, row.astype(jnp.bfloat16) * 2), 0, p["scanned"])
        branch = jax.lax.cond(
            x > 0, lambda v: v.astype(jnp.bfloat16), lambda v: 2 * v.astype(jnp.bfloat16), p["branch"]
        )
        return inside, both, rows, branch, p["returned"], half["returned"]

    names = ("scanned", "nested", "both", "branch", "returned", "unread")
    held = read_dtypes(function, {name: np.ones(3, np.float32) for name in names}, 1.0)
    assert {name for name, leaf in held.items() if leaf.dtype == jnp.bfloat16} == {"scanned", "nested"}
