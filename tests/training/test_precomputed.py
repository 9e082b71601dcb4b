"""Training on latents and text features from files: the losses of the step that encodes, without its networks.

Legend: h w latents, C channels of a latent, D text channels.
"""

import copy
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn
from PIL import Image

from mf_jax import train
from mf_jax.config.loading import resolve
from mf_jax.data.loader import build_train_loader
from mf_jax.joint_model import build_model
from mf_jax.models import frozen
from mf_jax.training import train_step

FIELDS = ("image_latent", "text_features")


def encoded(model, params, name, batch):
    fields = jax.jit(model.networks[name].encode)(params[name], {key: value[None] for key, value in batch.items()})
    return {key: np.asarray(value[0]) for key, value in fields.items()}


@pytest.fixture(scope="module")
def prepared(frames, make_frozen_config, tmp_path_factory):
    """A copy of the frames with NAME.latent.npy and NAME.text.npy beside them, and empty.safetensors."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(frames, folder, dirs_exist_ok=True)
    model = build_model(resolve(make_frozen_config(folder)))
    params = frozen.load(model.networks)
    tokenizer = model.text.tokenizer()

    def text(caption):
        fields = tokenizer.fields(caption)
        return encoded(model, params, "text", fields)["text_features"][: fields["text_mask"].sum()]

    for image in folder.glob("*.png"):
        latent = encoded(model, params, "image", {"image": np.asarray(Image.open(image))})["image_latent"]
        np.save(image.with_suffix(".latent.npy"), latent)
        np.save(image.with_suffix(".text.npy"), text(image.with_suffix(".txt").read_text()))
    safetensors.numpy.save_file({"text_features": text("")}, folder / "empty.safetensors")
    return folder


@pytest.fixture
def config(prepared, make_frozen_config):
    """The raw config on the prepared folder that still encodes; `using` makes it read files."""
    raw = make_frozen_config(prepared)
    raw["data"]["source"] |= dict(
        depth="*.npy", image_latent="*.latent.npy", text_features="*.text.npy", splits={"train": ":", "test": ":"}
    )
    return raw


def using(raw, *fields):
    """The config that reads these fields, and names no checkpoint of the networks that make them."""
    raw["data"]["precomputed"] = fields
    if "image_latent" in fields:
        raw["modalities"]["image"]["checkpoint"] = ""
        raw["data"]["source"]["image"] = "*.latent.npy"
    if "text_features" in fields:
        raw["text"] |= dict(checkpoint="", empty_features=f"{raw['data']['source']['root']}/empty.safetensors")
    return raw


def losses(raw, workdir):
    train.train(resolve(raw, ["train.steps=4"]), workdir)
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(entry["loss"], entry["grad_norm"]) for entry in entries]


@pytest.mark.parametrize("fields", [FIELDS, ("image_latent",), ("text_features",)], ids=["both", "image", "text"])
def test_the_losses_are_those_of_the_step_that_encodes(config, make_frozen_config, frames, fields, tmp_path):
    expected = losses(make_frozen_config(frames), tmp_path / "encodes")
    assert len(expected) == 4
    np.testing.assert_allclose(losses(using(config, *fields), tmp_path / "reads"), expected, rtol=1e-6)


def loss_and_norms(raw, randomised):
    """Of the first batch, with parameters of which none is zero, so that the text matters; a third of it is dropped."""
    config = resolve(raw)
    model = build_model(config).with_precomputed(config.data.precomputed)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    networks = frozen.load(model.networks)
    networks[frozen.EMPTY_PROMPT] = model.empty_prompt.features(networks.get("text"), mesh)
    params = randomised(nn.unbox(jax.eval_shape(model.init, jax.random.key(0))), seed=2)
    batch = next(loader_of(raw, tokenizer=model.text.tokenizer() if "text" in model.networks else None))
    compute = jax.jit(functools.partial(train_step.loss_and_gradient, model, config.objective, 7, 1))
    loss, gradient, _ = compute(networks, params, {}, batch, jnp.int32(3))
    return float(loss), np.array([float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradient)])


def test_loss_and_gradient_of_a_model_that_reads_its_text(config, make_frozen_config, frames, randomised):
    expected = loss_and_norms(make_frozen_config(frames), randomised)
    loss, norms = loss_and_norms(using(copy.deepcopy(config), *FIELDS), randomised)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(norms, expected[1], rtol=1e-5)
    silent = using(config, *FIELDS)
    silent["objective"]["caption_dropout"] = 1.0
    assert abs(loss_and_norms(silent, randomised)[0] / loss - 1) > 1e-4  # the captions matter


def loader_of(raw, **changes):
    config = resolve(raw)
    model = build_model(config).with_precomputed(config.data.precomputed)
    arguments = dict(batch_size=16, tokenizer=None, seed=0, precomputed=model.precomputed)
    return build_train_loader(config.data, **arguments | changes)


def test_the_batch_has_the_files_padded(config, prepared):
    """In the order of the captions: row by row what is in the files, zeros after it, and the mask says where."""
    batch = next(loader_of(using(config, *FIELDS)))
    assert set(batch) == {"image_latent", "text_features", "text_mask", "depth", "depth_valid"}
    assert batch["image_latent"].shape == (16, 2, 2, 16) and batch["image_latent"].dtype == np.float32
    assert batch["text_features"].shape == (16, 24, 32) and batch["text_mask"].shape == (16, 24)
    stored = {p.name: np.load(p) for p in prepared.glob("*.npy")}
    for latent, features, mask in zip(*(batch[name] for name in (*FIELDS, "text_mask")), strict=True):
        (name,) = [n for n, value in stored.items() if n.endswith("latent.npy") and np.array_equal(value, latent)]
        expected = stored[name.replace("latent", "text")]
        np.testing.assert_array_equal(features[: len(expected)], expected)
        assert (features[len(expected) :] == 0).all()
        np.testing.assert_array_equal(mask, np.arange(24) < len(expected))


def test_files_of_half_precision(config, tmp_path):
    """bfloat16, which numpy writes as raw bytes, and float16; workers make the same batches."""
    raw = using(config, *FIELDS)
    shutil.copytree(raw["data"]["source"]["root"], tmp_path, dirs_exist_ok=True)
    raw["data"]["source"]["root"] = str(tmp_path)
    whole = next(loader_of(raw))
    for path in tmp_path.glob("*.latent.npy"):
        np.save(path, np.load(path).astype(ml_dtypes.bfloat16))
    for path in tmp_path.glob("*.text.npy"):
        np.save(path, np.load(path).astype(np.float16))
    half = next(loader_of(raw))
    np.testing.assert_array_equal(half["image_latent"], whole["image_latent"].astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(half["text_features"], whole["text_features"].astype(np.float16))
    raw["data"]["workers"] = 1
    raw["model"]["dtype"] = "bfloat16"
    loader = loader_of(raw)
    made = next(loader)
    loader.close()
    assert made["text_features"].dtype == jnp.bfloat16 and made["image_latent"].dtype == np.float32
    np.testing.assert_array_equal(made["text_features"], half["text_features"].astype(ml_dtypes.bfloat16))


def test_sampling_still_encodes(config, tmp_path, goldens, text_encoder):
    """A run on precomputed fields whose config names the checkpoints can be sampled from, image to depth too."""
    import mf_jax

    raw = using(config, *FIELDS)
    raw["modalities"]["image"]["checkpoint"], raw["text"]["checkpoint"] = str(goldens / "flux2_vae"), str(text_encoder)
    train.train(resolve(raw, ["train.steps=1"]), tmp_path)
    out = mf_jax.load(tmp_path).sample("i2d", "abc", steps=1, image=np.zeros((16, 16, 3), np.uint8))
    assert out["depth"].shape == (1, 16, 16)


def edited(raw, section, **changes):
    part = raw
    for key in section.split("."):
        part = part.setdefault(key, {})
    part |= changes


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("data", dict(precomputed=("latent",)), r"data\.precomputed names 'latent'; did you mean 'image_latent'"),
        ("data", dict(precomputed=("text_features",) * 2), "name each field once"),
        ("data.augment", dict(flip=True), r"data\.augment has flip=True, which latents from files cannot follow"),
        ("data.augment", dict(crop=0.5, colour=0.1), r"has crop=0\.5, colour=0\.1, which latents"),
        ("data.source", dict(text_features=None), r"names 'text_features'; set data\.source\.text_features"),
        ("data.source", dict(text_features="*.none.npy"), r"no file in .* matches text_features='\*\.none\.npy'"),
        ("data", dict(source=dict(kind="procedural", train=3)), "this source has no such files"),
        ("text", dict(empty_features=""), r"set text\.empty_features to a safetensors file"),
        ("text", dict(empty_features="nowhere"), "no file or directory nowhere"),
        ("text", dict(max_length=4), r"text_features of .* reads \(4, 32\), 4 rows or fewer"),
        ("text", dict(kind="byte"), r"names 'text_features'; what the frozen networks .* make is: image_latent"),
        ("modalities.image", dict(channels=8), r"image_latent of .* has shape \(2, 2, 16\); .* reads \(2, 2, 8\)"),
    ],
)
def test_mistakes(config, section, changes, message, tmp_path):
    raw = using(config, *FIELDS)
    if changes.get("kind") == "byte":
        raw["text"] = {}
    edited(raw, section, **changes)
    with pytest.raises(ValueError, match=message):
        train.train(resolve(raw), tmp_path / "run")


def test_without_dropped_captions_nothing_is_needed_of_the_empty_prompt(config, tmp_path):
    raw = using(config, *FIELDS)
    raw["text"]["empty_features"], raw["objective"]["caption_dropout"] = "", 0.0
    assert train.train(resolve(raw, ["train.steps=1"]), tmp_path) == 1


@pytest.mark.parametrize("name", ["7.text.npy", "7.latent.npy"])
def test_a_file_that_is_not_what_it_should_be(config, name, tmp_path):
    raw = using(config, *FIELDS)
    shutil.copytree(raw["data"]["source"]["root"], tmp_path, dirs_exist_ok=True)
    raw["data"]["source"]["root"] = str(tmp_path)
    for value, message in ((np.zeros((3, 3), np.int32), "holds int32; it must be float32"), (np.zeros(3), "float64")):
        np.save(tmp_path / name, value)
        with pytest.raises(ValueError, match=message):
            next(loader_of(raw))
    np.save(tmp_path / name, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"has shape \(3,\); it must be"):
        next(loader_of(raw))
