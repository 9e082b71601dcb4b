"""A release in miniature: the golden transformer and autoencoder, and a tiny Qwen3 of random weights.

Legend: B batch, N tokens, C channels per token.
"""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from mf_jax.models import weight_table
from mf_jax.models.text import qwen3_weights
from mf_jax.models.text.qwen3 import Qwen3, Qwen3Config

CHAT = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"]


def _text_encoder(folder, randomised):
    """3 layers of width 16: 48 features, what the golden transformer reads."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(CHAT)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {
        "vocab_size": 264, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 1e6,
    }  # fmt: skip
    described = sizes | {"model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(described))
    encoder = Qwen3(Qwen3Config(**sizes), (1, 2, 3))
    ids = jnp.zeros((1, 4), jnp.int32)
    params = randomised(nn.unbox(jax.eval_shape(encoder.init, jax.random.key(0), ids, ids))["params"])
    tensors = {
        k: np.ascontiguousarray(v) for k, v in weight_table.to_theirs(params, qwen3_weights.table(encoder)).items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@pytest.fixture(scope="session")
def release(tmp_path_factory, goldens, randomised):
    """The folder: autoencoder/, text/, official/ (all tensors), flux2.safetensors (text and image alone)."""
    folder = tmp_path_factory.mktemp("release")
    for name in ("autoencoder", "text", "official"):
        (folder / name).mkdir()
    for file in ("ae_encoder.safetensors", "ae_decoder.safetensors"):
        shutil.copy(goldens / "flux2_vae" / file, folder / "autoencoder")
    _text_encoder(folder / "text", randomised)
    shutil.copy(goldens / "dit_v1" / "model.safetensors", folder / "official")
    whole = safetensors.numpy.load_file(folder / "official" / "model.safetensors")
    image_only = {name.removeprefix("dit."): value for name, value in whole.items() if "depth" not in name}
    safetensors.numpy.save_file(image_only, folder / "flux2.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_release_config(release):
    """A function that makes what `release_config` is; for fixtures that outlive a test."""
    return lambda: _config(release)


@pytest.fixture
def release_config(release):
    """What a config file returns for the golden transformer dit_v1: a fresh dict."""
    return _config(release)


def _config(release):
    noise = {"image": "logit_normal", "depth": "plateau_logit_normal"}
    shared = {name: dict(position=i, noise=dict(kind=noise[name], mu=1.1)) for i, name in enumerate(noise)}
    autoencoder = dict(checkpoint=str(release / "autoencoder"), channels=16, reduction=8)
    return dict(
        data=dict(
            source=dict(kind="procedural", train=16, validation=4, test=2),
            resolution=(32, 48),
            sparsify=dict(kind="random", fraction=0.3),
            workers=0,
        ),
        modalities=dict(
            image=dict(kind="flux2_latent", prediction="v", **autoencoder, **shared["image"]),
            depth=dict(kind="depth", prediction="x", patch=8, decoder_blocks=2, **shared["depth"]),
        ),
        modes=dict(
            joint=dict(probability=0.6),
            i2d=dict(probability=0.2, clean=("image",)),
            d2i=dict(probability=0.2, clean=("depth",)),
        ),
        text=dict(kind="qwen3", checkpoint=str(release / "text"), layers=(1, 2, 3), width=48, max_length=128),
        model=dict(
            kind="flux2", width=64, heads=4, double_blocks=2, single_blocks=3, axes=(4, 4, 4, 4), cross_mixing=False
        ),
        train=dict(steps=2, batch=2, log_every=1),
        optimizer=dict(learning_rate=1e-2, warmup=0),
        checkpoint=dict(every=1),
        sample=dict(steps=2, guidance=2.0),
    )
