"""Stopping and going on, by the command line: killed, terminated or never stopped, a run ends bitwise the same."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

STEPS = 200
CONFIG = """
def get_config():
    return dict(
        data=dict(
            source=dict(kind="procedural", train=40, validation=4, test=4),
            resolution=(16, 16), sparsify=dict(kind="random", fraction=0.3), augment=dict(flip=True),
            workers={workers},
        ),
        text=dict(max_bytes=96, group=8, width=16),
        modalities=dict(
            image=dict(kind="image", position=0, patch=8, prediction="x", noise=dict(kind="logit_normal")),
            depth=dict(kind="depth", position=1, patch=8, prediction="x", decoder_blocks=1,
                       noise=dict(kind="plateau_logit_normal")),
        ),
        modes=dict(
            joint=dict(probability=0.6),
            i2d=dict(probability=0.2, clean=("image",)),
            d2i=dict(probability=0.2, clean=("depth",)),
        ),
        model=dict(width=32, layers=2, heads=2, kv_heads=1),
        train=dict(steps=STEPS, batch=8, log_every=1),
        checkpoint=dict(every=20),
        optimizer=dict(kind="{optimizer}", learning_rate=1e-3, warmup=2),
    )
""".replace("STEPS", str(STEPS))


def command(verb, *arguments):
    return [sys.executable, "-m", "mf_jax", verb, *arguments]


def environment():
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}


def train(config, workdir, **kwargs):
    arguments = command("train", f"--config={config}", f"--workdir={workdir}")
    return subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def write_config(folder, workers, optimizer="adamw"):
    path = folder / f"tiny_{workers}.py"
    path.write_text(CONFIG.replace("{workers}", str(workers)).replace("{optimizer}", optimizer))
    return path


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def steps_logged(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def checkpoint_steps(workdir):
    folder = pathlib.Path(workdir) / "checkpoints"
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []


def wait_for_checkpoint(process, workdir):
    deadline = time.monotonic() + 240
    while not checkpoint_steps(workdir):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def losses(workdir):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    timing = (
        "seconds",
        "data_wait_seconds",
        "step_seconds/",
        "images_per_second",
        "tflops_",
        "goodput/",
        "wall_seconds",
    )
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(timing)} for line in lines]


def digests(workdir):
    shown = subprocess.run(
        command("show", f"--checkpoint={workdir}"), env=environment(), capture_output=True, text=True, check=True
    ).stdout
    found = [line for line in shown.splitlines() if "sha256" in line or line.startswith("step:")]
    assert len(found) == 4 and found[0] == f"step: {STEPS}"
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """By optimizer, the losses and digests of a run that was never stopped."""

    @functools.cache
    def run(optimizer):
        folder = tmp_path_factory.mktemp("straight")
        finish(train(write_config(folder, 0, optimizer), folder / "run"))
        assert steps_logged(folder / "run") == list(range(1, STEPS + 1))
        return losses(folder / "run"), digests(folder / "run")

    return run


@pytest.mark.parametrize(
    ("optimizer", "how"),
    [
        ("adamw", signal.SIGKILL),
        ("adamw", signal.SIGTERM),
        ("adamw", signal.SIGINT),
        ("muon", signal.SIGKILL),
    ],
)
def test_a_stopped_run_goes_on_bitwise(straight, tmp_path, optimizer, how):
    """Stopped mid-way, and resumed with another number of data workers."""
    expected = straight(optimizer)
    workdir = tmp_path / "run"
    process = train(write_config(tmp_path, 0, optimizer), workdir)
    wait_for_checkpoint(process, workdir)
    process.send_signal(how)
    output = process.communicate(timeout=120)[0]
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0, output
        assert f"stopped by {how.name}" in output and "Traceback" not in output
    reached = max(checkpoint_steps(workdir))
    assert 0 < reached < STEPS

    output = finish(train(write_config(tmp_path, 1, optimizer), workdir))
    assert f"from step {reached} to {STEPS}" in output
    assert losses(workdir) == expected[0]
    assert digests(workdir) == expected[1]
    assert len(list((workdir / "compilation_cache").glob("jit_train_step-*-cache"))) == 1  # read, not compiled again


def test_a_finished_run_is_left_alone(tmp_path):
    config = write_config(tmp_path, 0)
    short = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.train.steps=1"]
    subprocess.run(command("train", *short), env=environment(), check=True, capture_output=True)
    again = subprocess.run(command("train", *short), env=environment(), check=True, capture_output=True, text=True)
    assert "nothing to train" in again.stdout


def test_a_workdir_in_use_is_refused(tmp_path):
    config, workdir = write_config(tmp_path, 0), tmp_path / "run"
    first = train(config, workdir)
    try:
        wait_for_checkpoint(first, workdir)
        second = train(config, workdir)
        output = second.communicate(timeout=120)[0]
        assert second.returncode == 2
        assert f"workdir {workdir} is in use by another run" in output and "Traceback" not in output
    finally:
        first.kill()
        first.communicate()
