"""Published tensors read onto a mesh: every device gets its own part, and together they are the whole."""

import jax
import numpy as np
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mf_jax.models import weight_table
from mf_jax.models.weight_table import Entry
from mf_jax.storage.safetensors_files import TensorFiles

TABLE = [
    Entry("stack/q/kernel", "{i}.qkv", "linear", layers=4, rows=(0, 8)),
    Entry("stack/v/kernel", "{i}.qkv", "linear", layers=4, rows=(8, 24)),
    Entry("conv/kernel", "conv", "conv"),
    Entry("norm/scale", "norm"),
]
SPECS = {
    "stack/q/kernel": PartitionSpec(None, "fsdp", "data"),
    "stack/v/kernel": PartitionSpec("data", None, "fsdp"),
    "conv/kernel": PartitionSpec(None, None, "fsdp", "data"),
    "norm/scale": PartitionSpec(),
}


def test_sharded_reading(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {f"{i}.qkv": rng.normal(size=(24, 8)) for i in range(4)}
    tensors |= {"conv": rng.normal(size=(6, 4, 3, 3)), "norm": rng.normal(size=(5,))}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    whole = weight_table.flatten(weight_table.to_ours(tensors, TABLE))
    abstract = {
        path: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, SPECS[path]))
        for path, value in whole.items()
    }
    read_sizes = []
    part = TensorFiles.part
    monkeypatch.setattr(
        TensorFiles, "part", lambda self, name, index: read_sizes.append((got := part(self, name, index)).size) or got
    )
    read = weight_table.flatten(
        weight_table.read(TensorFiles(tmp_path / "x.safetensors"), weight_table.nest(abstract), TABLE)
    )
    for path, value in whole.items():
        np.testing.assert_array_equal(np.asarray(read[path]), value, err_msg=path)
        assert read[path].sharding.spec == SPECS[path]
    assert max(read_sizes) <= 8 * 16 // 4  # no device reads a whole kernel
