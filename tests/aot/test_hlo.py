"""The collectives of hand-written programs, and of a real one for 8 devices."""

import os
import pathlib
import subprocess
import sys

import pytest

from mf_jax.aot import hlo
from mf_jax.aot.collectives import collectives, replica_groups

# Two loops: XLA says how often the first runs; the second, inside of it, counts from 2 in steps of 3 while below 13.
LOOPS = (pathlib.Path(__file__).parent / "loops.hlo").read_text()

# The TPU compiler's forms: an asynchronous all-gather in three fusions, and a reduce-scatter written as an all-reduce.
TPU = (pathlib.Path(__file__).parent / "tpu.hlo").read_text()


def test_loops_multiply():
    found = collectives(hlo.parse(LOOPS), [0] * 8)
    assert found.unknown_loops == 0
    by_kind = {c.kind: c for c in found.found}
    assert len(found.found) == len(by_kind) == 3
    gather, reduce, permute = by_kind["all-gather"], by_kind["all-reduce"], by_kind["collective-permute"]
    assert (gather.count, gather.payload, gather.group) == (5, 4 * 8 * 16 * 2, 4)
    assert (gather.in_loop, gather.asynchronous) == (True, True)
    assert gather.received == 3 * 8 * 16 * 2
    assert gather.source == "jit(f)/transpose(jvp(Net))/while/body/closed_call/trunk/q/dot_general"
    assert (reduce.count, reduce.payload, reduce.group) == (5 * 4, 400, 4)  # from 2 to 11 in threes: 2, 5, 8, 11
    assert (reduce.in_loop, reduce.asynchronous, reduce.received) == (True, False, 600)
    assert (permute.count, permute.payload, permute.received, permute.in_loop) == (1, 256, 256, False)


def test_loop_without_a_number_of_rounds():
    """It counts once, and is said to be unknown; what is inside of the other loop is, too."""
    found = collectives(hlo.parse(LOOPS.replace("direction=LT", "direction=NE")), [0] * 8)
    assert found.unknown_loops == 1
    assert {c.kind: c.count for c in found.found}["all-reduce"] == 5


def test_what_tpus_do_asynchronously():
    found = collectives(hlo.parse(TPU), [0, 0, 0, 0, 1, 1, 1, 1])
    gather, exchange, between, scatter = found.found
    assert (gather.kind, gather.payload, gather.group, gather.count) == ("all-gather", 16 * 8 * 2, 4, 1)
    assert gather.asynchronous and gather.source.endswith("trunk/k/dot_general")
    assert (exchange.kind, exchange.asynchronous, exchange.payload, exchange.received) == ("all-to-all", True, 24, 12)
    assert (scatter.kind, scatter.payload, scatter.received) == ("reduce-scatter", 96, 72)
    assert not scatter.asynchronous and scatter.source.endswith("out/dot_general")
    assert (between.kind, between.payload, between.group, between.received) == ("all-reduce", 24, 2, 24)
    assert between.asynchronous and not between.in_loop
    assert [c.crosses for c in found.found] == [True, False, True, True]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,3]<=[6]", [[0, 1, 2], [3, 4, 5]]),
        ("replica_groups=[3,2]<=[2,3]T(1,0)", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'b'}", [[0, 1, 2], [3, 4, 5]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,2}}", [[0, 1], [1, 2]]),
        ("replica_groups={}", [[0, 1, 2]]),
    ],
)
def test_replica_groups(text, groups):
    assert replica_groups(f"all-gather(%x), {text}, dimensions={{0}}", 3) == groups


def test_bytes_of_shapes():
    assert hlo.shape_bytes("bf16[3,5]{1,0:T(8,128)(2,1)}") == 30
    assert hlo.shape_bytes("(f32[2]{0}, s32[], pred[7]{0}, f8e4m3fn[4], u4[3], token[])") == 8 + 4 + 7 + 4 + 2


def test_no_module():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("nothing")


# A layer scanned over 6 times, its weights in 8 parts: for each the 64 x 64 float32 weights are gathered on the way
# forward, and kept, and their gradients are reduced on the way back.
REAL = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mf_jax.aot import hlo
from mf_jax.aot.collectives import collectives
mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
place = lambda *axes: NamedSharding(mesh, P(*axes))
w = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=place(None, "fsdp"))
x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=place("fsdp"))
def loss(w, x):
    layer = lambda h, w: (jnp.tanh(h @ jax.lax.with_sharding_constraint(w, place())), None)
    return jnp.sum(jax.lax.scan(layer, x, w)[0] ** 2)
step = jax.jit(jax.grad(loss), out_shardings=place(None, "fsdp"))
found = collectives(hlo.parse(step.lower(w, x).compile().as_text()), [0] * 8)
assert found.unknown_loops == 0, found
weights = [(c.kind, c.count, c.in_loop, c.group) for c in found.found if c.payload == 64 * 64 * 4]
assert sorted(weights) == [("all-gather", 6, True, 8), ("all-reduce", 6, True, 8)], found
"""


def test_a_real_program():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    folder = pathlib.Path(__file__).parent.parent.parent
    run = subprocess.run([sys.executable, "-c", REAL], env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
