"""The flags of xla_flags.sh: XLA and libtpu know each of them, and each changes a default."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

FLAGS = pathlib.Path(__file__).parents[2] / "launch" / "xla_flags.sh"
ADD_ONE = "import jax, jax.numpy as jnp; print(jax.jit(lambda x: x + 1)(jnp.zeros(())))"


def _sourced(platform, variable, **environment):
    command = ["bash", "-c", f'source "$0" {platform}; printf %s "${variable}"', str(FLAGS)]
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    result = subprocess.run(command, env=clean | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _run(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_what_the_user_gives_comes_behind_and_wins():
    assert _sourced("gpu", "XLA_FLAGS", XLA_FLAGS="--mine=1").endswith("=true --mine=1")
    assert _sourced("tpu", "LIBTPU_INIT_ARGS", LIBTPU_INIT_ARGS="--mine=1").split()[-1] == "--mine=1"
    assert _sourced("gpu", "XLA_PYTHON_CLIENT_MEM_FRACTION", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5") == "0.5"


def test_each_platform_gets_its_own():
    assert _sourced("cpu", "XLA_FLAGS$LIBTPU_INIT_ARGS") == ""
    assert _sourced("tpu", "XLA_FLAGS") == "" and _sourced("gpu", "LIBTPU_INIT_ARGS") == ""


def test_an_unknown_platform_is_refused():
    result = subprocess.run(["bash", "-c", f"source '{FLAGS}' rocm; echo on"], capture_output=True, text=True)
    assert result.returncode == 2 and "the platform is 'rocm'" in result.stderr and not result.stdout


def test_gpu_flags_are_known_and_change_defaults(tmp_path):
    """XLA ends a process with an unknown flag. What it dumps as debug options are those that are not the default."""
    flags = _sourced("gpu", "XLA_FLAGS").split()
    assert flags
    result = _run(ADD_ONE, XLA_FLAGS=f"{' '.join(flags)} --xla_dump_to={tmp_path}", JAX_PLATFORMS="cpu")
    assert result.returncode == 0, result.stderr
    dumped = next(tmp_path.glob("*debug_options")).read_text()
    for flag in flags:
        name, value = re.fullmatch(r"--(\w+)=(\w+)", flag).groups()
        assert f"{name}: {value}" in dumped
    assert _run("import jax; jax.devices()", XLA_FLAGS="--xla_gpu_no_such_flag=true").returncode != 0


# A matrix product with its weights in 16 parts, and its gradient: an all-gather and a reduce-scatter to hide.
COMPILE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(topologies.get_topology_desc("v5e:4x4", "tpu").devices), ("fsdp",))
w_CD, x_BC = (jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp"))) for _ in "wx")
loss = lambda w_CD, x_BC: (jax.nn.gelu(x_BC @ w_CD) @ w_CD.T).astype(jnp.float32).mean()
lowered = jax.jit(jax.grad(loss), out_shardings=w_CD.sharding).lower(w_CD, x_BC)

def program(flags):
    return lowered.compile(compiler_options=dict(f.removeprefix("--").split("=") for f in flags.split())).as_text()

default = program("")
assert program(sys.argv[1]) == default, "not the defaults"
assert program("--xla_tpu_enable_latency_hiding_scheduler=false") != default, "no flag shows in this program"
for flag in sys.argv[2].split():
    assert program(flag) != default, f"{flag} is the default"
try:
    program("--xla_tpu_no_such_flag=true")
except jax.errors.JaxRuntimeError as error:
    assert "No such compile option" in str(error)
else:
    raise AssertionError("an unknown flag is taken")
"""
USUAL = (
    "--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true "
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true "
    "--xla_tpu_enable_latency_hiding_scheduler=true --xla_enable_async_all_gather=true "
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true"
)


def test_tpu_flags_are_known_and_the_usual_ones_are_defaults_on_v5e():
    pytest.importorskip("libtpu")
    flags = _sourced("tpu", "LIBTPU_INIT_ARGS")
    command = [sys.executable, "-c", COMPILE, USUAL, flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
