"""The `sample` verb: samples from a prompt and files, and writes one folder per sample."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mf_jax.data.images import read_image
from mf_jax.inference import pipeline
from mf_jax.inference.inputs import read_relative_depth
from mf_jax.inference.modes import PARTIAL
from mf_jax.inference.outputs import write_sample
from mf_jax.parallel.processes import ProcessGroup


def sample(arguments: argparse.Namespace, overrides: Sequence[str], group: ProcessGroup) -> None:
    """Runs the `sample` verb and prints the folders that it wrote.

    Args:
      arguments: parsed by __main__. overrides: of the config's section `sample`, "sample.steps=20".
      group: the processes, all of which call this; process 0 writes.

    Raises:
      ValueError: invalid files or settings.
    """
    if arguments.partial and not arguments.depth:
        raise ValueError("--partial needs --depth, the depth map to follow loosely")
    inputs: dict[str, Any] = {}
    if arguments.image:
        inputs["image"] = read_image(arguments.image, upright=True)
    if arguments.depth:
        depth_HW, _ = read_relative_depth(arguments.depth)
        inputs["depth"] = depth_HW
    for override in overrides:
        if not override.startswith("sample."):
            raise ValueError(f"--config.{override}: sampling reads only the section sample of the config")
    if arguments.batch < 1:
        raise ValueError(f"--batch is {arguments.batch}; it must be at least 1")
    model = pipeline.load(
        arguments.checkpoint, arguments.step, overrides=overrides, trust_code=arguments.trust_code, group=group
    )
    mode = PARTIAL if arguments.partial else model.mode_of(tuple(inputs))
    if "image" not in model.model.modalities:
        raise ValueError(
            f"only samples with an image are written; this model makes {', '.join(model.model.modalities)}"
        )
    settings = {
        "steps": arguments.steps,
        "seed": arguments.seed,
        "mu": arguments.mu,
        "log2_alpha": arguments.log2_alpha,
        "guidance": arguments.guidance,
        "guide": arguments.guide,
        "refine": arguments.refine_depth,
    }
    result = model.sample(mode, arguments.prompt, batch=arguments.batch, **settings, **inputs)
    defaults = model.config.sample
    for i in range(arguments.batch if group.is_main else 0):
        folder = write_sample(
            arguments.output_dir,
            result["image"][i],
            result["depth"][i] if "depth" in result else None,
            {
                "prompt": arguments.prompt,
                "mode": mode,
                "seed": arguments.seed,
                "sample": i,
                "num_steps": arguments.steps or defaults.steps,
                "cfg_scale": model.guidance_of(mode, arguments.guidance),
                "checkpoint_step": model.step,
            },
            pointcloud="depth" not in inputs,
            fov_deg=arguments.fov_deg,
            edge_rtol=arguments.edge_rtol,
            others={name: value[i] for name, value in result.items() if name not in ("image", "depth")},
        )
        print(folder)
