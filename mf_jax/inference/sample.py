"""The `sample` verb: from files and a prompt to a folder per sample."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mf_jax.inference import pipeline
from mf_jax.inference.outputs import read_depth, read_image, write_sample


def sample(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Samples as the command line says (see __main__) and prints the folders that it wrote.

    Args:
      overrides: of the config's section `sample`, "sample.steps=20".

    Raises:
      ValueError: files or settings that do not do.
    """
    if arguments.image and arguments.depth:
        raise ValueError("--image and --depth exclude each other: give the one that is the condition")
    if arguments.partial and not arguments.depth:
        raise ValueError("--partial needs --depth, the depth map to follow loosely")
    mode = "i2d" if arguments.image else "d2i" if arguments.depth else "joint"
    inputs: dict[str, Any] = {}
    if arguments.image:
        inputs["image"] = read_image(arguments.image)
    if arguments.depth:
        depth_HW, _ = read_depth(arguments.depth)
        inputs["depth"] = depth_HW
    if arguments.partial:
        mode = "partial"
    for override in overrides:
        if not override.startswith("sample."):
            raise ValueError(f"--config.{override}: sampling reads only the section sample of the config")
    if arguments.batch < 1:
        raise ValueError(f"--batch is {arguments.batch}; it must be at least 1")
    model = pipeline.load(arguments.checkpoint, arguments.step, overrides=overrides, trust_code=arguments.trust_code)
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
    defaults = model.config["sample"]
    for i in range(arguments.batch):
        folder = write_sample(
            arguments.output_dir,
            result["image"][i],
            result["depth"][i],
            {
                "prompt": arguments.prompt,
                "mode": mode,
                "seed": arguments.seed,
                "sample": i,
                "num_steps": arguments.steps or defaults["steps"],
                "cfg_scale": model.guidance_of(mode, arguments.guidance),
                "checkpoint_step": model.step,
            },
            pointcloud=mode in ("joint", "i2d"),
            fov_deg=arguments.fov_deg,
            edge_rtol=arguments.edge_rtol,
        )
        print(folder)
