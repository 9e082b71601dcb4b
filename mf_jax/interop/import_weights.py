"""The `import` verb: turns published weights into a checkpoint for `init.checkpoint`, `sample` and `export`.

Tensors are read one part at a time, each device reading only its shard. Arrays that the file lacks (the depth stream,
if the file is a text-to-image model) are cloned by the rules of `init.clone` or initialised from scratch.
"""

from __future__ import annotations

import json
import pathlib

from mf_jax.checkpoint import initialize, layouts
from mf_jax.checkpoint.manager import Checkpoints, check_path
from mf_jax.config import loading as configs
from mf_jax.config.config import Config
from mf_jax.config.sections import CheckpointConfig
from mf_jax.configurable import nearest
from mf_jax.joint_model import build_model
from mf_jax.models.flux2_weights import VARIANTS
from mf_jax.models.weight_table import Report, check, flatten, nest, read
from mf_jax.parallel import sharding
from mf_jax.storage.safetensors_files import TensorFiles
from mf_jax.training import partition, train_state


def import_weights(
    source: str | pathlib.Path, config: Config, workdir: str | pathlib.Path
) -> tuple[Report, initialize.Origins]:
    """Writes checkpoint 0 in `workdir` and prints the origin of every array and the tensors that are left over.

    Args:
      source: a safetensors file or a directory: FLUX.2 as Black Forest Labs publish it, or the official Modality
        Forcing model. config: resolved, of the model to make. workdir: a new directory.

    Returns:
      Which tensors were read into which arrays, and the origins of all arrays.

    Raises:
      ValueError: a file of another model, a missing or mis-shaped tensor, a config that does not fit the file, a
        workdir with a checkpoint.
    """
    workdir = pathlib.Path(workdir)
    check_path(workdir.absolute())
    if (workdir / "checkpoints").exists():
        raise ValueError(f"{workdir} has checkpoints; give a new --workdir")
    mesh = sharding.make_mesh(config.mesh)
    model = build_model(config)
    _check_variant(pathlib.Path(source))
    files = TensorFiles(source)
    table = layouts.published_table(model, files)
    wanted = flatten(train_state.abstract_params(model, config, mesh))
    foreign = [entry for entry in table if entry.ours not in wanted]
    if foreign:
        raise ValueError(
            f"{source} has {foreign[0].names()[-1]}, for which the config's model has no place ({foreign[0].ours})"
        )
    for entry in table:
        if entry.layers is not None and (more := entry.theirs.format(i=entry.layers)) in files:
            raise ValueError(f"{source} has {more}; the config's model has {entry.layers} such blocks ({entry.ours})")
    report = check(files, {path: leaf.shape for path, leaf in wanted.items()}, table)
    given = read(files, nest({entry.ours: wanted[entry.ours] for entry in table}), table)
    files.close()
    params, origins = initialize.params(model, config, mesh, given)
    trained, untrained = partition.partition(params, config.train.freeze)
    checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig())
    checkpoints.save(0, {"params": trained, "untrained": untrained}, {}, configs.to_dict(config))
    checkpoints.close()
    print(f"{len(report.mapped)} tensors read into {len(table)} arrays")
    for name in report.left_over:
        print(f"left over: {name}")
    for path, original in origins.cloned.items():
        print(f"cloned: {path} from {original}")
    for path in origins.fresh:
        print(f"from scratch: {path}")
    print(workdir)
    return report, origins


def _check_variant(source: pathlib.Path) -> None:
    """Raises ValueError if the release's config.json beside the tensors names an unknown variant."""
    path = source / "config.json"
    if not path.is_file():
        return
    try:
        variant = json.loads(path.read_text()).get("variant")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}") from None
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"{path} names the variant {variant!r}; {nearest(str(variant), VARIANTS)}")
