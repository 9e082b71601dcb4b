"""The layouts that models are published in: which table of tensors goes with which model.

"own": the arrays as they are here, stacks of layers and all, for any model; names are our paths joined by dots.
"official": that of the Modality Forcing release, for FLUX.2-type models: model.safetensors and a config.json that names
the variant. The release's own loader knows two sizes; other sizes are written out in the place of a name.
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
    """Attributes:
    table: of a model and its parameters (arrays or shapes). ValueError if the model cannot have the layout.
    config_json: what config.json says of a model and its resolved config.
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
    """The layout of a name; ValueError for an unknown one."""
    if name not in LAYOUTS:
        raise ValueError(f"layout is {name!r}; {nearest(name, LAYOUTS)}")
    return LAYOUTS[name]


def published_table(model: JointModel, tensors: Container[str]) -> list[Entry]:
    """Which of a model's arrays a published file (FLUX.2, or the Modality Forcing release) is the source of.

    Raises:
      ValueError: the model is of another kind, or the file of neither.
    """
    return _below(flux2_weights.published_part(_flux2(model), tensors))
