"""The `export` verb: writes a checkpoint as safetensors, with config, training record and model card.

Beside the tensors are config.json in the form of the layout, training.json (resolved config, step, version, evaluation
results: what `sample`, `evaluate` and `init.checkpoint` read) and README.md, the model card.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mf_jax.checkpoint import layouts
from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config import loading as configs
from mf_jax.configurable import nearest
from mf_jax.models.weight_table import flatten, shapes_there, stream
from mf_jax.storage import safetensors_files

DTYPES = {"fp32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}


def export(
    checkpoint: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    layout: str = "own",
    weights: str = "ema",
    dtype: str = "fp32",
    step: int | None = None,
    trust_code: bool = False,
    shard_bytes: int = safetensors_files.SHARD_BYTES,
) -> list[pathlib.Path]:
    """Writes an export; returns the paths of its files.

    Args:
      checkpoint: the workdir of a run or an import, or an export. output: a new directory.
      layout: a name of layouts.LAYOUTS. weights: "ema" or "params". dtype: one of DTYPES; bf16 rounds to nearest even.
      step: of a checkpoint; None: the latest. trust_code: whether its config may name modules to import.
      shard_bytes: largest size of a file, unless one tensor is larger.

    Raises:
      ValueError: no checkpoint, a damaged one, weights that are not finite, an unknown option, a layout that is not for
        this model, an output directory that is not empty.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; {nearest(dtype, DTYPES)}")
    saved = SavedModel(checkpoint, step, trust_code=trust_code)
    names = layouts.named_layout(layout)
    described = names.config_json(saved.model, configs.to_dict(saved.config))
    params = saved.params(weights)
    saved.close()
    table = names.table(saved.model, params)
    shapes = shapes_there({path: leaf.shape for path, leaf in flatten(params).items()}, table)
    sizes = {name: int(np.prod(shape)) * DTYPES[dtype].itemsize for name, shape in shapes.items()}
    tensors = ((name, value.astype(DTYPES[dtype])) for name, value in stream(params, table))
    record = {
        "layout": layout,
        "step": saved.step,
        "weights": weights,
        "dtype": dtype,
        "mf_jax": importlib.metadata.version("mf-jax"),
        "config": configs.to_dict(saved.config),
        "evaluation": _results(pathlib.Path(checkpoint)),
    }
    extra = {
        "config.json": _json(described),
        layouts.RECORD: _json(record),
        "README.md": _card(record, sum(int(np.prod(shape)) for shape in shapes.values())).encode(),
    }
    return safetensors_files.write(output, tensors, sizes, extra, shard_bytes)


def _results(directory: pathlib.Path) -> Any:
    """The results.json that `evaluate` wrote into the directory; None without one."""
    path = directory / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _card(record: Mapping[str, Any], parameters: int) -> str:
    """The model card, Markdown."""
    config = record["config"]
    lines = [
        "# Modality Forcing model",
        "",
        f"Trained with mf_jax {record['mf_jax']}, {record['step']:,} steps of {config['train']['batch']} examples. "
        f"{parameters:,} parameters, {record['weights']}, in {record['dtype']}; layout `{record['layout']}`.",
        "",
        f"Modalities: {', '.join(config['modalities'])}. Resolution: {config['data']['resolution']} pixels.",
        "",
        "    python -m mf_jax sample --checkpoint=THIS_DIRECTORY --prompt=...",
        "",
        "## Evaluation",
        "",
    ]
    results = record["evaluation"]
    if results is None:
        lines.append("None was made before the export.")
    else:
        lines += ["| protocol | AbsRel | best constant | delta1 | images |", "|---|---|---|---|---|"]
        for name, scores in results.items():
            if isinstance(scores, Mapping) and "abs_rel" in scores:
                numbers = f"{scores['abs_rel']:.4f} | {scores['constant_abs_rel']:.4f} | {scores['delta1']:.4f}"
                lines.append(f"| {name} | {numbers} | {scores['images']} |")
        lines += ["", f"At step {results['checkpoint_step']}."]
    lines += ["", "## Training config", "", "```json", json.dumps(config, indent=2), "```", ""]
    return "\n".join(lines)
