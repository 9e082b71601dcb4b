"""Rematerialization presets: which activations a block keeps for its backward pass.

none           all are kept: fastest, most memory
dots           products with weights are kept; attention, norms and activations are computed again
attention_mlp  the results of attention and of the output projections are kept, two arrays of the model's width per
               token and block; norms, q, k, v and the MLP's hidden products are computed again
offload        the same arrays, kept in the host's memory
full           only the block's input is kept; its whole forward pass runs again
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from mf_jax.models import attention
from mf_jax.models.layers import STATISTICS

# By memory, the most first; by what is computed again, the least first, where `offload` moves arrays besides.
PRESETS = ("none", "dots", "attention_mlp", "offload", "full")
_PRODUCT = "product"
_PROJECTED = "projected"
_NAMES = (attention.SAVED, _PROJECTED, STATISTICS)


def product(x: Any) -> Any:
    """Names the result of a product with weights inside a block, so that a preset can keep it."""
    return checkpoint_name(x, _PRODUCT)


def projected(x: Any) -> Any:
    """Names the result of an output projection, so that a preset can keep it."""
    return checkpoint_name(x, _PROJECTED)


def check(preset: str, platform: str = "") -> None:
    """Checks a preset, and that the platform supports it, if one is given.

    Raises:
      ValueError: an unknown or unsupported preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"model.remat is {preset!r}; it must be one of {', '.join(PRESETS)}")
    if preset == "offload" and platform == "cpu":
        raise ValueError("model.remat is 'offload'; the memory of a CPU is the host's already, take 'attention_mlp'")


def rematerialised(block: type[nn.Module], preset: str) -> type[nn.Module]:
    """The block class with a preset applied, for nn.scan."""
    policies = jax.checkpoint_policies
    if preset == "none":
        return block
    if preset == "dots":
        policy = policies.save_only_these_names(_PRODUCT, *_NAMES)
    elif preset == "attention_mlp":
        policy = policies.save_only_these_names(*_NAMES)
    elif preset == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(_NAMES),
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = policies.nothing_saveable
    return nn.remat(block, prevent_cse=False, policy=policy)
