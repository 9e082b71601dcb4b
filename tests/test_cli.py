"""The verbs as a user types them, in this process: what they write, and how they fail."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from mf_jax.__main__ import main
from mf_jax.parallel import distributed


@pytest.fixture(scope="module")
def config_file(make_tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(f"def get_config():\n    return {make_tiny_config()!r}\n")
    return path


@pytest.fixture(scope="module")
def workdir(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", f"--config={config_file}", f"--workdir={workdir}", "--config.train.steps=4"]) == 0
    return workdir


def test_show_config(config_file, capsys):
    assert main(["show", f"--config={config_file}", "--config.train.batch=16"]) == 0
    shown = capsys.readouterr().out
    assert "batch: 16" in shown and "backbone/trunk/q/kernel" in shown
    total = int(re.search(r"parameters: ([\d,]+)", shown)[1].replace(",", ""))
    rows = re.findall(r"^\| (?:backbone|text)/\S+ +\| \(([\d, ]*)\) +\| -(?: -)* +\| ([\d,]+) +\|$", shown, flags=re.M)
    assert total == sum(math.prod(map(int, shape.strip(",").split(", "))) for shape, _ in rows)
    assert 4 * total == sum(int(size.replace(",", "")) for _, size in rows)
    assert "mesh of 1 devices: data 1, fsdp 1, tensor 1, context 1" in shown
    assert "tokens per example: 20 (image 4, depth 4, text 12)" in shown
    assert re.search(r"model FLOPs per step: \d", shown) and re.search(r"hardware FLOPs per step: \d", shown)


def test_show_lists_frozen_networks_apart(capsys):
    """With their FLOPs where their sizes are known, and a reason where they are not."""
    assert main(["show", "--config=configs/mofo_370m.py", "--config.text.width=512"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"frozen network image, forward of one example: \d\S+, decoding \d", shown)
    assert "frozen network text: FLOPs not known, there is no config.json in text.checkpoint" in shown
    assert re.search(r"hardware FLOPs per step: \d.*frozen image\)", shown)


def test_show_the_layout_on_devices_that_are_not_here(config_file, capsys):
    """Matrices on a quarter of the devices' memory each, by hand; optimizer and average as the parameters."""
    arguments = ["--devices=8", "--config.mesh.data=2", "--config.mesh.fsdp=4"]
    assert main(["show", f"--config={config_file}", *arguments]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"backbone/trunk/mlp_up/kernel +\| \(2, 32, 96\) +\| - fsdp - +\| 6,144 +\|\n", shown
    )  # 2 * 32 * 96 * 4 / 4
    assert re.search(r"backbone/trunk/q_norm/scale +\| \(2, 16\) +\| - - +\| 128 +\|\n", shown)
    assert "mesh of 8 devices: data 2, fsdp 4, tensor 1, context 1" in shown
    params, ema, optimizer = (
        int(re.search(rf"bytes per device.*\b{name} ([\d,]+)", shown)[1].replace(",", ""))
        for name in ("params", "ema", "opt_state")
    )
    assert params == ema and optimizer == 2 * params + 8  # two moments, two counters


def test_show_checkpoint_digests_tell_runs_apart(config_file, workdir, tmp_path, capsys):
    def digests(directory):
        assert main(["show", f"--checkpoint={directory}"]) == 0
        shown = capsys.readouterr().out
        assert "step: 4" in shown
        return re.findall(r"(params|ema|opt_state) sha256: ([0-9a-f]{64})", shown)

    first = digests(workdir)
    assert len(first) == 3
    arguments = [f"--config={config_file}", "--config.train.steps=4"]
    assert main(["train", *arguments, f"--workdir={tmp_path / 'same'}"]) == 0
    assert main(["train", *arguments, f"--workdir={tmp_path / 'other'}", "--config.seed=1"]) == 0
    capsys.readouterr()
    assert digests(tmp_path / "same") == first
    assert all(a != b for a, b in zip(digests(tmp_path / "other"), first, strict=True))


def test_sample_writes_the_official_layout(workdir, tmp_path, capsys):
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "in.png")
    np.save(tmp_path / "in.npy", np.linspace(1, 2, 256, dtype=np.float32).reshape(16, 16))
    Image.fromarray(np.full((16, 16), 2000, np.uint16)).save(tmp_path / "in16.png")
    cases = {
        "joint": ["--prompt=A red box!", "--batch=2", "--refine-depth"],
        "i2d": [f"--image={tmp_path / 'in.png'}"],
        "d2i": [f"--depth={tmp_path / 'in.npy'}"],
        "partial": [f"--depth={tmp_path / 'in16.png'}", "--partial", "--log2-alpha=-5"],
    }
    for mode, arguments in cases.items():
        out = tmp_path / mode
        assert main(["sample", f"--checkpoint={workdir}", "--steps=2", f"--output-dir={out}", *arguments]) == 0
        folders = capsys.readouterr().out.split()
        assert len(folders) == (2 if mode == "joint" else 1)
        for folder in map(type(out), folders):
            assert folder.parent == out
            metadata = json.loads((folder / "metadata.json").read_text())
            assert (metadata["mode"], metadata["num_steps"], metadata["img_hw"]) == (mode, 2, [16, 16])
            depth = np.load(folder / "depth_raw.npy")
            assert depth.dtype == np.float32 and depth.shape == (16, 16)
            assert np.array(Image.open(folder / "rgb.png")).shape == (16, 16, 3)
            assert (folder / "depth_magma.png").exists()
    assert "_a_red_box" in next((tmp_path / "joint").iterdir()).name


def test_sample_finds_the_mode_by_what_is_given(workdir, tmp_path, capsys):
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "in.png")
    np.save(tmp_path / "in.npy", np.ones((16, 16), np.float32))
    both = [f"--image={tmp_path / 'in.png'}", f"--depth={tmp_path / 'in.npy'}"]
    assert main(["sample", f"--checkpoint={workdir}", *both]) == 2
    message = "no mode conditioned on image and depth alone; its modes are joint (nothing), d2i (depth), i2d (image)"
    assert message in capsys.readouterr().err
    assert main(["sample", f"--checkpoint={workdir}", "--partial", *both]) == 2
    assert "mode 'partial' takes no image" in capsys.readouterr().err


def test_sample_of_a_text_to_image_model(make_tiny_config, tmp_path, capsys):
    """Modes as in configs/t2i_370m.py: an image and what it was made with, and nothing of depth."""
    raw = make_tiny_config()
    del raw["modalities"]["depth"]
    raw["modes"] = {"t2i": {"probability": 1.0}}
    (tmp_path / "t2i.py").write_text(f"def get_config():\n    return {raw!r}\n")
    workdir = f"{tmp_path / 'run'}"
    settings = ["--config.train.steps=1", "--config.optimizer.warmup=0"]
    assert main(["train", f"--config={tmp_path / 't2i.py'}", f"--workdir={workdir}", *settings]) == 0
    out = [f"--checkpoint={workdir}", "--steps=1", f"--output-dir={tmp_path / 'out'}"]
    assert main(["sample", *out, "--prompt=a room"]) == 0
    (folder,) = (tmp_path / "out").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.json", "rgb.png"]
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["mode"], metadata["img_hw"]) == ("joint", [16, 16]) and "cloud_points" not in metadata
    assert main(["sample", *out, "--refine-depth"]) == 2
    assert "no mode conditioned on image alone" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_evaluate_writes_results_beside_the_baseline(workdir, capsys):
    assert main(["evaluate", f"--checkpoint={workdir}", "--config.evaluate.steps=1", "--config.evaluate.images=3"]) == 0
    shown = capsys.readouterr().out
    results = json.loads((workdir / "results.json").read_text())
    assert results["checkpoint_step"] == 4
    for protocol in ("moge_affine", "lstsq"):
        entry = results[protocol]
        assert entry["images"] == 3
        for name in ("abs_rel", "delta1", "constant_abs_rel"):
            assert 0 <= entry[name] < 10
            assert np.isfinite(entry[name])
        assert re.search(rf"{protocol} +{100 * entry['abs_rel']:.2f}", shown)
    assert len((workdir / "per_image.csv").read_text().splitlines()) == 4
    with Image.open(workdir / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 600


def test_an_export_is_evaluated_and_sampled_as_its_run_is(workdir, tmp_path):
    """Any model in our own layout, through the command line; the model card tells what was measured."""
    settings = ["--config.evaluate.steps=1", "--config.evaluate.images=3"]
    assert main(["evaluate", f"--checkpoint={workdir}", *settings]) == 0
    out = tmp_path / "out"
    assert main(["export", f"--checkpoint={workdir}", f"--output={out}"]) == 0
    card, measured = (out / "README.md").read_text(), json.loads((workdir / "results.json").read_text())
    assert f"| moge_affine | {measured['moge_affine']['abs_rel']:.4f} |" in card and '"schedule": "constant"' in card
    assert main(["evaluate", f"--checkpoint={out}", *settings]) == 0
    assert json.loads((out / "results.json").read_text())["moge_affine"] == measured["moge_affine"]
    assert main(["sample", f"--checkpoint={out}", "--steps=1", f"--output-dir={tmp_path / 'made'}"]) == 0


def test_evaluate_does_not_depend_on_its_batch_size_and_ensembles(workdir, tmp_path):
    def abs_rel(name, *overrides):
        arguments = ["--config.evaluate.steps=1", "--config.evaluate.images=3", *overrides]
        assert main(["evaluate", f"--checkpoint={workdir}", f"--output={tmp_path / name}", *arguments]) == 0
        return json.loads((tmp_path / name / "results.json").read_text())

    whole, parts = abs_rel("whole"), abs_rel("parts", "--config.evaluate.batch=2")
    assert parts["moge_affine"]["abs_rel"] == pytest.approx(whole["moge_affine"]["abs_rel"], rel=1e-4)
    joined = abs_rel("joined", "--config.evaluate.ensemble=3")
    assert joined["ensemble"] == 3
    assert joined["moge_affine"]["abs_rel"] != whole["moge_affine"]["abs_rel"]


def test_showcase(workdir, tmp_path, capsys):
    output = tmp_path / "shown"
    arguments = [f"--checkpoint={workdir}", "--count=1", "--steps=1", f"--output={output}"]
    assert main(["showcase", *arguments]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["samples", "samples.json", "samples.png"]
    agreement = json.loads((output / "samples.json").read_text())
    assert agreement["samples"] == 6
    for name in ("joint_depth_against_its_image", "shuffled_pair_baseline"):
        assert 0 < agreement[name] < 100
    assert sorted(p.name for p in (output / "samples").iterdir()) == ["d2i", "i2d", "joint", "partial"]
    assert "(shuffled pairs: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config=absent.py", "--workdir=x"], "no config file absent.py"),
        (["show", "--config={config}", "--config.train.step=3"], "unknown config key train.step; did you mean 'steps'"),
        (["sample", "--checkpoint={tmp}"], "no checkpoints in"),
        (["evaluate", "--checkpoint={tmp}/absent"], "no checkpoints in"),
        (["show", "--checkpoint={tmp}"], "no checkpoints in"),
        (["showcase", "--checkpoint={workdir}", "--count=0"], "--count is 0; it must be at least 1"),
        (["showcase", "--checkpoint={workdir}", "--count=99"], "has 4 records with depth among its first; --count=99"),
        (["showcase", "--checkpoint={workdir}", "--config.sample.steps=1"], "is shown with the config that it has"),
        (["showcase", "--checkpoint={tmp}"], "no checkpoints in"),
        (["sample", "--checkpoint={workdir}", "--guide=normals"], "it must be 'all' or one of image, depth"),
        (["sample", "--checkpoint={workdir}", "--partial"], "--partial needs --depth"),
        (["sample", "--checkpoint={workdir}", "--batch=0"], "--batch is 0"),
        (["sample", "--checkpoint={workdir}", "--config.train.steps=5"], "sampling reads only the section sample"),
        (["sample", "--checkpoint={workdir}", "--config.sample.stepz=5"], "did you mean 'steps'"),
        (["show", "--checkpoint={workdir}", "--config.train.steps=5"], "its config is not overridden"),
        (["export", "--checkpoint={workdir}", "--output={tmp}/e", "--layout=offical"], "did you mean 'official'"),
        (["export", "--checkpoint={workdir}", "--output={tmp}/e", "--layout=official"], "of models of kind 'flux2'"),
        (["export", "--checkpoint={workdir}", "--output={tmp}/e", "--dtype=fp16"], "dtype is 'fp16'"),
        (["export", "--checkpoint={workdir}", "--output={workdir}"], "is not empty"),
        (["sample", "--checkpoint={workdir}", "--image={tmp}/absent.png"], "absent.png does not exist"),
        (["sample", "--checkpoint={workdir}", "--prompt=" + "long " * 30], "150 UTF-8 bytes exceeds the limit of 96"),
        (["evaluate", "--checkpoint={workdir}", "--config.evaluate.split=tset"], "tset"),
        (["train", "--config={config}", "--workdir={tmp}", "--processes=2"], "--processes without --coordinator"),
        (["train", "--config={config}", "--workdir={tmp}", "--distributed=auto"], "auto finds neither Cloud TPU nor"),
    ],
)
def test_mistakes_are_one_clear_line(config_file, workdir, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    filled = [a.format(config=config_file, workdir=workdir, tmp=tmp_path) for a in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_processes_compare_their_whole_config(config_file, tmp_path, monkeypatch, capsys):
    def joined(where, facts, explain, verb, after_death):
        assert (where.coordinator, where.processes, where.process) == ("a:1", 2, 1)
        given.update(facts)
        raise ValueError("far enough")

    given = {}
    monkeypatch.setattr(distributed, "joined", joined)
    place = ["--coordinator=a:1", "--processes=2", "--process=1"]
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}", "--config.train.steps=7", *place]
    assert main(["train", *arguments]) == 2 and "far enough" in capsys.readouterr().err
    assert given["config.train.steps"] == "7" and given["config.modes.joint.probability"] == "0.6"
    assert given["config.data.source.kind"] == "'procedural'" and len(given) > 50


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate", "show"])
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert "usage: mf_jax" in capsys.readouterr().out
