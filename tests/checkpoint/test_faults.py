"""Runs and verbs that meet a fault: a damaged checkpoint, a full disk, weights that are not finite, foreign code."""

import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mf_jax.__main__ import main
from mf_jax.checkpoint import resume
from mf_jax.checkpoint.manager import Checkpoints, SaveFailed
from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config.loading import load
from mf_jax.config.sections import CheckpointConfig
from mf_jax.interop.import_weights import import_weights
from mf_jax.parallel.processes import ProcessGroup

TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config_file(make_tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(f"def get_config():\n    return {make_tiny_config()!r}\n")
    return path


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    """Six steps, checkpoints of 3 and 6."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", f"--config={config_file}", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "out"
    assert main(["export", f"--checkpoint={trained}", f"--output={output}"]) == 0
    return output


def steps_of(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def digests(workdir, capsys):
    capsys.readouterr()
    assert main(["show", f"--checkpoint={workdir}"]) == 0
    return re.findall(r"^(?:step|\w+ sha256): .*", capsys.readouterr().out, re.MULTILINE)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(checkpoint):
    path = largest(checkpoint / "opt_state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# A damaged checkpoint


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(config_file, trained, run, capsys):
    """And ends bitwise where it would have; the damaged one neither blocks its step nor counts among those kept."""
    expected = digests(trained, capsys)
    truncate(run / "checkpoints" / "6")
    (run / "checkpoints" / "9").mkdir()
    arguments = [f"--config={config_file}", f"--workdir={run}", "--config.checkpoint.keep=2"]
    assert main(["train", *arguments]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"WARNING: checkpoint 9 in \S+ is damaged \(_CHECKPOINT_METADATA is missing\).* from step 3", shown
    )
    assert re.search(r"WARNING: checkpoint 6 in \S+ is damaged \(opt_state/\S+ is truncated.*now damaged-6,", shown)
    assert "from step 3 to 6" in shown
    assert steps_of(run) == ["3", "6", "damaged-6", "damaged-9"]
    assert digests(run, capsys) == expected
    shutil.rmtree(run / "checkpoints" / "6" / "ema")
    assert main(["train", *arguments]) == 0
    assert steps_of(run) == ["3", "6", "damaged-6", "damaged-6-2", "damaged-9"]


def test_damage_that_only_restoring_finds(config_file, trained, run, capsys):
    """In a process of its own: orbax leaves threads of what it was reading."""
    expected = digests(trained, capsys)
    path = largest(run / "checkpoints" / "6" / "ema" / "ocdbt.process_0")
    content = bytearray(path.read_bytes())
    content[:64] = bytes(64)
    path.write_bytes(content)
    command = [sys.executable, "-m", "mf_jax", "train", f"--config={config_file}", f"--workdir={run}"]
    # With more steps: at the last one of them there is nothing to restore.
    command.append("--config.train.steps=7")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(TESTS.parent)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"WARNING: checkpoint 6 in \S+ is damaged.*training goes on from step 3", done.stdout)
    assert "from step 3 to 7" in done.stdout
    assert steps_of(run) == ["6", "7", "damaged-6"]
    capsys.readouterr()
    assert main(["show", f"--checkpoint={run}", "--step=6"]) == 0
    shown = capsys.readouterr().out
    assert all(line in shown for line in expected)


def test_where_no_checkpoint_can_be_read_nothing_is_trained_or_moved(config_file, run, capsys):
    for step in ("3", "6"):
        truncate(run / "checkpoints" / step)
    assert main(["train", f"--config={config_file}", f"--workdir={run}"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"no checkpoint in \S+ can be read:\n  6: opt_state/\S+ is trunc.*\n  3: opt_state", error)
    assert steps_of(run) == ["3", "6"]


def test_another_config_is_no_damage_and_is_not_passed_over(config_file, run, capsys):
    truncate(run / "checkpoints" / "6")
    assert main(["train", f"--config={config_file}", f"--workdir={run}", "--config.seed=1"]) == 2
    assert "seed: 0 in the checkpoint, 1 now" in capsys.readouterr().err
    assert steps_of(run) == ["3", "6"]


@pytest.mark.parametrize("verb", ["sample", "evaluate", "show", "export"])
def test_verbs_name_a_damaged_checkpoint_and_the_others(run, tmp_path, capsys, verb):
    arguments = {
        "sample": [f"--output-dir={tmp_path / 'out'}", "--steps=1"],
        "evaluate": ["--config.evaluate.steps=1", "--config.evaluate.images=1"],
        "export": [f"--output={tmp_path / 'out'}"],
    }
    command = [verb, f"--checkpoint={run}", *arguments.get(verb, [])]
    for damage in (truncate, lambda checkpoint: (checkpoint / "config" / "metadata").write_text("{")):
        damage(run / "checkpoints" / "6")
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"checkpoint {run}/checkpoints/6 is damaged: " in error and "--step=3 (there are [3])" in error
        assert "Traceback" not in error
    assert main([*command, "--step=3"]) == 0


def test_the_record_of_an_export_that_cannot_be_read(exported, tmp_path, capsys):
    for number, content in enumerate((b"{", b"[]", b"{}", b"\xff")):
        copy = shutil.copytree(exported, tmp_path / str(number))
        (copy / "training.json").write_bytes(content)
        assert main(["sample", f"--checkpoint={copy}"]) == 2
        assert "training.json is not the record of an export" in capsys.readouterr().err


def test_process_0_decides_for_all(config_file, run):
    """The others take its word, look at nothing and move nothing."""

    class Other(ProcessGroup):
        is_main = False

        def broadcast(self, value):
            assert value is None
            return 3

    truncate(run / "checkpoints" / "6")
    assert resume.find(run, load(str(config_file)), Other()) == 3
    assert steps_of(run) == ["3", "6"]


# A disk that takes no more


@pytest.fixture
def small_files():
    """No file may grow beyond 20 kB: what a full disk is to a process that may not mount one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_leaves_nothing_and_says_so(tmp_path, small_files):
    tree = {"params": {"w": jnp.asarray(np.random.default_rng(0).standard_normal(50_000), jnp.float32)}}
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"params": {"w": jnp.zeros(3)}}, {}, {"seed": 0})
    checkpoints.save(2, tree, {}, {"seed": 0})
    with pytest.raises(
        SaveFailed, match=rf"{tmp_path} could not be written.*200,000 bytes, [\d,]+ are free: .*File too large"
    ):
        checkpoints.wait()
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_training_ends_with_status_1_where_a_save_fails(config_file, run):
    """A mistake would be 2, after which launchers do not start again. What a killed run left is removed as well."""
    (run / "checkpoints" / "5.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    command = f"{sys.executable} -m mf_jax train --config={config_file} --workdir={run} --config.train.steps=7"
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    limited = ["bash", "-c", f"ulimit -S -f 100; exec {command}"]  # kB
    done = subprocess.run(limited, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr[-3000:]
    assert re.search(rf"^mf_jax train: error: a checkpoint in {run}/checkpoints could not be writ", done.stderr, re.M)
    # tensorstore's threads may complain, after orbax has gone, that its event loop is closed: no traceback of ours.
    assert "/mf_jax/" not in re.sub(r"^mf_jax train: error: .*$", "", done.stderr, flags=re.MULTILINE)
    assert steps_of(run) == ["3", "6"]
    done = subprocess.run(command.split(), capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "from step 6 to 7" in done.stdout


# Weights that are not finite


def poison(workdir, step=6):
    """One NaN in the average, in a checkpoint that is otherwise the one that was there."""
    saved = SavedModel(workdir, step)
    from mf_jax.training import train_state

    state = vars(train_state.abstract(saved.model, saved.config))
    checkpoints = Checkpoints(workdir / "checkpoints")
    names = ("params", "ema", "opt_state")
    items = checkpoints.restore({name: state[name] for name in names}, step)
    position, config = checkpoints.iterator(step), checkpoints.config(step)
    checkpoints.close()
    kernel = items["ema"]["backbone"]["trunk"]["q"]["kernel"]
    items["ema"]["backbone"]["trunk"]["q"]["kernel"] = kernel.at[(0,) * kernel.ndim].set(jnp.nan)
    shutil.rmtree(workdir / "checkpoints" / str(step))
    checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig())
    checkpoints.save(step, items, position, config)
    checkpoints.close()


def test_training_stops_at_an_average_that_is_not_finite(config_file, run, capsys):
    poison(run)
    assert main(["train", f"--config={config_file}", f"--workdir={run}", "--config.train.steps=8"]) == 1
    assert "stopped: ema_norm is nan at step 7" in capsys.readouterr().err
    assert steps_of(run) == ["3", "6"]


def test_weights_that_are_not_finite_are_refused_where_they_are_used(config_file, run, tmp_path, capsys):
    poison(run)
    message = rf"ema of {run}, step 6, has values that are not finite, in backbone/trunk/q/kernel; .*--step=3"
    for command in (
        ["sample", f"--checkpoint={run}", "--steps=1", f"--output-dir={tmp_path / 'out'}"],
        ["evaluate", f"--checkpoint={run}", "--config.evaluate.steps=1"],
        ["export", f"--checkpoint={run}", f"--output={tmp_path / 'export'}"],
        ["train", f"--config={config_file}", f"--workdir={tmp_path / 'new'}", f"--config.init.checkpoint={run}"],
    ):
        assert main(command) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists() and not (tmp_path / "export").exists()
    SavedModel(run).params("params")
    assert main(["sample", f"--checkpoint={run}", "--steps=1", "--step=3", f"--output-dir={tmp_path / 'out'}"]) == 0


def test_an_export_with_an_infinity_is_refused(exported, tmp_path, capsys):
    copy = shutil.copytree(exported, tmp_path / "copy")
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("k.kernel"))
    tensors[name].flat[-1] = np.inf
    safetensors.numpy.save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert main(["sample", f"--checkpoint={copy}", "--steps=1", f"--output-dir={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert f"{copy} has values that are not finite, in {name.replace('.', '/')}; export another step" in error


# Code in a model directory


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported."""
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    yield tmp_path / "sprung"
    sys.modules.pop("toy.trap", None)


def set_trap(config):
    section = dict(config["modalities"]["depth"])
    config["modalities"]["trap"] = {
        "kind": "toy.trap", "position": 7, "patch": 8, "prediction": "v", "noise": section["noise"]
    }  # fmt: skip


def test_a_model_directory_runs_no_code_unless_it_is_trusted(run, exported, trap, tmp_path, capsys):
    copy = shutil.copytree(exported, tmp_path / "copy")
    rewrite(copy / "training.json", lambda record: set_trap(record["config"]))
    rewrite(run / "checkpoints" / "6" / "config" / "metadata", set_trap)
    message = "modalities.trap.kind is 'toy.trap' in the config that comes with the model"
    for directory in (run, copy):
        for verb, more in (
            ("sample", [f"--output-dir={tmp_path / 'out'}"]),
            ("evaluate", []),
            ("show", []),
            ("export", [f"--output={tmp_path / 'out'}"]),
        ):
            if verb == "show" and directory is copy:
                continue
            assert main([verb, f"--checkpoint={directory}", *more]) == 2
            error = capsys.readouterr().err
            assert message in error and "--trust-code" in error
        assert not trap.exists()
    assert SavedModel(copy, trust_code=True).model.modalities["trap"].position == 7
    assert trap.exists()


def test_training_imports_what_its_own_config_names_and_nothing_else(config_file, run, trap, tmp_path, capsys):
    rewrite(run / "checkpoints" / "6" / "config" / "metadata", set_trap)
    assert main(["train", f"--config={config_file}", f"--workdir={run}", "--config.train.steps=8"]) == 2
    assert "modalities.trap.kind: 'toy.trap' in the checkpoint, None now" in capsys.readouterr().err
    new = [f"--config={config_file}", f"--workdir={tmp_path / 'new'}", f"--config.init.checkpoint={run}"]
    assert main(["train", *new]) == 2
    assert "modalities.trap.kind is 'toy.trap'" in capsys.readouterr().err
    assert not trap.exists()


# Names of directories


@pytest.mark.parametrize("name", ["exp[lr=1e-3]", "a*b", "a?b", "a]", "a\\b"])
def test_a_workdir_that_orbax_takes_for_a_pattern_is_refused_before_training(config_file, tmp_path, capsys, name):
    workdir = tmp_path / name
    assert main(["train", f"--config={config_file}", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    found = [character for character in "*?[]\\" if character in name]
    assert f"{workdir} has {' and '.join(found)} in its path" in error
    assert not workdir.exists()
    with pytest.raises(ValueError, match="in its path"):
        import_weights("absent.safetensors", {}, workdir)


def test_reading_below_such_names(trained, exported, tmp_path, capsys):
    """A copy in brackets can be read; where orbax would read another directory's files, it is refused."""
    copy = shutil.copytree(trained, tmp_path / "exp[lr=1e-3]")
    assert digests(copy, capsys) == digests(trained, capsys)
    copy = shutil.copytree(trained, tmp_path / "a\\b")
    assert main(["sample", f"--checkpoint={copy}"]) == 2
    assert "has \\ in its path" in capsys.readouterr().err
    copy = shutil.copytree(exported, tmp_path / "b*[c]\\")
    jax.tree.map(np.testing.assert_array_equal, SavedModel(copy).params(), SavedModel(trained).params())
