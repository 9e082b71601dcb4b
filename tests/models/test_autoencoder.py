"""The FLUX.2 autoencoder against numbers of the official inference code, and its weights in both published layouts.

Legend: B batch, H W pixels, h w latents after packing, C channels.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mf_jax.models import autoencoder_weights as published
from mf_jax.models import weight_table
from mf_jax.models.autoencoder import (
    AutoencoderConfig,
    Decoder,
    Encoder,
    ResidualBlock,
    from_uint8,
    pack,
    to_uint8,
    unpack,
)
from mf_jax.parallel import sharding
from mf_jax.storage.safetensors_files import TensorFiles

CONFIG = AutoencoderConfig(channels=32, multipliers=(1, 2, 1), blocks=1, latent=4)
NETWORKS = {"encoder": Encoder, "decoder": Decoder}
PARTS = tuple(NETWORKS)


@pytest.fixture(scope="module")
def golden(goldens):
    return dict(np.load(goldens / "flux2_vae" / "vae.npz"))


@pytest.fixture(scope="module")
def split(goldens):
    """Tensors of the two split files, by part."""
    return {part: load_file(goldens / "flux2_vae" / f"ae_{part}.safetensors") for part in PARTS}


@pytest.fixture(scope="module")
def combined(goldens, split):
    """The same tensors under the names of the combined file."""
    names = json.loads((goldens / "flux2_vae" / "name_map_original_to_official.json").read_text())
    result = {}
    for name, place in names.items():
        file, there = place.split(":")
        result[name] = split["encoder" if "ae_encoder" in file else "decoder"][there]
    return result


@pytest.fixture(scope="module")
def params(split):
    return {part: weight_table.to_ours(split[part], published.table(CONFIG, part, combined=False)) for part in PARTS}


@pytest.fixture(scope="module")
def encode(params):
    """A function image -> (latents, moments)."""

    @jax.jit
    def run(image):
        latents, state = Encoder(CONFIG).apply(
            {"params": params["encoder"]}, image, capture_intermediates=lambda module, _: module.name == "quant_conv"
        )
        return latents, state["intermediates"]["quant_conv"]["__call__"][0]

    return run


@pytest.fixture(scope="module")
def decode(params):
    return jax.jit(lambda latents: Decoder(CONFIG).apply({"params": params["decoder"]}, latents))


def shapes(tensors):
    return {name: value.shape for name, value in tensors.items()}


def to_nchw(x_BHWC):
    return x_BHWC.transpose(0, 3, 1, 2)


def test_encoder(encode, golden):
    latents, moments = encode(golden["image"])
    assert latents.dtype == jnp.float32
    np.testing.assert_allclose(to_nchw(moments), golden["moments_nchw"], rtol=0, atol=3e-5)
    np.testing.assert_allclose(latents, golden["latents"], rtol=0, atol=6e-5)


def test_packing(golden):
    """The packed latents are the mean half of the moments, only moved."""
    mean_BHWC = golden["moments_nchw"][:, : CONFIG.latent].transpose(0, 2, 3, 1)
    packed = pack(mean_BHWC)
    np.testing.assert_allclose(to_nchw(packed), golden["packed_unnormalized_nchw"], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(unpack(packed), mean_BHWC)


def test_nearly_uniform_image(encode, golden):
    """Contrast so low that the epsilon of the group norms matters; the golden numbers are 2e-4 from float64's."""
    latents, _ = encode(golden["image_lowcontrast"])
    np.testing.assert_allclose(latents, golden["latents_lowcontrast"], rtol=0, atol=5e-4)


def test_group_norm_of_small_differences():
    """Deviations of a thousandth of the mean keep their size, as in float64."""
    x_BHWC = (10.0 + 0.01 * np.random.default_rng(0).standard_normal((2, 4, 4, 64))).astype(np.float32)
    block = ResidualBlock(64, jnp.float32)
    parameters = block.init(jax.random.key(0), x_BHWC)
    _, state = block.apply(parameters, x_BHWC, capture_intermediates=lambda module, _: module.name == "norm1")
    groups = x_BHWC.astype(np.float64).reshape(2, 16, 32, 2)
    deviation = groups - groups.mean(axis=(1, 3), keepdims=True)
    wanted = deviation / np.sqrt((deviation**2).mean(axis=(1, 3), keepdims=True) + 1e-6)
    found = state["intermediates"]["norm1"]["__call__"][0]
    np.testing.assert_allclose(found, wanted.reshape(x_BHWC.shape), rtol=0, atol=2e-3)


def test_decoder(decode, golden):
    decoded = decode(golden["latents"])
    assert decoded.dtype == jnp.float32
    np.testing.assert_allclose(decoded, golden["decoded"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(decode(golden["random_latents"]), golden["decoded_from_random"], rtol=0, atol=2e-5)


def test_statistics(params, golden):
    for part in PARTS:
        np.testing.assert_array_equal(params[part]["bn"]["mean"], golden["bn_mean"])
        np.testing.assert_array_equal(params[part]["bn"]["var"], golden["bn_var"])


def test_bytes(golden):
    image = from_uint8(golden["image_u8"])
    assert image.dtype == jnp.float32
    np.testing.assert_allclose(image, golden["image"], rtol=0, atol=2e-7)
    written = to_uint8(golden["decoded"])
    assert written.dtype == jnp.uint8
    np.testing.assert_array_equal(written, golden["decoded_u8"])


def test_bytes_are_truncated_and_clipped():
    values = jnp.array([-3.0, -1.0, 254.9 / 127.5 - 1, 1.0, 1.5])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 254, 255, 255])


def test_bfloat16(params, golden):
    """Float32 outputs, near the float32 network's: by 1 % of their spread on average, statistics not rounded."""
    applies = {part: jax.jit(network(CONFIG, jnp.bfloat16).apply) for part, network in NETWORKS.items()}
    latents = applies["encoder"]({"params": params["encoder"]}, golden["image"])
    decoded = applies["decoder"]({"params": params["decoder"]}, golden["latents"])
    for found, wanted in ((latents, golden["latents"]), (decoded, golden["decoded"])):
        assert found.dtype == jnp.float32
        difference = np.abs(found - wanted).mean() / wanted.std()
        assert 1e-4 < difference < 0.03


def test_the_published_network():
    """Reduction, packed channels and the 84 046 115 parameters that a file of 336 MB holds."""
    config = AutoencoderConfig()
    assert (config.reduction, config.packed, config.widths) == (16, 128, (128, 256, 512, 512))
    inputs = {"encoder": (1, 32, 48, 3), "decoder": (1, 2, 3, 128)}
    outputs = {"encoder": (1, 2, 3, 128), "decoder": (1, 32, 48, 3)}
    total = 0
    for part, network in NETWORKS.items():
        x = jax.ShapeDtypeStruct(inputs[part], jnp.float32)
        out, boxed = jax.eval_shape(network(config).init_with_output, jax.random.key(0), x)
        assert out.shape == outputs[part]
        total += sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(boxed))) - 2 * config.packed
    assert total == 84_046_115


@pytest.mark.parametrize("part", PARTS)
def test_large_kernels_are_split_over_fsdp(part):
    """By a dimension that 64 devices divide."""
    config = AutoencoderConfig()
    given = jnp.zeros((1, 16, 16, 3)) if part == "encoder" else jnp.zeros((1, 1, 1, 128))
    boxed = jax.eval_shape(NETWORKS[part](config).init, jax.random.key(0), given)["params"]
    layout = sharding.shardings(boxed, sharding.make_mesh(sharding.MeshConfig()))
    split = total = 0
    for leaf, place in zip(jax.tree.leaves(nn.unbox(boxed)), jax.tree.leaves(layout), strict=True):
        total += leaf.size
        for size, axes in zip(leaf.shape, place.spec, strict=False):
            if axes and "fsdp" in axes:
                assert size % 64 == 0
                split += leaf.size
    assert split > 0.999 * total


@pytest.mark.parametrize("part", PARTS)
def test_read_where_it_belongs(goldens, params, part):
    """Config and layout from the file alone, arrays made on their devices."""
    files = TensorFiles(goldens / "flux2_vae" / f"ae_{part}.safetensors")
    found = published.inspect({name: files.shape(name) for name in files})
    assert found == published.Published(CONFIG, (part,), combined=False)
    given = jnp.zeros((1, 8, 8, 3)) if part == "encoder" else jnp.zeros((1, 1, 1, 16))
    boxed = jax.eval_shape(NETWORKS[part](found.config).init, jax.random.key(0), given)["params"]
    layout = sharding.shardings(boxed, sharding.make_mesh(sharding.MeshConfig()))
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), nn.unbox(boxed), layout
    )
    jax.tree.map(np.testing.assert_array_equal, weight_table.read(files, abstract, found.table(part)), params[part])
    files.close()


def test_combined_file(combined, params):
    found = published.inspect(shapes(combined))
    assert found == published.Published(CONFIG, PARTS, combined=True)
    for part in PARTS:
        jax.tree.map(np.testing.assert_array_equal, weight_table.to_ours(combined, found.table(part)), params[part])


def test_export(params, split, combined):
    """Every tensor, bit by bit, under its name; the counter of batches is an int64 scalar, its value is not kept."""
    files = published.to_files(params, CONFIG, combined=False)
    assert set(files) == {"ae_encoder.safetensors", "ae_decoder.safetensors"}
    pairs = [(files[f"ae_{part}.safetensors"], split[part]) for part in PARTS]
    whole = published.to_files(params, CONFIG, combined=True)
    assert set(whole) == {"ae.safetensors"}
    for written, wanted in [*pairs, (whole["ae.safetensors"], combined)]:
        counter = written.pop("bn.num_batches_tracked")
        assert counter.dtype == np.int64 and counter.shape == ()
        assert set(written) == set(wanted) - {"bn.num_batches_tracked"}
        for name, value in written.items():
            assert value.dtype == wanted[name].dtype
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_one_part_can_be_exported_alone(params):
    assert set(published.to_files({"encoder": params["encoder"]}, CONFIG, combined=False)) == {"ae_encoder.safetensors"}
    with pytest.raises(ValueError, match="the combined file holds encoder and decoder; given: encoder"):
        published.to_files({"encoder": params["encoder"]}, CONFIG, combined=True)


def test_combined_file_needs_one_set_of_statistics(params):
    other = params["decoder"] | {"bn": params["decoder"]["bn"] | {"var": np.ones(16, np.float32)}}
    with pytest.raises(ValueError, match=r"bn\.running_var of encoder and decoder differ"):
        published.to_files(params | {"decoder": other}, CONFIG, combined=True)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "config",
    [AutoencoderConfig(), AutoencoderConfig(32, (2, 3), 3, 5), AutoencoderConfig(64, (1,), 1, 4)],
    ids=["published", "odd", "one level"],
)
def test_config_from_shapes(part, config):
    """Also where multipliers, blocks and latent channels are not the published ones."""
    given = (1, 16, 16, 3) if part == "encoder" else (1, 1, 1, config.packed)
    x = jax.ShapeDtypeStruct(given, jnp.float32)
    boxed = jax.eval_shape(NETWORKS[part](config).init, jax.random.key(0), x)["params"]
    ours = shapes(weight_table.flatten(nn.unbox(boxed)))
    table = published.table(config, part, combined=False)
    assert {entry.ours for entry in table} == set(ours)
    assert published.inspect(weight_table.shapes_there(ours, table)).config == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mid.attn_1.q.weight": (32, 32)}, r"mid\.attn_1\.q\.weight has shape \(32, 32\).* \(32, 32, 1, 1\)"),
        ({"down.1.block.0.norm1.bias": None}, r"tensor down\.1\.block\.0\.norm1\.bias .*is missing"),
        ({"quant_conv.weight": None}, r"tensor quant_conv\.weight .*is missing"),
        ({"down.1.attn.0.q.weight": (64, 64, 1, 1)}, r"tensor down\.1\.attn\.0\.q\.weight is not part"),
        ({"down.2.block.0.conv1.weight": (40, 64, 3, 3)}, r"levels have \[32, 64, 40\] channels.*conv_in's 32"),
        ({"conv_in.weight": (16, 3, 3, 3)}, r"the encoder .*autoencoder\.channels is 16; .*multiple of 32"),
    ],
)
def test_files_that_do_not_fit(split, change, message):
    given = shapes(split["encoder"]) | change
    with pytest.raises(ValueError, match=message):
        published.inspect({name: shape for name, shape in given.items() if shape is not None})


def test_files_of_something_else(split):
    with pytest.raises(ValueError, match=r"no tensor of the FLUX\.2 autoencoder.*its first are: dit\.img_in\.weight"):
        published.inspect({"dit.img_in.weight": (64, 16)})
    with pytest.raises(ValueError, match="the file holds the autoencoder's encoder, not its decoder"):
        published.inspect(shapes(split["encoder"])).table("decoder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(channels=48), r"autoencoder\.channels is 48; it must be a multiple of 32"),
        (dict(multipliers=()), r"multipliers is \(\)"),
        (dict(multipliers=(1, 0)), r"multipliers is \(1, 0\)"),
        (dict(blocks=0), r"autoencoder\.blocks is 0"),
        (dict(latent=-1), r"autoencoder\.latent is -1"),
    ],
)
def test_impossible_configs(options, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**options)


def test_inputs_of_a_wrong_size(encode, decode):
    for shape in ((1, 32, 44, 3), (1, 36, 48, 3), (1, 32, 48, 4)):
        with pytest.raises(ValueError, match="takes 3 channels and multiples of 8 pixels"):
            encode(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="the latents have 4 channels; the autoencoder's have 16"):
        decode(np.zeros((1, 8, 8, 4), np.float32))
