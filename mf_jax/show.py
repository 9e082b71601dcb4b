"""What a config would train, or what a checkpoint holds, in print."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from mf_jax import config as configs
from mf_jax import flops
from mf_jax.checkpoint import Checkpoints, digest
from mf_jax.joint_model import JointModel, build_model


def show_config(spec: str, overrides: Sequence[str]) -> None:
    """The resolved config, the parameter table, counts, tokens and FLOPs per step. Nothing is allocated."""
    config = configs.load(spec, overrides)
    model = build_model(config)
    _print_config(config)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    _print_counts(model, params, config["train"]["batch"])


def show_checkpoint(directory: str) -> None:
    """Step, config, and a SHA-256 digest each of parameters, EMA and optimizer state."""
    from mf_jax.train_state import abstract

    folder = pathlib.Path(directory) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"no checkpoints in {directory}; give the --workdir of a training run")
    checkpoints = Checkpoints(folder)
    config = configs.resolve(checkpoints.config())
    model = build_model(config)
    state, position = checkpoints.restore(abstract(model, config))
    checkpoints.close()
    _print_config(config)
    _print_counts(model, state.params, config["train"]["batch"])
    print(f"step: {int(state.step)}")
    print(f"data: {position}")
    for name in ("params", "ema", "opt_state"):
        print(f"{name} sha256: {digest(getattr(state, name))}")


def _print_config(config: Mapping[str, Any]) -> None:
    print(ConfigDict(configs.to_dict(config)))


def _print_counts(model: JointModel, params: Any, batch: int) -> None:
    def count(tree: Any) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    tokens = {name: rows * columns for name, (rows, columns) in model.grids.items()}
    tokens["text"] = model.text.max_bytes // model.text.group
    per_token = ", ".join(f"{name} {n}" for name, n in tokens.items())
    print(f"parameters: {count(params):,} (" + ", ".join(f"{k} {count(v):,}" for k, v in params.items()) + ")")
    total = sum(tokens.values())
    print(f"tokens per example: {total} ({per_token}); per step of {batch}: {total * batch:,}")
    step, example = flops.step_flops(model, batch), flops.forward_flops(model)
    print(f"model FLOPs per step: {step:.4g} (forward of one example: {example:.4g})")
