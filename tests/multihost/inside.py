"""What two processes find when they look from inside: prints one JSON object, from process 0.

Arguments: flags of the place, then CONFIG WORKDIR ... For every workdir: digests of its latest checkpoint, restored
over the devices of all processes and gathered. `rows`: whether batches arrive whole, on meshes whose devices lie in
every order. `initial`: digest of the parameters of a new run that starts from the first workdir.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from mf_jax.__main__ import _explain
from mf_jax.checkpoint import initialize
from mf_jax.checkpoint.manager import Checkpoints, digest
from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config import loading as configs
from mf_jax.joint_model import build_model
from mf_jax.parallel import cluster, distributed, sharding
from mf_jax.training import train_state


def gathered(tree):
    """All of every array, in the memory of every process."""
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)


def digests(workdir, mesh):
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints")
    config = configs.resolve(checkpoints.config())
    state = vars(train_state.abstract(build_model(config), config, mesh))
    held = checkpoints.items()
    items = checkpoints.restore({name: state[name] for name in ("params", "ema", "opt_state") if name in held})
    split = [x for x in jax.tree.leaves(items["params"]) if not x.is_fully_addressable]
    assert split  # parts of it are nowhere but in the other process
    checkpoints.close()
    return {name: digest(gathered(tree)) for name, tree in items.items()}


def rows_arrive(order, axes):
    """A batch of 16, each process giving its rows, on a mesh of these devices."""
    devices = np.array(jax.devices())[order].reshape(axes)
    names = sharding.AXES
    mesh = Mesh(devices.reshape(*axes, *[1] * (len(names) - 2)), names, axis_types=(AxisType.Auto,) * len(names))
    whole = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    mine = whole[sharding.batch_rows(mesh, 16)]
    return np.array_equal(gathered(sharding.put_batch({"x": mine}, mesh)["x"]), whole)


def main(where, config_file, workdirs):
    with distributed.joined(where, {}, _explain):
        mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
        found = {workdir: digests(workdir, mesh) for workdir in workdirs}
        orders = [range(8), [7, 6, 5, 4, 3, 2, 1, 0], [0, 4, 1, 5, 2, 6, 3, 7], [3, 4, 0, 7, 1, 6, 5, 2]]
        rows = [rows_arrive(list(order), axes) for order in orders for axes in ((8, 1), (2, 4))]
        config = configs.load(config_file, [f"init.checkpoint={workdirs[0]}"])
        source = SavedModel(workdirs[0])
        params, _ = initialize.params(build_model(config), config, mesh, source.params("ema", mesh))
        source.close()
        found |= {"rows": rows, "initial": digest(gathered(params)), "devices": jax.device_count()}
        if jax.process_index() == 0:
            print(f"found {json.dumps(found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("config")
    parser.add_argument("workdirs", nargs="+")
    given = parser.parse_args(sys.argv[1:])
    main(cluster.find(None, given.coordinator, given.processes, given.process, None), given.config, given.workdirs)
