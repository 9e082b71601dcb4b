"""Processes that the scripts start: who is stopped when, by which signal, and with which status all this ends."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
TRAIN = ("--config=a", "--workdir=b")

# A stand-in for training: it saves and ends with 0 when SIGTERM comes, and says when it is ready for that.
TRAINING = """
import pathlib, signal, sys, time
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
print("training", flush=True)
while not received:
    time.sleep(0.02)
time.sleep(0.3)
print("saved after", len(received), "signal", flush=True)
"""


def _load():
    spec = importlib.util.spec_from_file_location("launch_local", LAUNCH / "local.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


local = _load()


def _python(code):
    return local.Process((sys.executable, "-c", code), {})


def _wait_for(path, text, count=1):
    deadline = time.monotonic() + 30
    while not path.exists() or path.read_text().count(text) < count:
        assert time.monotonic() < deadline, f"{path} lacks {text!r}"
        time.sleep(0.02)


def test_local_runs_all_to_their_end(capsys):
    environment = [{"NUMBER": str(i)} for i in range(3)]
    code = "import os, sys; print('is', os.environ['NUMBER']); print('told', file=sys.stderr)"
    assert local.run([local.Process((sys.executable, "-c", code), e) for e in environment], []) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == sorted(f"[{i}] {what}" for i in range(3) for what in (f"is {i}", "told"))


def test_local_stops_the_others_when_one_fails(capsys):
    start = time.monotonic()
    failing = "import time; time.sleep(1); raise SystemExit(3)"
    assert local.run([_python(TRAINING), _python(failing), _python(TRAINING)], []) == 3
    assert time.monotonic() - start < 8
    captured = capsys.readouterr()
    assert "process 1 ended with status 3; stopping the others" in captured.err
    assert captured.out.count("saved after 1 signal") == 2


def test_local_kills_what_does_not_stop(capsys, monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.5)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    killed = "import os, time; time.sleep(1); os.kill(os.getpid(), 9)"
    start = time.monotonic()
    assert local.run([_python(killed), _python(stubborn)], []) == 128 + 9
    assert time.monotonic() - start < 20
    assert "process 0 ended with status 137" in capsys.readouterr().err


def test_local_leaves_nothing_behind_of_a_process_that_ended(capsys):
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    assert local.run([_python(orphan)], []) == 0  # the child holds the output open
    assert time.monotonic() - start < 20


def _local_program(tmp_path, code, *arguments, through=(), **popen):
    """local.py as a program, its processes running `code` instead of training."""
    replaced = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("launch_local", {str(LAUNCH / "local.py")!r})
local = sys.modules["launch_local"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)
plan = local.plan
local.plan = lambda *given: [local.Process((sys.executable, "-c", {code!r}), p.environment) for p in plan(*given)]
sys.exit(local.main(sys.argv[1:]))
"""
    with (tmp_path / "out").open("w") as out:
        command = [
            *through,
            sys.executable,
            "-c",
            replaced,
            "--processes=2",
            "--platform=cpu",
            *arguments,
            "--",
            *TRAIN,
        ]
        return subprocess.Popen(command, **({"stdout": out} | popen), stderr=subprocess.STDOUT, cwd=tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on_and_a_clean_end_is_clean(tmp_path, number):
    program = _local_program(tmp_path, TRAINING)
    _wait_for(tmp_path / "out", "training", 2)
    program.send_signal(number)
    assert program.wait(timeout=30) == 0
    printed = (tmp_path / "out").read_text()
    assert sorted(printed.splitlines()[-2:]) == ["[0] saved after 1 signal", "[1] saved after 1 signal"]


# It prints all the time, and leaves the number of signals in a file: nobody may read what it prints at the end.
TALKING = TRAINING.replace("time.sleep(0.02)", "time.sleep(0.02); print('step', flush=True)")
TALKING += "import os; pathlib.Path(f'saved{os.getpid()}').write_text(str(len(received)))"


def _saved(tmp_path):
    return [path.read_text() for path in tmp_path.glob("saved*")]


def test_local_whose_output_closes_saves(tmp_path):
    reader, writer = os.pipe()
    program = _local_program(tmp_path, TALKING, stdout=writer)
    os.close(writer)
    with open(reader) as lines:
        seen = set()
        while not {"[0] step\n", "[1] step\n"} <= seen:
            seen.add(next(lines))
    assert program.wait(timeout=30) == 0
    assert _saved(tmp_path) == ["1", "1"]


def test_local_whose_terminal_closes_saves(tmp_path):
    """Which may bring several hangups; two SIGTERM would end training unsaved."""
    program = _local_program(tmp_path, TALKING)
    _wait_for(tmp_path / "out", "training", 2)
    program.send_signal(signal.SIGHUP)
    time.sleep(0.15)
    program.send_signal(signal.SIGHUP)
    assert program.wait(timeout=30) == 0
    assert _saved(tmp_path) == ["1", "1"]


def test_local_under_nohup_goes_on(tmp_path):
    program = _local_program(tmp_path, TALKING, through=("sh", "-c", 'trap "" HUP; exec "$@"', "sh"))
    _wait_for(tmp_path / "out", "training", 2)
    program.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert program.poll() is None and _saved(tmp_path) == []
    program.terminate()
    assert program.wait(timeout=30) == 0
    assert _saved(tmp_path) == ["1", "1"]


def test_local_starts_again_after_a_failure_but_not_after_a_mistake(tmp_path):
    fails_once = "import os, pathlib, sys; p = pathlib.Path('tried'); sys.exit(0 if p.exists() else p.touch() or 1)"
    slowly = f"import time; time.sleep(0.3 * len(__import__('os').environ['JAX_PLATFORMS']) / 3); {fails_once}"
    program = _local_program(tmp_path, slowly, "--restarts=1")
    assert program.wait(timeout=60) == 0
    assert "starting again from the latest checkpoint (1 of 1)" in (tmp_path / "out").read_text()
    program = _local_program(tmp_path, "raise SystemExit(2)", "--restarts=3")
    assert program.wait(timeout=60) == 2
    assert "starting again" not in (tmp_path / "out").read_text()
    program = _local_program(tmp_path, "raise SystemExit(1)", "--restarts=2")
    assert program.wait(timeout=60) == 1
    assert (tmp_path / "out").read_text().count("starting again") == 2


def _training_stand_in(scripts):
    scripts.stand_in("python", f"exec {sys.executable} -c '{TRAINING}' > '{scripts.folder}/out' 2>&1")


@pytest.mark.parametrize(("name", "status"), [("worker.sh", 143), ("node.sh", 0)])
def test_sigterm_reaches_training_once(scripts, name, status):
    """A pod that was told to stop has not finished, whereas on one machine a clean stop is a clean end."""
    _training_stand_in(scripts)
    program = scripts.start(name, "cpu", *TRAIN)
    _wait_for(scripts.folder / "out", "training")
    program.terminate()
    program.communicate(timeout=30)
    assert program.returncode == status
    assert (scripts.folder / "out").read_text().endswith("saved after 1 signal\n")
    assert len(scripts.calls) == 1


@pytest.mark.parametrize("status", [0, 1, 2, 139])
def test_worker_ends_with_the_status_of_training(scripts, status):
    scripts.stand_in("python", f"exit {status}")
    assert scripts.run("worker.sh", "tpu", *TRAIN).returncode == status
    assert scripts.calls == ["python -m mf_jax train --config=a --workdir=b --distributed=auto"]


@pytest.mark.parametrize(("status", "starts"), [(0, 1), (1, 4), (2, 1), (137, 4)])
def test_node_starts_again_after_a_crash_but_not_after_a_mistake(scripts, status, starts):
    scripts.stand_in("python", f"exit {status}")
    assert scripts.run("node.sh", "gpu", *TRAIN).returncode == status
    assert scripts.calls == ["python -m mf_jax train --config=a --workdir=b"] * starts


def _in_job(scripts):
    """The stand-ins of a Slurm job; the script runs in a directory with launch/ and .venv, as after sbatch."""
    (scripts.folder / "launch").symlink_to(LAUNCH)
    (scripts.folder / ".venv").mkdir()
    (scripts.folder / ".venv" / "bin").symlink_to(scripts.bin)
    scripts.environment["SLURM_JOB_ID"] = "17"
    scripts.stand_in("scontrol", "[[ $1 != show ]] || echo '   PreemptEligibleTime=2026-01-01 PreemptTime=None'")


def test_slurm_job_that_finishes_or_fails_is_not_requeued(scripts):
    _in_job(scripts)
    for status in (0, 1):
        scripts.log.unlink(missing_ok=True)
        scripts.stand_in("srun", f"exit {status}")
        assert scripts.run("slurm.sh", "--in-job", "2", *TRAIN).returncode == status
        assert scripts.calls == [
            "srun --kill-on-bad-exit=1 --cpu-bind=none .venv/bin/python -m mf_jax train --config=a --workdir=b "
            "--distributed=auto",
            "scontrol show job 17",
        ]


def test_slurm_job_ahead_of_its_time_limit_saves_and_is_requeued(scripts):
    _in_job(scripts)
    scripts.stand_in("srun", f"echo $$ > pid; exec {sys.executable} -c '{TRAINING}' > out")
    scripts.stand_in("scancel", 'kill -TERM "$(cat pid)"')
    program = scripts.start("slurm.sh", "--in-job", "2", *TRAIN)
    _wait_for(scripts.folder / "out", "training")
    program.terminate()
    program.communicate(timeout=30)
    assert program.returncode == 0
    assert (scripts.folder / "out").read_text().endswith("saved after 1 signal\n")
    assert scripts.calls[1:] == ["scancel --signal=TERM 17", "scontrol show job 17", "scontrol requeue 17"]


def test_slurm_job_that_is_preempted_is_requeued(scripts):
    _in_job(scripts)
    scripts.stand_in("scontrol", "[[ $1 != show ]] || echo '   PreemptTime=2026-01-01T00:00:00'")
    assert scripts.run("slurm.sh", "--in-job", "2", *TRAIN).returncode == 0
    assert scripts.calls[-1] == "scontrol requeue 17"
