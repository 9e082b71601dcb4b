"""A closed terminal and a broken stdout or stderr, by the command line: the run saves, ends with status 0, goes on."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

STEPS = 2000


@pytest.fixture(scope="module")
def start(make_tiny_config, tmp_path_factory):
    """A function (workdir, arguments ..., **of Popen) -> the train verb, started."""
    folder = tmp_path_factory.mktemp("config")
    config = make_tiny_config() | {"checkpoint": {"every": STEPS}}
    config["train"] |= {"steps": STEPS, "compilation_cache": str(folder / "cache")}
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # what is left in a buffer can fail at exit
    (folder / "tiny.py").write_text(f"def get_config():\n    return {config!r}\n")
    started = []

    def run(workdir, *arguments, through=(), **popen):
        command = [sys.executable, "-m", "mf_jax", "train", f"--config={folder / 'tiny.py'}", f"--workdir={workdir}"]
        command = [*through, *command]
        started.append(subprocess.Popen([*command, *arguments], env=environment, **popen))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def checkpoints(workdir):
    return [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


def wait_for_a_step(process, workdir):
    deadline = time.monotonic() + 240
    log = pathlib.Path(workdir) / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


# Programs that start the command after them: they do what Popen would do in a fork, of which jax warns.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
WITH_TERMINAL = (sys.executable, "-c", TAKE_TERMINAL)
NOHUP = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")


def test_a_run_whose_reader_has_gone_saves_and_goes_on(start, tmp_path):
    """As in `train | head -1`. The last word is on stderr."""
    run = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert f"from step 0 to {STEPS}" in run.stdout.readline()
    run.stdout.close()
    errors = run.stderr.read()
    assert run.wait(240) == 0, errors
    stopped = int(re.search(rf"stopped by closed output at step (\d+) of {STEPS}, checkpoint saved", errors)[1])
    assert checkpoints(tmp_path) == [stopped] and 0 < stopped < STEPS
    assert "Traceback" not in errors and "Exception" not in errors

    end = stopped + 2
    run = start(tmp_path, f"--config.train.steps={end}", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = run.stdout.read()
    assert run.wait(240) == 0 and f"from step {stopped} to {end}" in output, output
    assert end in checkpoints(tmp_path)


def test_a_full_disk_under_the_output(start, tmp_path):
    with open("/dev/full", "w") as full:
        run = start(tmp_path, stdout=full, stderr=full)
    assert run.wait(240) == 0
    assert [0 < step < STEPS for step in checkpoints(tmp_path)] == [True]


def test_a_closed_terminal(start, tmp_path):
    """Its system sends SIGHUP, and takes no output any more."""
    controller, terminal = os.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    run = start(tmp_path, through=WITH_TERMINAL, start_new_session=True, **streams)
    os.close(terminal)
    wait_for_a_step(run, tmp_path)
    os.close(controller)
    assert run.wait(240) == 0
    assert [0 < step < STEPS for step in checkpoints(tmp_path)] == [True]


def test_sighup_ends_a_run_but_not_under_nohup(start, tmp_path):
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    short = "--config.train.steps=40"
    ignoring = start(tmp_path / "nohup", short, through=NOHUP, **output)
    wait_for_a_step(ignoring, tmp_path / "nohup")
    ignoring.send_signal(signal.SIGHUP)
    text = ignoring.stdout.read()
    assert ignoring.wait(240) == 0 and "stopped" not in text, text
    assert checkpoints(tmp_path / "nohup") == [40]

    run = start(tmp_path / "run", **output)
    wait_for_a_step(run, tmp_path / "run")
    run.send_signal(signal.SIGHUP)
    text = run.stdout.read()
    assert run.wait(240) == 0, text
    stopped = int(re.search(r"stopped by SIGHUP at step (\d+)", text)[1])
    assert checkpoints(tmp_path / "run") == [stopped] and 0 < stopped < STEPS


def test_a_mistake_keeps_its_status_if_nobody_reads_the_message(start, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    run = start(tmp_path, "--config.nonsense=1", stdout=writer, stderr=writer)
    os.close(writer)
    assert run.wait(240) == 2
