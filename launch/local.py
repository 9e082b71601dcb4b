r"""Local launcher: several training processes on one machine, on its GPUs or on simulated devices of its CPU.

    python launch/local.py --processes=2 --devices=4 --platform=cpu -- --config=configs/quickstart.py --workdir=runs/two

--dry-run prints what would be run. --devices is of each process: with --platform=gpu process i takes the GPUs
i * devices and following, out of CUDA_VISIBLE_DEVICES where that is set. For all GPUs in one process: launch/node.sh.

Output lines begin with the number of their process. If a process fails the others are stopped, and all start again from
the latest checkpoint, --restarts times; not after a mistake in the command (status 2). SIGTERM, Ctrl-C and a closed
terminal or output are passed on as SIGTERM: the run saves and ends, and this program with it. If this program is killed
the run finds its output closed, and does the same.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

LAUNCH = pathlib.Path(__file__).resolve().parent
# From SIGTERM to SIGKILL for the others after a process has failed: they would wait for it for ever.
GRACE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Process:
    """A command, and the variables that are added to this program's environment for it."""

    command: tuple[str, ...]
    environment: dict[str, str]


def plan(processes: int, devices: int, platform: str, train: Sequence[str], port: int) -> list[Process]:
    """The processes of one run. The coordinator is the first, at `port`.

    Raises:
      ValueError: numbers below one, missing arguments of train, fewer GPUs in CUDA_VISIBLE_DEVICES than needed.
    """
    for option, value in (("--processes", processes), ("--devices", devices)):
        if value < 1:
            raise ValueError(f"{option} is {value}; give 1 or more")
    if not all(any(a.startswith(option) for a in train) for option in ("--config=", "--workdir=")):
        raise ValueError("train needs --config=FILE and --workdir=DIR; write them after --")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(processes * devices)))
    gpus = visible.split(",")
    if platform == "gpu" and len(gpus) < processes * devices:
        raise ValueError(
            f"--processes={processes} with --devices={devices} need {processes * devices} GPUs; "
            f"CUDA_VISIBLE_DEVICES is {visible}"
        )
    result = []
    for i in range(processes):
        if platform == "gpu":
            environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * devices : (i + 1) * devices])}
        else:
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
            environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
        command = (
            *("bash", "-c", f'source {shlex.quote(str(LAUNCH / "xla_flags.sh"))} {platform} && exec "$@"', "bash"),
            *(sys.executable, "-m", "mf_jax", "train", *train),
            *(f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={i}"),
        )
        result.append(Process(command, environment))
    return result


def run(processes: Sequence[Process], stop_requests: list[int]) -> int:
    """Runs processes and waits until all have ended.

    Args:
      stop_requests: the signals that tell this program to stop; it grows. Each is passed on as one SIGTERM, but those
        of a closed terminal as one together: a second SIGTERM would end the run unsaved.

    Returns:
      0 if all ended with 0, else the status of the first that did not (128 + N for signal N).
    """
    running = {}
    for i, process in enumerate(processes):
        running[i] = subprocess.Popen(
            process.command,
            env=os.environ | process.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # else Ctrl-C would reach it twice: from the terminal and from here
        )
    printers = [
        threading.Thread(target=_print_lines, args=(i, child.stdout, stop_requests)) for i, child in running.items()
    ]
    for printer in printers:
        printer.start()
    result, passed_on, kill_at = 0, 0, float("inf")
    while running:
        hangups = stop_requests.count(signal.SIGHUP)
        for _ in range(max(len(stop_requests) - hangups, min(hangups, 1)) - passed_on):
            passed_on += 1
            for child in running.values():
                child.terminate()
        if time.monotonic() > kill_at:
            for child in running.values():
                _kill_group(child)
        for i, child in list(running.items()):
            if child.poll() is None:
                continue
            del running[i]
            _kill_group(child)  # data workers that it left
            status = child.returncode if child.returncode >= 0 else 128 - child.returncode
            if status and not result:
                result = status
                text = f"local.py: process {i} ended with status {status}; stopping the others\n"
                _print(text, sys.stderr, stop_requests)
                kill_at = time.monotonic() + GRACE_SECONDS
                for other in running.values():
                    other.terminate()
        time.sleep(0.1)
    for printer in printers:
        printer.join()
    return result


def _kill_group(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _print_lines(number: int, lines: TextIO, stop_requests: list[int]) -> None:
    with lines:
        for line in lines:
            _print(f"[{number}] {line}", sys.stdout, stop_requests)


def _print(text: str, stream: TextIO, stop_requests: list[int]) -> None:
    """Prints; a failed write counts as SIGHUP, and redirects the stream to /dev/null."""
    try:
        print(text, end="", file=stream, flush=True)
    except OSError:
        stop_requests.append(signal.SIGHUP)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), stream.fileno())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, the status of the process that failed first, or 2 after a mistake in the arguments."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--platform", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--restarts", type=int, default=3, help="after a failure (default: 3)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("train", nargs="*", metavar="-- ARGUMENT", help="arguments of train")
    given = parser.parse_args(argv)
    stop_requests: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else under nohup
            signal.signal(number, lambda number, frame: stop_requests.append(number))
    attempt = 0
    while True:
        try:
            processes = plan(given.processes, given.devices, given.platform, given.train, _free_port())
        except ValueError as error:
            print(f"local.py: {error}", file=sys.stderr)
            return 2
        if given.dry_run:
            for process in processes:
                settings = [f"{name}={shlex.quote(value)}" for name, value in process.environment.items()]
                print(*settings, shlex.join(process.command))
            return 0
        status = run(processes, stop_requests)
        attempt += 1
        if status not in (0, 2) and not stop_requests and attempt <= given.restarts:
            text = f"local.py: starting again from the latest checkpoint ({attempt} of {given.restarts})\n"
            _print(text, sys.stderr, stop_requests)
        if status in (0, 2) or stop_requests or attempt > given.restarts:
            return status


if __name__ == "__main__":
    sys.exit(main())
