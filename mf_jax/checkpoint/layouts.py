"""Layouts of exported models: the table of tensor names and the config.json of each.

"own": the arrays as they are in mf_jax, with stacked layers, for any model; a name is the path with dots.
"official": that of the Modality Forcing release, for FLUX.2-type models: model.safetensors and a config.json that names
the variant. The release's own loader knows two variants; a model of other sizes has its config in place of the name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

from mf_jax.configurable import nearest
from mf_jax.joint_model import JointModel
from mf_jax.models import flux2_weights
from mf_jax.models.flux2 import Flux2
from mf_jax.models.weight_table import Entry, flatten

RECORD = "training.json"  # beside the tensors: our config, step, version, layout and evaluation results


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is written as safetensors.

    Attributes:
      table: (model, parameters as arrays or shapes) -> its tensors. ValueError if the model cannot have the layout.
      config_json: (model, resolved config) -> content of config.json.
    """

    table: Callable[[JointModel, Mapping[str, Any]], list[Entry]]
    config_json: Callable[[JointModel, Mapping[str, Any]], dict[str, Any]]


def _own_table(model: JointModel, params: Mapping[str, Any]) -> list[Entry]:
    return [Entry(path, path.replace("/", ".")) for path in flatten(params)]


def _own_config(model: JointModel, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": "mf_jax", "model": config["model"], "modalities": config["modalities"]}


def _flux2(model: JointModel) -> Flux2:
    if not isinstance(model.backbone, Flux2) or model.text_encoder is not None:
        raise ValueError(
            "the published layouts are of models of kind 'flux2' with a frozen text encoder; this config's is not. "
            "Export others with --layout=own; to start from such an export give it as init.checkpoint, without import"
        )
    return model.backbone


def _below(entries: list[Entry]) -> list[Entry]:
    return [dataclasses.replace(entry, ours=f"backbone/{entry.ours}") for entry in entries]


def _official_table(model: JointModel, params: Mapping[str, Any]) -> list[Entry]:
    return _below(flux2_weights.table(_flux2(model)))


def _official_config(model: JointModel, config: Mapping[str, Any]) -> dict[str, Any]:
    variant = flux2_weights.variant_of(_flux2(model))
    return {"variant": variant} if variant else {"model": config["model"], "modalities": config["modalities"]}


LAYOUTS = {"own": Layout(_own_table, _own_config), "official": Layout(_official_table, _official_config)}


def named_layout(name: str) -> Layout:
    """The entry of LAYOUTS; ValueError for an unknown name."""
    if name not in LAYOUTS:
        raise ValueError(f"layout is {name!r}; {nearest(name, LAYOUTS)}")
    return LAYOUTS[name]


def published_table(model: JointModel, tensors: Container[str]) -> list[Entry]:
    """The table of those arrays of a model that a published file has: FLUX.2, or the Modality Forcing release.

    Args:
      tensors: the names in the file.

    Raises:
      ValueError: the model is of another kind, or the file of neither.
    """
    return _below(flux2_weights.published_part(_flux2(model), tensors))
