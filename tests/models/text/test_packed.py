"""Captions that share rows are encoded as each is by itself.

Legend: B batch, M text tokens, R rows, L tokens of a row, D feature channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mf_jax.data.packing import TextLayout
from mf_jax.models.text import qwen3_weights, umt5_weights
from mf_jax.models.text.packed import unpack, visible
from mf_jax.models.text.qwen3 import Qwen3, Qwen3Config
from mf_jax.models.text.umt5 import UMT5Config, UMT5Encoder
from mf_jax.models.weight_table import to_ours

LENGTHS = (3, 24, 1, 7, 11, 5, 2, 9)
L = 24


@pytest.fixture(scope="module", params=["umt5", "qwen3"])
def encode(request, goldens):
    """Compiled (ids, segments) -> features, with the weights of the published encoder's golden numbers."""
    folder = goldens / request.param
    tensors = load_file(folder / "model.safetensors")
    if request.param == "umt5":
        encoder = UMT5Encoder(UMT5Config.from_json(folder / "config.json"))
        params = to_ours(tensors, umt5_weights.table(encoder, tensors))
    else:
        encoder = Qwen3(Qwen3Config.from_json(folder / "config.json"), (1, 2, 4))
        params = to_ours(tensors, qwen3_weights.table(encoder))
    run = jax.jit(encoder.apply)
    return lambda ids, segments: run({"params": params}, ids, segments)


@pytest.fixture(scope="module")
def batch():
    mask = np.arange(L) < np.array(LENGTHS)[:, None]
    ids = np.random.default_rng(1).integers(1, 60, mask.shape).astype(np.int32)
    return {"text_ids": np.where(mask, ids, 0), "text_mask": mask}


def packed_features(encode, batch, layout):
    shape, out = layout.arrange(batch)
    features = encode(out["text_ids"], out["text_segments"])
    return shape, np.asarray(unpack(features, jnp.asarray(out["text_at"]), jnp.asarray(out["text_mask"])))


@pytest.mark.parametrize("lengths", [(L,), (8, L)], ids=["whole", "a shorter text would do"])
def test_features_are_those_of_each_caption_alone(encode, batch, lengths):
    shape, features = packed_features(encode, batch, TextLayout(lengths, True, len(LENGTHS)))
    assert shape.rows == 3 and features.shape[1] == L
    alone = np.asarray(encode(batch["text_ids"], batch["text_mask"]))
    mask = batch["text_mask"]
    assert np.abs(alone[mask]).max() > 0.5
    np.testing.assert_allclose(features[mask], alone[mask], rtol=0, atol=1e-5)
    assert (features[~mask] == 0).all()


def test_a_caption_has_no_influence_on_its_neighbours(encode, batch):
    layout = TextLayout((L,), True, len(LENGTHS))
    _, before = packed_features(encode, batch, layout)
    ids = batch["text_ids"].copy()
    ids[3, :7] = 1 + ids[3, :7] % 50
    _, after = packed_features(encode, batch | {"text_ids": ids}, layout)
    changed = np.abs(after - before).max(axis=(1, 2))
    assert changed[3] > 0.01 and (np.delete(changed, 3) == 0).all()


def test_rows_without_a_caption_are_finite(encode, batch):
    features = encode(batch["text_ids"], np.zeros((len(LENGTHS), L), np.int32))
    assert np.isfinite(features).all()


def test_who_sees_whom():
    """Two captions and padding in one row: each its own; padding, whose states nobody reads, all that is real."""
    found = np.asarray(visible(jnp.array([[1, 1, 2, 0]])))[0].astype(int)
    assert found.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]
    mask = jnp.array([[True, True, False]])
    assert np.asarray(visible(mask))[0].astype(int).tolist() == [[1, 1, 0]] * 3
