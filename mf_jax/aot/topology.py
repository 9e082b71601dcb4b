"""Topologies by name: descriptions of TPU slices and GPU nodes to compile for, without the hardware.

TPUs are compiled for by libtpu, GPUs by the CUDA plugin of jax, both of which install without a device or a driver.
"""

from __future__ import annotations

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from mf_jax.monitoring.chips import CHIPS, Chip

FORMS = "v5e:4x4, v6e:16x16, v5p:4x4x4, tpu7x:2x2x1 (chips along each axis), h200:1x2x8 (1 x nodes x GPUs of a node)"

# What XLA must know of a GPU of compute capability 9.0 or 8.0, from the CUDA programming guide and the data sheets.
_GPU = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores} fpus_per_core: {lanes} clock_rate_ghz: {clock}
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: {l2}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared} shared_memory_per_core: {shared_core}
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
device_description_str: "{kind}"
"""
_HOPPER = dict(major=9, cores=132, lanes=128, clock=1.98, l2=50 * 2**20, shared=227 * 2**10, shared_core=228 * 2**10)
_AMPERE = dict(major=8, cores=108, lanes=64, clock=1.41, l2=40 * 2**20, shared=163 * 2**10, shared_core=164 * 2**10)
_GPUS = {"a100": _AMPERE, "h100": _HOPPER, "h200": _HOPPER}


def devices(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of "v5p:4x4x4", of `slices` such slices; of "h200:1x2x8", 2 nodes of 8 GPUs.

    The backend of this process becomes the CPU: nothing can be computed on these devices.

    Raises:
      ValueError: no such topology, or the compiler for it is not installed; says what to install.
    """
    kind, chip, shape = parse(name)
    if slices < 1 or (slices > 1 and chip.platform != "tpu"):
        raise ValueError(f"--slices is {slices}; it must be at least 1, and 1 for GPUs: give nodes, {chip.name}:1x4x8")
    _environment(chip)
    if chip.platform == "cuda":
        values = _GPUS[chip.name] | {"memory": int(chip.hbm), "bandwidth": int(chip.hbm_bandwidth), "kind": kind}
        options: dict[str, object] = {"topology": "x".join(map(str, shape)), "target_config": _GPU.format(**values)}
    else:
        options = {"num_slices": slices, "wrap": wraps(shape)}
        if shape in ((1, 1), (2, 4)):  # one host of other than four chips
            options["chips_per_host_bounds"] = (*shape, 1)
    try:
        return list(topologies.get_topology_desc(name, chip.platform, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology is {name!r}; {str(error).splitlines()[0]}; valid are {FORMS}") from None


def wraps(shape: tuple[int, ...]) -> tuple[bool, bool, bool]:
    """Along which axes a slice of TPUs is a ring, by docs.cloud.google.com/tpu/docs: along 16 chips of v5e and v6e, and
    along all axes of whole cubes of 4x4x4 of the others. The compiler takes none unless it is told; it then gathers
    over a whole slice of v5p by synchronous all-reduces.
    """
    if len(shape) == 2:
        return shape[0] == 16, shape[1] == 16, False
    return (all(size % 4 == 0 for size in shape),) * 3


def parse(name: str) -> tuple[str, Chip, tuple[int, ...]]:
    """Device kind, chip and shape of a topology's name.

    Raises:
      ValueError: not such a name; says what is valid.
    """
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", name)
    known = {chip.name: (kind, chip) for kind, chip in CHIPS.items()}
    if not found or found[1] not in known:
        raise ValueError(f"--topology is {name!r}; valid are {FORMS}; chips: {', '.join(known)}")
    kind, chip = known[found[1]]
    shape = tuple(int(size) for size in found[2].split("x"))
    if len(shape) != chip.axes or not all(shape):
        raise ValueError(f"--topology is {name!r}; {chip.name} has {chip.axes} axes; valid are {FORMS}")
    if chip.axes == 2 and (max(shape) > 16 or any(size & (size - 1) for size in shape)):
        raise ValueError(f"--topology is {name!r}; a slice of {chip.name} is powers of two up to 16x16, as 4x8")
    if chip.platform == "tpu" and chip.axes == 3 and (shape != tuple(sorted(shape)) and shape != (2, 2, 1)):
        raise ValueError(
            f"--topology is {name!r}; the sizes of a slice of {chip.name} increase, as 4x4x8, or are 2x2x1"
        )
    return kind, chip, shape


def _environment(chip: Chip) -> None:
    """Sets the environment variables that jax and the compilers read at their first use."""
    package, extra = ("libtpu", "tpu") if chip.platform == "tpu" else ("jax_plugins.xla_cuda12", "cuda-compile")
    parts = package.split(".")
    missing = importlib.util.find_spec(parts[0]) is None or importlib.util.find_spec(package) is None
    if missing and not (chip.platform == "tpu" and os.environ.get("TPU_LIBRARY_PATH")):
        raise ValueError(
            f"compiling for {chip.name} needs {package}; install it with: pip install 'mf-jax[{extra}]', in a clone: "
            f"pip install -e '.[{extra}]'"
        )
    jax.config.update("jax_platforms", "cpu")
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock file: no TPU is taken
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # no CUDA libraries whose versions could be checked
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    os.environ.update({name: value for name, value in quiet.items() if name not in os.environ})
