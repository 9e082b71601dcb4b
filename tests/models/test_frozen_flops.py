"""FLOPs of the frozen networks against counts by hand, from the published parameter counts and from XLA."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from mf_jax.config.loading import load
from mf_jax.joint_model import build_model
from mf_jax.modalities import flux2_latent
from mf_jax.models import autoencoder_flops
from mf_jax.models.autoencoder import AutoencoderConfig, Decoder, Encoder
from mf_jax.models.text import qwen3 as qwen3_module
from mf_jax.models.text import umt5 as umt5_module
from mf_jax.models.text.encoders import Qwen3Text, UMT5Text
from mf_jax.models.text.qwen3 import Qwen3, Qwen3Config
from mf_jax.models.text.umt5 import UMT5Config, UMT5Encoder


def counted(module, *arguments):
    """XLA's count of a forward pass before optimisation."""
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *arguments))
    return jax.jit(module.apply).lower(params, *arguments).cost_analysis()["flops"]


def text_inputs(tokens):
    return jax.ShapeDtypeStruct((1, tokens), jnp.int32), jax.ShapeDtypeStruct((1, tokens), bool)


def test_qwen3_8b_by_hand():
    """27 layers of 32 heads and 8 key/value heads of 128 channels, width 4096, MLP 12288; 512 tokens."""
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288
    by_hand = 27 * 2 * (512 * layer + 2 * 512 * 512 * 4096)
    assert Qwen3Text(checkpoint="nowhere").flops().encode == by_hand
    assert 36 * layer == pytest.approx(6.95e9, rel=1e-3)  # the published count without embeddings, of all 36 layers


def test_umt5_xxl_by_hand():
    """24 layers of width 4096, MLP 10240; 256 tokens."""
    layer = 4 * 4096 * 4096 + 3 * 4096 * 10240
    by_hand = 24 * 2 * (256 * layer + 2 * 256 * 256 * 4096)
    assert UMT5Text(checkpoint="nowhere", max_length=256).flops().encode == by_hand


def test_qwen3_against_xla():
    """One layer, as XLA counts a loop's body once."""
    config = Qwen3Config(1000, 512, 1536, 2, 8, 2, 64, 1e6)
    expected = qwen3_module.forward_flops(config, 1, 256)
    assert counted(Qwen3(config, (1,)), *text_inputs(256)) == pytest.approx(expected, rel=0.02)


def test_umt5_against_xla():
    config = UMT5Config(1000, 512, 1280, 64, 1, 8, 32, 128)
    expected = umt5_module.forward_flops(config, 256)
    assert counted(UMT5Encoder(config), *text_inputs(256)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sizes", [{}, dict(channels=64, multipliers=(1, 2, 1), blocks=1, latent=4)])
def test_autoencoder_against_xla(sizes):
    """The published sizes at 256x256, and others at an oblong resolution. XLA leaves out the taps on the border."""
    config = AutoencoderConfig(**sizes)
    H, W = (256, 256) if not sizes else (128, 192)
    encoder, decoder = autoencoder_flops.autoencoder(config, (H, W))
    image = jax.ShapeDtypeStruct((1, H, W, 3), jnp.float32)
    latent = jax.ShapeDtypeStruct((1, H // config.reduction, W // config.reduction, config.packed), jnp.float32)
    assert counted(Encoder(config), image) == pytest.approx(encoder, rel=0.03)
    assert counted(Decoder(config), latent) == pytest.approx(decoder, rel=0.03)


def test_sizes_come_from_the_files_at_hand(goldens):
    qwen3 = Qwen3Text(checkpoint=str(goldens / "qwen3"), max_length=16, layers=(1, 2)).flops()
    config = Qwen3Config.from_json(goldens / "qwen3" / "config.json")
    assert qwen3.encode == qwen3_module.forward_flops(config, 2, 16) and qwen3.source.endswith("qwen3/config.json")
    codec = flux2_latent.Codec(checkpoint=str(goldens / "flux2_vae"), channels=16, reduction=8)
    found = codec.network(jnp.float32).flops((32, 48))
    golden = AutoencoderConfig(channels=32, multipliers=(1, 2, 1), blocks=1, latent=4)
    assert (found.encode, found.decode) == autoencoder_flops.autoencoder(golden, (32, 48))


def test_unknown_sizes_are_not_guessed():
    with pytest.raises(ValueError, match=r"no config\.json in text\.checkpoint 'nowhere'"):
        UMT5Text(checkpoint="nowhere", width=512).flops()
    codec = flux2_latent.Codec(checkpoint="nowhere", channels=64)
    with pytest.raises(ValueError, match="no checkpoint 'nowhere'"):
        codec.network(jnp.float32).flops((256, 256))


def test_published_configs_have_known_costs():
    """The encoders that the shipped configs name, where their files are not at hand: UMT5-XXL, FLUX.2's autoencoder."""
    model = build_model(load("configs/mofo_370m.py"))
    text, image = (model.networks[name].flops(model.resolution) for name in ("text", "image"))
    assert text.encode == umt5_module.forward_flops(umt5_module.UMT5_XXL, 256) and "UMT5-XXL" in text.source
    assert (image.encode, image.decode) == autoencoder_flops.autoencoder(AutoencoderConfig(), (256, 256))
