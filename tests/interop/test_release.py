"""Published weights in, sampled, trained on and out again, through the verbs' own functions."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import mf_jax
from mf_jax import train
from mf_jax.checkpoint.manager import Checkpoints
from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config.loading import resolve
from mf_jax.interop import export, import_weights
from mf_jax.joint_model import build_model
from mf_jax.models.weight_table import flatten
from mf_jax.storage.safetensors_files import TensorFiles
from mf_jax.training import train_state

FREEZE = ("backbone/double/image", "backbone/double/text")
CLONE = {
    "backbone/double/depth": "backbone/double/image",
    "backbone/depth_double_modulation": "backbone/image_double_modulation",
    "backbone/depth_single_modulation": "backbone/image_single_modulation",
}


@pytest.fixture(scope="module")
def imported(release, tmp_path_factory, request):
    """The official model as a checkpoint, and what the import said of it."""
    config = resolve(request.getfixturevalue("make_release_config")())
    workdir = tmp_path_factory.mktemp("imported") / "run"
    report, origins = import_weights.import_weights(release / "official", config, workdir)
    return workdir, report, origins


@pytest.fixture(scope="module")
def published(release):
    return safetensors.numpy.load_file(release / "official" / "model.safetensors")


def test_every_tensor_is_read_and_none_made(imported, published):
    _, report, origins = imported
    assert set(report.mapped) == set(published) and report.left_over == ()
    assert origins.fresh == () and origins.cloned == {}


def test_official_export_is_the_published_file(imported, published, tmp_path):
    export.export(imported[0], tmp_path / "out", layout="official")
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(published)
    for name, value in published.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["step"] == 0
    assert "mf_jax sample" in (tmp_path / "out" / "README.md").read_text()


def test_bf16_export_rounds_to_nearest_even_over_several_files(imported, published, tmp_path):
    import ml_dtypes

    export.export(imported[0], tmp_path / "out", layout="official", dtype="bf16", shard_bytes=50_000)
    written = TensorFiles(tmp_path / "out")
    assert len(written.paths) > 2
    for name, value in published.items():
        np.testing.assert_array_equal(written[name], value.astype(ml_dtypes.bfloat16), err_msg=name)


@pytest.mark.parametrize("layout", ["own", "official"])
def test_an_export_samples_as_the_checkpoint_does(imported, layout, tmp_path):
    export.export(imported[0], tmp_path / "out", layout=layout)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    results = []
    for directory in (imported[0], tmp_path / "out"):
        model = mf_jax.load(directory)
        results.append(model.sample("i2d", image=image, seed=3))
        results.append(model.sample("joint", prompt="a red box", seed=4))
    for name in ("image", "depth"):
        np.testing.assert_array_equal(results[0][name], results[2][name])
        np.testing.assert_array_equal(results[1][name], results[3][name])
    assert results[1]["image"].shape == (1, 32, 48, 3) and results[1]["image"].dtype == np.uint8
    assert np.ptp(results[1]["image"]) > 0 and np.isfinite(results[1]["depth"]).all()


@pytest.fixture(scope="module")
def base(release, tmp_path_factory, request):
    """The text-to-image file as a checkpoint of the joint model: the depth stream cloned, the rest from scratch."""
    raw = request.getfixturevalue("make_release_config")()
    raw["init"] = dict(clone=CLONE)
    workdir = tmp_path_factory.mktemp("base") / "run"
    _, origins = import_weights.import_weights(release / "flux2.safetensors", resolve(raw), workdir)
    return workdir, origins


def test_what_a_text_to_image_file_lacks_is_cloned_or_made(base):
    workdir, origins = base
    params = flatten(SavedModel(workdir).params())
    for here, there in origins.cloned.items():
        np.testing.assert_array_equal(params[here], params[there])
    assert {path.split("/")[1] for path in origins.cloned} == {
        "double", "depth_double_modulation", "depth_single_modulation",
    }  # fmt: skip
    assert {path.split("/")[1] for path in origins.fresh} == {
        "depth_in", "time_depth", "depth_decoder", "depth_decoder_modulation", "depth_out", "depth_out_modulation",
    }  # fmt: skip


def test_post_training_leaves_frozen_weights_alone(base, release_config, tmp_path):
    """Two steps with self-distillation, stopped and resumed between them; then exported."""
    release_config["init"] = dict(checkpoint=str(base[0]))
    release_config["train"] |= dict(freeze=FREEZE)
    release_config["objective"] = dict(distill_high=1.0, distill_low=0.1)
    config = resolve(release_config)
    run = tmp_path / "run"
    assert train.train(resolve(release_config, ["train.steps=1"]), run) == 1
    assert train.train(config, run) == 2
    assert train.train(config, tmp_path / "straight") == 2
    straight = flatten(SavedModel(tmp_path / "straight").params("params"))
    for path, value in flatten(SavedModel(run).params("params")).items():
        np.testing.assert_array_equal(value, straight[path], err_msg=path)
    export.export(run, tmp_path / "out", layout="official", weights="params")
    written = TensorFiles(tmp_path / "out")["dit.double_blocks.0.img_attn.proj.weight"]
    np.testing.assert_array_equal(written, straight["backbone/double/image/attention_out/kernel"][0].T)
    before, after = flatten(SavedModel(base[0]).params()), flatten(SavedModel(run).params("params"))
    assert set(before) == set(after)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    frozen = {path for path in before if path.startswith(FREEZE)}
    assert frozen and not frozen & changed
    assert len(changed) > 0.8 * len(set(before) - frozen)
    state = train_state.abstract(build_model(config), config)
    held = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]]
    assert not any("'double'" in name and ("'image'" in name or "'text'" in name) for name in held)
    assert any("'double'" in name and "'depth'" in name for name in held)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines) and any("loss/distill" in line for line in lines)


def test_an_import_is_started_from_and_not_trained_in(imported, release_config):
    with pytest.raises(ValueError, match=r"is an import.*init\.checkpoint"):
        train.train(resolve(release_config), imported[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("dit.txt_in.weight"), "tensor dit.txt_in.weight missing"),
        (lambda t: t.update({"dit.txt_in.weight": np.zeros((64, 47), np.float32)}), r"dit.txt_in.weight has shape"),
        (lambda t: t.update({"dit.txt_in.weight": np.zeros((64, 48), np.int8)}), "dit.txt_in.weight is I8"),
        (lambda t: t.pop("dit.img_in.weight"), "neither dit.img_in.weight"),
    ],
)
def test_files_that_do_not_fit(published, release_config, tmp_path, change, message):
    tensors = dict(published)
    change(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        import_weights.import_weights(tmp_path / "model.safetensors", resolve(release_config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_variant(release, release_config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"variant": "flux_rgbd_9b_v3"}))
    with pytest.raises(ValueError, match=r"names the variant 'flux_rgbd_9b_v3'; did you mean 'flux_rgbd_9b_v"):
        import_weights.import_weights(tmp_path, resolve(release_config), tmp_path / "run")


def test_extra_tensors_are_reported(published, release_config, tmp_path, capsys):
    safetensors.numpy.save_file(dict(published) | {"lora.up": np.zeros(2, np.float32)}, tmp_path / "m.safetensors")
    report, _ = import_weights.import_weights(tmp_path / "m.safetensors", resolve(release_config), tmp_path / "run")
    assert report.left_over == ("lora.up",)
    assert "left over: lora.up" in capsys.readouterr().out


def test_a_config_of_other_sizes(release, release_config, tmp_path):
    release_config["model"]["single_blocks"] = 2
    with pytest.raises(ValueError, match=r"single_blocks\.2"):
        import_weights.import_weights(release / "official", resolve(release_config), tmp_path / "run")


def test_frozen_networks_that_do_not_fit(imported, release_config):
    stored = Checkpoints(imported[0] / "checkpoints").config()
    assert stored["text"]["width"] == 48
    for override, message in (
        ("modalities.image.reduction=16", "makes 16 channels"),
        ("modalities.image.checkpoint=", "no checkpoint of the FLUX.2 autoencoder"),
        ("text.max_length=4", "length is 4"),
    ):
        with pytest.raises(ValueError, match=message):
            mf_jax.inference.pipeline.load(imported[0], overrides=[override]).sample("joint")


def test_image_alone_is_the_text_to_image_model(base, release_config, release, tmp_path):
    """Bitwise, in the joint model as imported; a depth stream of pure noise beside it changes the image output."""
    del release_config["modalities"]["depth"]
    release_config["modes"] = dict(t2i=dict(probability=1.0))
    import_weights.import_weights(release / "flux2.safetensors", resolve(release_config), tmp_path / "t2i")
    t2i, joint = SavedModel(tmp_path / "t2i"), SavedModel(base[0])
    keys = jax.random.split(jax.random.key(0), 3)
    x = {"image": jax.random.normal(keys[0], (4, 24, 16)), "depth": jax.random.normal(keys[1], (4, 24, 64))}
    t = {"image": np.array([0.2, 0.5, 0.8, 1.0]), "depth": np.ones(4)}
    fields = {"text_features": jax.random.normal(keys[2], (4, 128, 48))}
    alone = {"image": x["image"]}
    expected = t2i.model.predict(t2i.params(), alone, t, fields)["image"]
    np.testing.assert_array_equal(joint.model.predict(joint.params(), alone, t, fields)["image"], expected)
    beside = joint.model.predict(joint.params(), x, t, fields)["image"]
    change = float(np.sqrt(np.mean((beside - expected) ** 2) / np.mean(expected**2)))
    print(f"relative change of the image output: {change:.3f}")
    assert 0.01 < change < 1.0


def test_distillation_needs_a_teacher(release_config, tmp_path):
    release_config["objective"] = dict(distill_high=1.0)
    with pytest.raises(ValueError, match=r"needs init\.checkpoint, the model that teaches it"):
        train.train(resolve(release_config), tmp_path / "run")
