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
from mf_jax import flops, freeze
from mf_jax.checkpoint import Checkpoints, digest
from mf_jax.joint_model import JointModel, build_model


def show_config(spec: str, overrides: Sequence[str]) -> None:
    """The resolved config, the parameter table, counts, tokens and FLOPs per step. Nothing is allocated."""
    config = configs.load(spec, overrides)
    model = build_model(config)
    _print_config(config)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    _print_counts(model, params, config)


def show_checkpoint(directory: str) -> None:
    """Step, config, and a SHA-256 digest each of parameters, EMA and optimizer state."""
    from mf_jax.train_state import abstract

    folder = pathlib.Path(directory) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"no checkpoints in {directory}; give the --workdir of a training run")
    checkpoints = Checkpoints(folder)
    config = configs.resolve(checkpoints.config())
    model = build_model(config)
    held = checkpoints.items()
    state = vars(abstract(model, config))
    parts = [name for name in ("params", "frozen", "ema", "opt_state") if name in held]
    items = checkpoints.restore({name: state[name] for name in parts})
    step, position = checkpoints.step(), checkpoints.iterator()
    checkpoints.close()
    _print_config(config)
    _print_counts(model, freeze.merge(items["params"], items.get("frozen", {})), config)
    print(f"step: {step}")
    print(f"data: {position}")
    for name, tree in items.items():
        print(f"{name} sha256: {digest(tree)}")


def _print_config(config: Mapping[str, Any]) -> None:
    print(ConfigDict(configs.to_dict(config)))


def _print_counts(model: JointModel, params: Any, config: Mapping[str, Any]) -> None:
    def count(tree: Any) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    batch = config["train"]["batch"]
    tokens = {name: rows * columns for name, (rows, columns) in model.grids.items()}
    tokens["text"] = model.text.tokens
    per_token = ", ".join(f"{name} {n}" for name, n in tokens.items())
    print(f"parameters: {count(params):,} (" + ", ".join(f"{k} {count(v):,}" for k, v in params.items()) + ")")
    total = sum(tokens.values())
    print(f"tokens per example: {total} ({per_token}); per step of {batch}: {total * batch:,}")
    step = flops.step_flops(model, config)
    print(f"model FLOPs per step: {step:.4g} (forward of one example: {flops.forward_flops(model):.4g})")
    if paths := config["train"]["freeze"]:
        print(f"frozen parameters: {count(freeze.split(params, paths)[1]):,} ({', '.join(paths)})")
    if flops.distills(config):
        print(f"teacher, forward of one example: {flops.teacher_flops(model):.4g}, counted in the step")
