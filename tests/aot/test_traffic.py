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


# A fusion in a fusion: 10 of 1000 bytes are sliced in the inner one, which passes another operand through unchanged.
NESTED = """HloModule m
inner (p0: u8[1000], p1: u8[70], i: s32[]) -> u8[10] {
  p0 = u8[1000]{0} parameter(0)
  p1 = u8[70]{0} parameter(1)
  i = s32[] parameter(2)
  ROOT s = u8[10]{0} dynamic-slice(p0, i), dynamic_slice_sizes={10}
}
same (p2: u8[500]) -> u8[500] {
  p2 = u8[500]{0} parameter(0)
  ROOT b = u8[500]{0} bitcast(p2)
}
outer (q0: u8[1000], q1: u8[70], q2: s32[], q3: u8[500]) -> u8[20] {
  q0 = u8[1000]{0} parameter(0)
  q1 = u8[70]{0} parameter(1)
  q2 = s32[] parameter(2)
  q3 = u8[500]{0} parameter(3)
  f = u8[10]{0} fusion(q0, q1, q2), kind=kLoop, calls=inner
  g = u8[500]{0} fusion(q3), kind=kLoop, calls=same
  t = u8[30]{0} slice(g), slice={[0:30]}
  ROOT c = u8[20]{0} concatenate(f, t)
}
ENTRY main (a: u8[1000], b: u8[70], c: s32[], d: u8[500]) -> u8[20] {
  a = u8[1000]{0} parameter(0)
  b = u8[70]{0} parameter(1)
  c = s32[] parameter(2)
  d = u8[500]{0} parameter(3)
  ROOT e = u8[20]{0} fusion(a, b, c, d), kind=kLoop, calls=outer
}
"""


def test_fusions_in_fusions():
    """10 of the first operand, none of the second, the index, 30 of the last through a bitcast; 20 written."""
    assert traffic(parse(NESTED)) == 10 + 0 + 4 + 30 + 20


def test_workspace_of_cublas():
    """A product of GPUs has memory to work in beside its result; that is not counted."""
    text = """HloModule m
ENTRY main (a: f32[5,6], b: f32[6,7]) -> (f32[5,7], s8[4096]) {
  a = f32[5,6]{1,0} parameter(0)
  b = f32[6,7]{1,0} parameter(1)
  ROOT c = (f32[5,7]{1,0}, s8[4096]{0}) custom-call(a, b), custom_call_target="__cublas$gemm"
}
"""
    assert traffic(parse(text)) == 4 * (30 + 42 + 35)
