"""How runs of two processes end: stopped, killed, failed, or never begun; and that they go on bitwise."""

import fcntl
import os
import pathlib
import random
import re
import signal
import time

import pytest

STEPS = 12
SOON = 30  # seconds to the end of all processes: waits of up to 3 s for the cause, and what a busy machine needs


def seconds_to_end(process):
    start = time.monotonic()
    process.popen.wait(120)
    return time.monotonic() - start


def wait_for_a_step(run, workdir, losses, after=0):
    deadline = time.monotonic() + 900
    while max(losses(workdir), default=0) <= after:
        assert run[0].popen.poll() is None and time.monotonic() < deadline, run[0].output[-3000:]
        time.sleep(0.002)


def data_workers(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_text()]


def test_a_run_that_is_stopped_and_killed_goes_on_bitwise(two, train, losses, digests, steps_of, tmp_path):
    """SIGTERM to process 1; kill -9 of its data worker; kill -9 of process 1; kill -9 of process 0; then to the end."""
    workdir = tmp_path / "run"
    run = train(workdir, "mesh.fsdp=8")
    wait_for_a_step(run, workdir, losses)
    run[1].popen.send_signal(signal.SIGTERM)
    outputs = run.wait()
    stopped = int(re.search(r"stopped by SIGTERM on process 1 at step (\d+) of 12, checkpoint saved", outputs[0])[1])
    assert steps_of(workdir)[-1] == stopped < STEPS
    assert "stopped" not in outputs[1] and "Traceback" not in "".join(outputs)

    # More steps than batches that the worker can have made before it is killed, and no checkpoint of them.
    run = train(workdir, "mesh.fsdp=8", "data.workers=1", "train.steps=1000", "checkpoint.every=1000")
    run[0].says(f"from step {stopped} to 1000")
    while not (workers := data_workers(run[1].popen.pid)):
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    outputs = run.wait(1)
    assert "data worker 0 died with exit code -9" in outputs[1] and "Traceback" in outputs[1]
    assert "process 1 ended the run: failed: RuntimeError: data worker 0 died" in outputs[0]
    assert "Traceback" not in outputs[0]

    for victim in (1, 0):
        run = train(workdir, "mesh.fsdp=8")
        run[0].says(f"from step {stopped} to 12")  # while they compile, and
        if victim == 1:  # between steps, where the other then waits in a collective
            wait_for_a_step(run, workdir, losses, after=stopped)
        run[victim].popen.kill()
        seconds = seconds_to_end(run[1 - victim])
        # At the end of process 0, which jax's service ends with, jax may be the quicker to end process 1: by abort.
        outputs = run.wait([1, -9] if victim else [-9, (1, -signal.SIGABRT)])
        assert re.search(rf"process {victim} on \S+ has died or cannot be reached", outputs[1 - victim])
        assert seconds < SOON

    train(workdir, "mesh.fsdp=8").wait()
    assert losses(workdir) == losses(two) and len(losses(two)) == STEPS
    found = digests(two)
    assert len(found) == 3 and digests(workdir) == found


def test_nan_ends_all_with_the_message_of_process_0(start):
    """It is told once, by process 0, though both have it."""
    outputs = start([str(pathlib.Path(__file__).with_name("failing.py"))]).wait(1)
    assert outputs[0].count("mf_jax train: stopped: loss is nan at step 7") == 1
    assert outputs[1].count("mf_jax train: process 0 ended the run: stopped: loss is nan at step 7") == 1
    assert "Traceback" not in "".join(outputs)


@pytest.mark.parametrize("closed", [0, 1])
def test_a_closed_output_does_not_keep_the_others_from_hearing_of_an_error(start, closed):
    reader, writer = os.pipe()
    os.close(reader)
    run = start([str(pathlib.Path(__file__).with_name("failing.py"))], outputs={closed: writer})
    os.close(writer)
    output = run.wait(1)[1 - closed]
    told = "process 0 ended the run: " if closed == 0 else ""
    assert output.count(f"mf_jax train: {told}stopped: loss is nan at step 7") == 1 and "Traceback" not in output


def test_both_stop_when_nobody_reads_one_of_them(train, steps_of, digests, tmp_path):
    """As when the launcher of process 0 has died. It prints no more; both have saved, at the same step."""
    reader, writer = os.pipe()
    run = train(tmp_path, "mesh.fsdp=8", outputs={0: writer})
    os.close(writer)
    with open(reader) as lines:
        next(line for line in lines if "from step 0 to 12" in line)
    outputs = run.wait()
    assert "ended the run" not in outputs[1] and "Traceback" not in outputs[1]
    assert len(steps_of(tmp_path)) == 1 and 0 < steps_of(tmp_path)[0] < STEPS
    assert len(digests(tmp_path)) == 3


def test_a_workdir_in_use_by_processes_that_slurm_started(train, tmp_path):
    """srun's variables in place of the flags. The port that jax takes follows from the job's number."""
    job = {"SLURM_JOB_ID": str(random.randrange(4096)), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    variables = [job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outputs = train(tmp_path, each=[["--distributed=auto"]] * 2, variables=variables).wait(2)
    assert f"mf_jax train: error: workdir {tmp_path} is in use by another run" in outputs[0]
    assert f"process 0 ended the run: error: workdir {tmp_path} is in use" in outputs[1]
    assert "Traceback" not in "".join(outputs)


def test_a_process_that_does_not_come_is_named_on_all(train, tmp_path):
    """Told by the flags of the other two that there are three."""
    for output in train(tmp_path, each=[["--processes=3", "--init-timeout=8"]] * 2).wait(1):
        assert re.search(r"1 of 3 processes did not arrive at localhost:\d+ within 8 s: process 2", output)
        assert "Traceback" not in output
