"""Training with packed captions and a text length that follows the batch: the losses of one caption per row.

Legend: B batch, L text ids.
"""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from mf_jax import train
from mf_jax.checkpoint.manager import Checkpoints, digest
from mf_jax.config.loading import resolve
from mf_jax.data.packing import TextLayout
from mf_jax.joint_model import build_model
from mf_jax.models import frozen
from mf_jax.models.text.empty_prompt import EmptyPrompt, in_place_of
from mf_jax.parallel import sharding
from mf_jax.training import compilation, train_step
from mf_jax.training.config import ObjectiveConfig

B, L = 8, 24
OBJECTIVE = ObjectiveConfig(caption_dropout=0.3)
PLAIN = ObjectiveConfig(caption_dropout=0.0)


@pytest.fixture(scope="module")
def config(frames, make_frozen_config):
    """Text from the frozen encoder, images as pixels: the autoencoder would take most of the time."""
    raw = make_frozen_config(frames)
    raw["modalities"]["image"] = dict(
        kind="image", position=0, patch=8, prediction="x", noise=dict(kind="logit_normal")
    )
    return raw


@pytest.fixture(scope="module")
def model(config):
    return build_model(resolve(config))


@pytest.fixture(scope="module")
def networks(model):
    """Parameters of the frozen networks and the empty prompt, on one device."""
    params = frozen.load(model.networks)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    return params | {frozen.EMPTY_PROMPT: model.empty_prompt.features(params["text"], mesh)}


@pytest.fixture(scope="module")
def params(model, randomised):
    return randomised(nn.unbox(jax.eval_shape(model.init, jax.random.key(0))), seed=2)


@pytest.fixture(scope="module")
def batch(model, make_batch):
    """Images, depth, and captions of 0 to 13 letters."""
    batch = {name: value for name, value in make_batch(B).items() if name != "text_ids"}
    tokenizer = model.text.tokenizer()
    texts = [tokenizer.fields("abcdefghijklm"[:length]) for length in (3, 0, 13, 7, 1, 4, 9, 2)]
    return batch | {name: np.stack([fields[name] for fields in texts]) for name in texts[0]}


@pytest.fixture(scope="module")
def compute(model, networks, params):
    """(batch, objective, accumulate) -> loss and norm of each gradient leaf."""

    @functools.cache
    def jitted(objective, accumulate):
        return jax.jit(
            lambda networks, params, batch: train_step.loss_and_gradient(
                model, objective, 7, accumulate, networks, params, {}, batch, jnp.int32(3)
            )[:2]
        )

    def run(batch, objective=OBJECTIVE, accumulate=1):
        loss, gradient = jitted(objective, accumulate)(networks, params, batch)
        return float(loss), np.array([float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradient)])

    return run


def assert_same(a, b):
    assert a[0] == pytest.approx(b[0], rel=1e-5)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def expected(model, batch, compute):
    """The loss where the ids of dropped captions are replaced before they are encoded, one caption per row."""
    u_B = train_step._draw(model, 7, jnp.int32(3), B)["caption_u"]
    dropped_B = np.asarray(u_B) < OBJECTIVE.caption_dropout
    assert 1 <= dropped_B.sum() <= B - 2
    text = {name: np.where(dropped_B[:, None], null, batch[name]) for name, null in model.null_text.items()}
    return compute(batch | text, PLAIN)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_packing_changes_no_loss_and_no_gradient(batch, compute, expected, accumulate):
    """Also with captions dropped, which are replaced after encoding."""
    shape, packed = TextLayout((L,), True, B // accumulate, accumulate).arrange(batch)
    assert shape.rows < B // accumulate or accumulate == 4
    assert packed["text_ids"].shape == (shape.rows * accumulate, L)
    assert_same(compute(packed, accumulate=accumulate), expected)


def test_so_it_does_unpacked(batch, compute, expected):
    assert_same(compute(batch), expected)
    assert abs(compute(batch, PLAIN)[0] / expected[0] - 1) > 1e-4  # it matters which captions are dropped


@pytest.mark.parametrize("packed", [True, False])
def test_a_shorter_text_changes_no_loss_and_no_gradient(batch, compute, expected, packed):
    shape, short = TextLayout((8, 16, L), packed, B).arrange(batch)
    assert shape.length == 16 and short["text_mask"].shape == (B, 16)
    assert_same(compute(short), expected)


def test_padding_has_no_influence(batch, compute, expected):
    """Whatever the ids of padding are."""
    junk = batch | {"text_ids": np.where(batch["text_mask"], batch["text_ids"], 9)}
    assert_same(compute(junk), expected)


def test_an_encoder_that_the_transformer_sees_the_padding_of_is_not_packed(make_frozen_config, frames):
    raw = make_frozen_config(frames)
    raw["model"] = dict(
        kind="flux2", width=32, heads=2, double_blocks=1, single_blocks=1, axes=(4, 4, 4, 4), mlp_ratio=2.0
    )
    model = build_model(resolve(raw))
    assert model.text.pack and not model.packs_text and model.text_lengths == (L,)
    assert model.empty_prompt.tokens == L
    raw["text"]["lengths"] = (8,)
    with pytest.raises(ValueError, match=r"text\.lengths is \(8, 24\); this transformer attends to padding"):
        build_model(resolve(raw))


@pytest.fixture(scope="module")
def raw(config):
    """Batches of four frames: captions of many lengths, so that a run has several programs."""
    return config | {
        "train": config["train"] | dict(steps=5, batch=4),
        "text": config["text"] | dict(lengths=(16,)),
        "optimizer": dict(learning_rate=0.01, warmup=0),  # after two steps the text matters
    }


def digests(workdir, step):
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        from mf_jax.training import train_state

        config = resolve(checkpoints.config(step))
        state = vars(train_state.abstract(build_model(config), config))
        names = ("params", "ema", "opt_state")
        return {name: digest(checkpoints.restore({name: state[name]}, step)[name]) for name in names}
    finally:
        checkpoints.close()


def test_a_run_compiles_each_shape_once_and_goes_on_bitwise(raw, tmp_path, monkeypatch):
    shapes = []
    original = compilation.Programs.compile
    monkeypatch.setattr(
        compilation.Programs, "compile", lambda self, shape, given: shapes.append(shape) or original(self, shape, given)
    )
    assert train.train(resolve(raw), tmp_path / "whole") == 5
    assert 2 <= len(shapes) == len(set(shapes)) and {shape.length for shape in shapes} <= {16, 24}
    seconds = json.loads((tmp_path / "whole" / "goodput.json").read_text())["seconds"]
    assert seconds["compile"] > seconds["step"] / 10

    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    shutil.rmtree(part / "checkpoints" / "5")
    assert train.train(resolve(raw), part) == 5
    assert digests(part, 5) == digests(tmp_path / "whole", 5)


def losses(workdir):
    return np.array([json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()])


def test_a_run_has_the_losses_of_one_without_packing(raw, tmp_path, monkeypatch):
    rows = []
    original = compilation.Programs.compile
    monkeypatch.setattr(
        compilation.Programs,
        "compile",
        lambda self, shape, given: rows.append(shape.rows) or original(self, shape, given),
    )
    train.train(resolve(raw), tmp_path / "packed")
    assert 0 < min(rows) < 4
    found = {}
    for name, changes in {"unpacked": {}, "silent": {"objective": dict(caption_dropout=1.0)}}.items():
        train.train(resolve(raw | changes | {"text": raw["text"] | dict(pack=False, lengths=())}), tmp_path / name)
        found[name] = losses(tmp_path / name)
    assert rows[-1] == 0
    np.testing.assert_allclose(losses(tmp_path / "packed"), found["unpacked"], rtol=1e-4)
    assert np.abs(found["silent"] / found["unpacked"] - 1).max() > 1e-3  # captions matter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lengths=(8, 40)), r"text\.lengths is \(8, 40\); it must be whole numbers from 1 to text\.max_length, 24"),
        (dict(lengths=(0,)), r"text\.lengths is \(0,\)"),
        (dict(expected_tokens=25), r"text\.expected_tokens is 25; a caption has at most"),
    ],
)
def test_mistakes(raw, changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(raw | {"text": raw["text"] | changes})


def test_the_empty_prompt_must_fit(model, tmp_path):
    safetensors.numpy.save_file({"text_features": np.ones((5, 32), np.float32)}, tmp_path / "empty.safetensors")
    text = dataclasses.replace(model.text, lengths=(4,), empty_features=str(tmp_path / "empty.safetensors"))
    prompt = EmptyPrompt(text, None, masked=True)
    assert prompt.tokens == 5
    with pytest.raises(ValueError, match=r"text\.lengths is \(4,\); the empty prompt alone has 5 tokens"):
        prompt.features(None, sharding.make_mesh(sharding.MeshConfig()))


def test_what_a_dropped_caption_becomes():
    """The empty prompt's tokens, then zeros, and its mask; other fields stay."""
    batch = {
        "text_features": jnp.full((2, 4, 3), 7.0),
        "text_mask": jnp.array([[True] * 3 + [False]] * 2),
        "depth": jnp.zeros(2),
    }
    out = in_place_of(jnp.array([False, True]), batch, jnp.array([[1.0] * 3, [2.0] * 3]))
    assert out["text_features"][1].tolist() == [[1.0] * 3, [2.0] * 3, [0.0] * 3, [0.0] * 3]
    assert (out["text_features"][0] == 7).all() and out["depth"] is batch["depth"]
    assert out["text_mask"].tolist() == [[True] * 3 + [False], [True, True, False, False]]
