"""The tiny FLUX.2 models whose numbers the official inference code produced."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mf_jax.models import flux2_weights, weight_table
from mf_jax.models.flux2 import Flux2
from mf_jax.models.stream import Stream


@dataclasses.dataclass(frozen=True)
class Official:
    """Attributes:
    model: with the sizes of the folder's config. params: its parameters, from the folder's weight file.
    tensors: of that file, by name.
    grids: (rows, columns) of tokens by modality.
    """

    folder: pathlib.Path
    model: Flux2
    params: Any
    tensors: dict[str, np.ndarray]
    grids: dict[str, tuple[int, int]]

    def arrays(self, file: str) -> dict[str, np.ndarray]:
        """Contents of one of the folder's .npz files."""
        return dict(np.load(self.folder / f"{file}.npz"))


@pytest.fixture(scope="session")
def official(goldens):
    """A function folder -> Official."""

    @functools.cache
    def load(name):
        config = json.loads((goldens / name / "config.json").read_text())
        sizes, grid = config["dit"], config["grid"]
        model = Flux2(
            streams=(
                Stream("image", sizes["in_channels"], position=0, decoder_blocks=0),
                Stream("depth", sizes["depth_channels"], position=1, decoder_blocks=sizes["depth_decoder_num_layers"]),
            ),
            width=sizes["hidden_size"],
            heads=sizes["num_heads"],
            double_blocks=sizes["depth_double"],
            single_blocks=sizes["depth_single"],
            axes=tuple(sizes["axes_dim"]),
            mlp_ratio=sizes["mlp_ratio"],
            theta=sizes["theta"],
            cross_mixing=sizes["cross_stream_timestep_mixing"],
            guidance_embedding=sizes["use_guidance_embed"],
        )
        tensors = load_file(goldens / name / "model.safetensors")
        params = weight_table.to_ours(tensors, flux2_weights.table(model))
        grids = dict.fromkeys(("image", "depth"), (grid["img_height"], grid["img_width"]))
        return Official(goldens / name, model, params, tensors, grids)

    return load
