"""The loop in this process: errors that must be clear, and state that must not be lost."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import mf_jax
from mf_jax import train
from mf_jax.checkpoint.manager import Checkpoints
from mf_jax.config import loading as configs
from mf_jax.monitoring.metrics import NotFinite


def resolved(raw, *overrides):
    return configs.resolve(raw, overrides)


def test_not_finite_stops_with_step_and_quantity_and_keeps_the_last_checkpoint(make_tiny_config, tmp_path):
    raw = make_tiny_config()
    assert train.train(resolved(raw, "train.steps=3"), tmp_path) == 3
    kept = mf_jax.load(tmp_path)
    raw["modalities"]["depth"]["weight"] = 3e38
    with pytest.raises(NotFinite, match=r"loss is inf at step 1\b"):
        train.train(resolved(raw), tmp_path / "other")
    assert Checkpoints(tmp_path / "other" / "checkpoints").latest() is None
    assert mf_jax.load(tmp_path).step == kept.step == 3


def test_a_gradient_that_explodes_mid_run_leaves_the_checkpoint_before_it(make_tiny_config, tmp_path):
    raw = make_tiny_config()
    raw["optimizer"] = {"learning_rate": 1e14, "warmup": 4, "clip": 1e30, "weight_decay": 0.0}
    raw["checkpoint"] = {"every": 1}
    with pytest.raises(NotFinite, match=r"(loss|grad_norm|param_norm) is (nan|inf) at step [2-6]"):
        train.train(resolved(raw), tmp_path)
    pipeline = mf_jax.load(tmp_path, weights="params")
    import jax

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pipeline.params))


def test_a_checkpoint_of_another_config_is_refused(make_tiny_config, tmp_path):
    train.train(resolved(make_tiny_config(), "train.steps=1"), tmp_path)
    raw = make_tiny_config()
    raw["model"]["layers"] = 3
    with pytest.raises(ValueError, match=r"model\.layers: 2 in the checkpoint, 3 now"):
        train.train(resolved(raw), tmp_path)
    raw = make_tiny_config()
    raw["seed"] = 5
    with pytest.raises(ValueError, match="seed: 0 in the checkpoint, 5 now"):
        train.train(resolved(raw), tmp_path)


def test_steps_may_grow_with_a_constant_learning_rate_only(make_tiny_config, tmp_path):
    raw = make_tiny_config()
    assert train.train(resolved(raw, "train.steps=1"), tmp_path / "constant") == 1
    assert train.train(resolved(raw, "train.steps=2"), tmp_path / "constant") == 2
    raw["optimizer"] = {"schedule": "cosine"}
    assert train.train(resolved(raw, "train.steps=1"), tmp_path / "cosine") == 1
    with pytest.raises(ValueError, match=r"train\.steps: 1 in the checkpoint, 2 now"):
        train.train(resolved(raw, "train.steps=2"), tmp_path / "cosine")


def test_the_latest_checkpoints_are_kept_and_the_multiples_asked_for(make_tiny_config, tmp_path):
    raw = make_tiny_config()
    raw["checkpoint"] = {"every": 1, "keep": 2, "keep_every": 3}
    train.train(resolved(raw, "train.steps=8"), tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7, 8]


def test_a_run_leaves_what_its_observer_asked_for(make_tiny_config, tmp_path, capsys):
    """Profile, HLO and a compilation cache, in a run that goes on once with other settings; accounts of both starts."""
    shared = tmp_path / "shared"
    first = resolved(make_tiny_config(), "train.steps=4", "train.profile_steps=(1,3)", "train.dump_hlo=True")
    assert train.train(first, tmp_path / "run") == 4
    (trace,) = (tmp_path / "run" / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
    optimised = (tmp_path / "run" / "hlo" / "train_step.optimized.txt").read_text()
    assert "HloModule jit_train_step" in optimised and "ENTRY" in optimised
    assert "module @jit_train_step" in (tmp_path / "run" / "hlo" / "train_step.stablehlo.txt").read_text()
    assert "steps done again after a restart" in capsys.readouterr().out

    second = resolved(make_tiny_config(), "train.steps=6", f"train.compilation_cache={shared}")
    assert train.train(second, tmp_path / "run") == 6
    assert [entry.name.split("-")[0] for entry in shared.glob("jit_train_step-*")] == ["jit_train_step"]
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    for entry in entries:
        shares = [value for name, value in entry.items() if name.startswith("goodput/")]
        assert len(shares) == 6 and sum(shares) == pytest.approx(1)
    assert all("step_seconds/p50" in entry for entry in entries if entry["step"] not in (1, 5))
    assert entries[-1]["goodput/step"] > 0 and entries[-1]["goodput/compile"] > 0
    assert [entry["wall_seconds"] for entry in entries] == sorted(entry["wall_seconds"] for entry in entries)
    assert json.loads((tmp_path / "run" / "goodput.json").read_text())["starts"] == 2


@pytest.fixture
def folder_config(make_tiny_config, tmp_path):
    """Frames of which every third has no valid depth at all."""
    root = tmp_path / "frames"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / f"{i}.color.png")
        depth = np.zeros((16, 16)) if i % 3 == 0 else rng.uniform(1000, 3000, (16, 16))
        Image.fromarray(depth.astype(np.uint16)).save(root / f"{i}.depth.png")
    raw = make_tiny_config()
    raw["data"]["source"] = {
        "kind": "folder",
        "root": str(root),
        "image": "*.color.png",
        "depth": "*.depth.png",
        "depth_scale": 0.001,
        "splits": {"train": ":", "test": ":"},
    }
    raw["data"]["sparsify"] = {"kind": "none"}
    return raw


def test_maps_without_depth_train_as_images_and_are_counted(folder_config, tmp_path):
    from mf_jax.evaluation.evaluate import evaluate

    assert train.train(resolved(folder_config, "train.steps=9"), tmp_path / "run") == 9
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(entry["missing/depth"] for entry in entries) == 24  # 72 examples are 8 epochs of 9 records
    assert all(np.isfinite(value) for entry in entries for value in entry.values())
    results = evaluate(str(tmp_path / "run"), None, ["evaluate.steps=1"], None)
    assert results["skipped_all_missing"] == 3
    assert results["moge_affine"]["images"] == 6
    assert np.isfinite(results["moge_affine"]["abs_rel"])


def test_unreadable_files_are_left_out_of_the_evaluation_and_counted(folder_config, tmp_path):
    from mf_jax.evaluation.evaluate import evaluate

    train.train(resolved(folder_config, "train.steps=1"), tmp_path / "run")
    root = pathlib.Path(folder_config["data"]["source"]["root"])
    for i in (4, 7):
        (root / f"{i}.color.png").write_bytes((root / f"{i}.color.png").read_bytes()[:100])
    settings = ["evaluate.steps=1", "evaluate.batch=2"]
    results = evaluate(str(tmp_path / "run"), None, settings, None)
    assert results["unreadable_files"] == 2
    assert (results["skipped_all_missing"], results["moge_affine"]["images"]) == (3, 4)
    with pytest.raises(ValueError, match=r"2 records cannot be read, the first is .*4\.color\.png"):
        evaluate(str(tmp_path / "run"), None, [*settings, "data.source.max_unreadable=1"], None)
