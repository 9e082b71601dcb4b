"""What a sampling call compiles and holds: one program per setting, text once per call, weights as they are read.

Legend: B batch.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mf_jax
from mf_jax import train
from mf_jax.config import loading as configs
from mf_jax.inference.pipeline import load
from mf_jax.interop import export
from mf_jax.models.text.byte import ByteTextEncoder
from mf_jax.models.weight_table import flatten


@pytest.fixture(scope="module")
def workdir(make_tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compiled")
    train.train(configs.resolve(make_tiny_config(), ["train.steps=3"]), workdir)
    return workdir


@pytest.fixture(scope="module")
def pipeline(workdir):
    return mf_jax.load(workdir)


@pytest.fixture
def counted():
    """How often jax has traced and compiled since the start of the test, by its own events."""
    counts = collections.Counter()

    def listen(event, seconds, **_):
        if event in ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration"):
            counts[event.split("/")[-1]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)


IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
DEPTH = np.linspace(1.0, 4.0, 256).reshape(16, 16).astype(np.float32)
SETTINGS = {
    "joint": (
        dict(prompt="a room", seed=1, guidance=2.0, mu=1.0, log2_alpha=1.0),
        dict(prompt="a field", seed=2, guidance=5.0, mu=0.5, log2_alpha=-1.0, guide="image"),
    ),
    "joint unguided": (dict(prompt="a room", guidance=1.0), dict(prompt="b", seed=3, guidance=1, mu=2.0)),
    "i2d": (dict(image=IMAGE, batch=2), dict(image=IMAGE // 2, batch=2, seed=np.array([5, 6]))),
    "partial": (dict(depth=DEPTH, log2_alpha=-8.0), dict(depth=DEPTH + 1, log2_alpha=-3.0, prompt="x")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_values_compile_nothing(pipeline, counted, name):
    first, second = SETTINGS[name]
    results = [pipeline.sample(name.split()[0], steps=2, **first)]
    assert counted["jaxpr_trace_duration"] > 0
    if name == "i2d":  # the program of (seed, i) is another than that of seeds
        pipeline.sample("i2d", steps=2, image=IMAGE, batch=2, seed=np.array([1, 2]))
    if "prompt" not in first:
        pipeline.sample(name, steps=2, **first | {"prompt": "y"})
    counted.clear()
    results.append(pipeline.sample(name.split()[0], steps=2, **second))
    assert not counted, counted
    assert not np.array_equal(results[0]["depth"], results[1]["depth"])
    pipeline.sample(name.split()[0], steps=3, **second)
    assert counted["backend_compile_duration"] == 1  # another number of steps is another program


def test_a_scale_of_one_is_no_guidance_in_a_guided_program(pipeline):
    """Scales are arguments: guided by 1 + 1e-7 the two forward passes give what one gives."""
    one, two = (pipeline.sample("joint", "a room", steps=2, guidance=g)["depth"] for g in (1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(one, two, rtol=1e-3)


def test_text_is_encoded_once_per_call_and_the_empty_text_once(workdir, monkeypatch):
    """By a program of its own, traced for one text and for two, and not in every step by the sampler's."""
    seen = []
    call = ByteTextEncoder.__call__

    def record(self, ids_BL):
        seen.append(ids_BL.shape[0])
        return call(self, ids_BL)

    monkeypatch.setattr(ByteTextEncoder, "__call__", record)
    model = mf_jax.load(workdir)
    seen.clear()  # of the program that the dtypes are read from
    model.sample("joint", "a room", steps=3, batch=2)
    assert seen == [1]  # the prompt, and the empty text
    model.sample("joint", ["a", "b"], steps=3)
    assert seen == [1, 2]
    texts = []
    encode = model.compiled.text
    monkeypatch.setattr(model.compiled, "text", lambda *a: (texts.append(a), encode(*a))[1])
    model.sample("joint", "a room", steps=3)
    model.sample("i2d", image=IMAGE, steps=3)
    assert len(texts) == 1  # the empty text is kept


@pytest.mark.parametrize("saved", ["run", "export"])
def test_weights_are_rounded_to_bfloat16_while_they_are_read(workdir, saved, tmp_path):
    """Bitwise as jax rounds them, from a checkpoint and from an export; half the bytes."""
    directory = workdir
    if saved == "export":
        directory = tmp_path / "exported"
        export.export(workdir, directory)
    whole = flatten(load(directory).params)
    half = flatten(load(directory, overrides=["model.dtype=bfloat16"]).params)
    assert {leaf.dtype for leaf in whole.values()} == {jnp.dtype("float32")}
    kept = {path for path, leaf in half.items() if leaf.dtype == jnp.float32}
    assert "backbone/trunk/q_norm/scale" in kept and "backbone/depth_out/kernel" in kept
    assert not any(
        path.endswith("kernel") for path in kept - {"backbone/depth_out/kernel", "backbone/image_out/kernel"}
    )
    for path, leaf in half.items():
        np.testing.assert_array_equal(leaf, whole[path].astype(leaf.dtype), err_msg=path)
    bytes_of = [sum(leaf.nbytes for leaf in flat.values()) for flat in (whole, half)]
    assert bytes_of[1] < 0.6 * bytes_of[0]


def test_samples_of_bfloat16_weights_are_those_of_casting_in_every_step(workdir):
    model = load(workdir, overrides=["model.dtype=bfloat16"])
    got = model.sample("joint", "a room", steps=2, batch=2)
    cast = load(workdir, overrides=["model.dtype=bfloat16"])
    cast.compiled.params = load(workdir).params
    expected = cast.sample("joint", "a room", steps=2, batch=2)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
