"""The verb `compile`: for the CPU at hand, and for TPUs that are not there, where libtpu is installed."""

import contextlib
import dataclasses
import importlib.util
import io
import math
import re

import jax
import numpy as np
import pytest

from mf_jax.__main__ import main
from mf_jax.aot import step, topology
from mf_jax.aot.hlo import parse
from mf_jax.aot.memory import out_of_memory
from mf_jax.aot.places import BACKWARD, place
from mf_jax.aot.schedule import PRODUCTS, schedule
from mf_jax.config.loading import load, resolve
from mf_jax.configurable import Section
from mf_jax.data.config import DataConfig
from mf_jax.data.tokenizer import ByteTokenizer
from mf_jax.data.transforms import Examples, example_shapes
from mf_jax.modalities.flux2_latent import Autoencoder, Codec
from mf_jax.models.frozen import EMPTY_PROMPT
from mf_jax.models.text.encoders import UMT5Text
from mf_jax.monitoring import flops
from mf_jax.monitoring.chips import CHIPS

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu")
COMPILE = step.compile_step
SHARDED = ("mesh.data=1", "mesh.fsdp=-1")


@pytest.fixture
def config_file(tiny_config, tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(f"def get_config():\n    return {tiny_config!r}\n")
    return path


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_for_the_devices_at_hand(config_file, capsys):
    assert main(["compile", f"--config={config_file}"]) == 0
    out = capsys.readouterr().out
    assert "the memory of these devices is not known" in out
    assert "no prediction of its time" in out
    assert "collectives per step" in out


@pytest.fixture(scope="module")
def four_chips(make_tiny_config, tmp_path_factory):
    """(job, program, output) of the verb for 2 x 2 chips of v5e, parameters in four parts."""
    path = tmp_path_factory.mktemp("four_chips") / "tiny.py"
    path.write_text(f"def get_config():\n    return {make_tiny_config()!r}\n")
    kept = []

    def compile_step(job):
        kept.append((job, COMPILE(job)))
        return kept[0][1]

    arguments = [f"--config={path}", "--topology=v5e:2x2", *(f"--config.{value}" for value in SHARDED)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(step, "compile_step", compile_step)
        assert main(["compile", *arguments]) == 0
    return *kept[0], out.getvalue()


@needs_libtpu
def test_for_four_chips(four_chips):
    """Parameters, EMA and moments in four parts, the norms and gates whole; weights gathered in each of the layers."""
    out = four_chips[2]
    assert "4 x TPU v5 lite" in out
    assert "mesh: data 1, fsdp 4" in out
    assert re.search(r"in all \d+\.\d+ GiB of 15.75: fits", out)
    assert re.search(r"all-gather +in loops +asynchronous +\d+", out)
    assert re.search(r"biggest in a layer: .* times, (a?)synchronous: ", out)
    assert re.search(r"a step takes at least [\d.]+ ms \(by compute [\d.]+, memory [\d.]+, links [\d.]+\)", out)
    assert "compiler options: xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000" in out
    assert re.search(r"predicted step: [\d.]+ to [\d.]+ ms, MFU [\d.]+ to [\d.]+ %", out)
    assert re.search(r"(forward|backward) +product +[\d.]+ +[\d.]+ +\d+% +\d+%", out)
    assert "frozen networks, of these" not in out


@needs_libtpu
def test_flops_of_the_program(four_chips):
    """Of every product with parameters, in every pass: what the program does is what the formula says."""
    job, program, _ = four_chips
    devices = job.mesh.size
    found = {}
    for entry in schedule(parse(program.text), CHIPS[job.device_kind], 1e12, job.slices).entries:
        where = place(entry.path)
        if entry.kind == PRODUCTS:
            key = where.part, where.part_of_step == BACKWARD
            found[key] = found.get(key, 0) + entry.flops * devices
    for part, times in flops._backward(job.model, ()):
        name = part.path.partition("/")[2]
        if part.has_parameters:
            assert found[name, False] == part.flops * job.config.train.batch, name
            assert found[name, True] == times * part.flops * job.config.train.batch, name


@needs_libtpu
def test_too_large(config_file, capsys):
    """A batch whose pixels alone fill a chip: the numbers and what to do, no traceback."""
    arguments = [f"--config={config_file}", "--topology=v5e:2x2", f"--config.train.batch={2**23}"]
    assert main(["compile", *arguments]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    needed, available = re.search(r"does not fit: needs ([\d.]+) GiB of ([\d.]+)", out).groups()
    assert float(needed) > float(available) == 15.75
    assert "what helps: smaller train.batch, larger train.accumulate" in out


@needs_libtpu
def test_bytes_by_hand(tiny_config):
    job = step.make_job(resolve(tiny_config, SHARDED), topology.devices("v5e:2x2"))
    found = step.argument_bytes(job)
    state, _, batch, _ = job.arguments
    whole = sum(size(leaf) for leaf in jax.tree.leaves(state.params) if not any(leaf.sharding.spec))
    split = size(state.params) - whole
    assert split > 0.9 * size(state.params)
    per_device = 4 * (whole + split // 4)
    assert found["parameters"] == found["EMA"] == per_device
    assert found["optimizer"] == 2 * per_device + 2 * 4 + 4  # two moments; the counts of Adam and schedule; the step
    assert found["untrained parameters"] == 0
    text = sum(value.nbytes for value in job.model.null_text.values())
    assert found["batch"] == 2 * (16 * 16 * (3 + 4 + 1) + text)
    assert all(leaf.sharding.mesh.devices.flat[0].platform == "tpu" for leaf in jax.tree.leaves(batch))


@needs_libtpu
def test_published_sizes_of_frozen_networks():
    """UMT5-XXL's encoder has 5.68 billion parameters, the autoencoder 84 million; of both 1/16 is on a chip."""
    job = step.make_job(load("configs/t2i_370m.py"), topology.devices("v5e:4x4"))
    _, networks, batch, _ = job.arguments
    block = 4 * 4096 * 4096 + 3 * 4096 * 10240 + 2 * 4096 + 32 * 64
    assert size(networks["text"]) == 256384 * 4096 + 24 * block + 4096
    assert {leaf.dtype for leaf in jax.tree.leaves(networks["text"])} == {jax.numpy.dtype("bfloat16")}
    assert size(networks["image"]) == pytest.approx(84e6, rel=0.01)
    assert step.argument_bytes(job)["text encoder"] == pytest.approx(2 * size(networks["text"]) / 16, rel=1e-3)
    assert len(job.assumed) == 4
    assert networks[EMPTY_PROMPT].shape == (1, 4096) and "an empty prompt of 1 token" in job.assumed[2]
    assert job.assumed[3].startswith("45 rows of 256 tokens for every 160 captions, of 60 tokens on average")
    assert batch["text_ids"].shape == batch["text_segments"].shape == (16 * 45, 256)
    assert batch["text_mask"].shape == (2560, 256) and batch["text_at"].shape == (2560,)
    assert job.text_rows == 45 / 160


@needs_libtpu
def test_the_step_with_packed_captions(make_frozen_config, tmp_path, capsys):
    """Compiled for four chips, in two parts; what is assumed of rows and lengths is said, and its FLOPs are counted."""
    raw = make_frozen_config("nowhere")
    raw["modalities"]["image"] = dict(
        kind="image", position=0, patch=8, prediction="x", noise=dict(kind="logit_normal")
    )
    raw["text"] |= dict(lengths=(16,), expected_tokens=6)
    raw["train"] |= dict(batch=256, accumulate=2)
    path = tmp_path / "packed.py"
    path.write_text(f"def get_config():\n    return {raw!r}\n")
    assert main(["compile", f"--config={path}", "--topology=v5e:2x2"]) == 0
    out = capsys.readouterr().out
    assert "assumed: 11 rows of 24 tokens for every 32 captions, of 6 tokens on average (text.expected_tokens)" in out
    assert "assumed: text of 24 tokens in the transformer, the longest of text.lengths" in out
    assert "text encoder" in out and "empty prompt" in out
    job = step.make_job(resolve(raw), topology.devices("v5e:2x2"))
    row = job.model.networks["text"].flops((16, 16)).encode
    alone = flops.hardware_flops(dataclasses.replace(job.model, networks={}), job.config)
    found = float(re.search(r"frozen networks, per device (\S+)", out).group(1))
    assert found == pytest.approx((alone + 256 * row * 11 / 32) / 4, rel=1e-3)


def test_precomputed_fields_need_no_network():
    """No parameters of an encoder, the fields in the batch, nothing of them assumed; and no file is at hand."""
    fields = ("image_latent", "text_features")
    changes = (f"data.precomputed={fields}", "data.augment.flip=False", "train.batch=8", "model.layers=1")
    job = step.make_job(load("configs/mofo_370m.py", changes), jax.devices("cpu")[:1])
    _, networks, batch, _ = job.arguments
    assert set(networks) == {EMPTY_PROMPT} and set(job.model.networks) == set()
    assert job.assumed == ("an empty prompt of 1 token, as its files are not at hand",)
    got = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert got == {
        "depth": ((8, 256, 256), "float32"),
        "depth_valid": ((8, 256, 256), "bool"),
        "image_latent": ((8, 16, 16, 128), "float32"),
        "text_features": ((8, 256, 4096), "float32"),
        "text_mask": ((8, 256), "bool"),
    }
    one = step.make_job(load("configs/mofo_370m.py", [*changes, "data.precomputed=('image_latent',)"]), jax.devices())
    assert set(one.arguments[1]) == {"text", EMPTY_PROMPT} and "image" not in one.arguments[2]


def test_files_that_are_there_are_not_assumed(tmp_path):
    assert UMT5Text(checkpoint=str(tmp_path)).network(jax.numpy.float32).as_published() is None
    assert UMT5Text(checkpoint=str(tmp_path / "none")).network(jax.numpy.float32).as_published() is not None
    (tmp_path / "ae.safetensors").touch()
    assert Autoencoder(Codec(checkpoint=str(tmp_path / "ae.safetensors")), jax.numpy.float32).as_published() is None
    assert Autoencoder(Codec(), jax.numpy.float32).as_published() is not None


def test_batch_is_what_the_data_makes(tiny_config):
    examples = Examples(
        Section(DataConfig).build(tiny_config["data"], "data").open("train"),
        resolution=(16, 16),
        tokenizer=ByteTokenizer(96),
    )
    example = examples[0]
    for name, (shape, dtype) in example_shapes((16, 16)).items():
        assert example[name].shape == shape and example[name].dtype == np.dtype(dtype)
    assert set(example) - set(example_shapes((16, 16))) == {"text_ids", "index", "skipped"}


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (509.77G) "
            "exceeds available HBM (15.75G).",
            509.77,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 1.50T of "
            "95.74G hbm. Exceeded hbm capacity by 1.41T.",
            1.5 * 1024,
            95.74,
        ),
    ],
)
def test_messages_of_the_compiler(message, needed, available):
    error = out_of_memory(message)
    assert (error.needed / 2**30, error.available / 2**30) == pytest.approx((needed, available))


def test_other_failures_of_the_compiler():
    assert out_of_memory("INTERNAL: something else") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology=v5litepod-16"], "v5p:4x4x4"),
        (["--topology=v5e:4x4x4"], "v5e has 2 axes"),
        (["--slices=2"], "--slices needs --topology"),
        (["--search"], "--search needs a chip whose memory is known"),
        (["--config.train.compiler_options={'no_such': 1}"], "this compiler has no option 'no_such'"),
    ],
)
def test_mistakes(config_file, arguments, says, capsys):
    assert main(["compile", f"--config={config_file}", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
