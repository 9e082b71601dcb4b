"""Bytes to and from the main memory: by hand, and against XLA's own count of a program without loops."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from mf_jax.aot.hlo import parse
from mf_jax.aot.traffic import traffic


def test_by_hand():
    """Ten rounds: a row and the vector read, the vector written; index and vector read, a row written in place.

    Then a copy out of the main memory, nothing for what stays outside of it, 320 bytes written, 640 read, 320 written.
    """
    first = 32 + 4 + 32 + 32
    second = 4 + 32 + 32
    rest = 32 + 0 + 320 + 640 + 320
    text = (pathlib.Path(__file__).parent / "traffic.hlo").read_text()
    assert traffic(parse(text)) == 10 * (first + second) + rest


def test_against_xla():
    def layers(w1, w2, x):
        return jnp.tanh(jax.nn.softmax(x @ w1) @ w2)[:, :32]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 512), (512, 256), (128, 256))]
    compiled = jax.jit(jax.grad(lambda *a: jnp.sum(layers(*a) ** 2), argnums=(0, 1))).lower(*shapes).compile()
    assert traffic(parse(compiled.as_text())) == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.05)
