"""Runs of several processes on this machine, through the command line, with simulated CPU devices."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest

from mf_jax.__main__ import main

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # a third of the time to compile
PATIENCE = 900  # seconds until a run that does not end fails its test; a busy machine takes minutes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass
class Process:
    popen: subprocess.Popen
    path: pathlib.Path

    @property
    def output(self):
        return self.path.read_text()

    def says(self, pattern):
        """Waits until the output has a match."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.output)):
            assert self.popen.poll() is None and time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.002)
        return found


class Run:
    """Processes that run together; output and exit status of each, by index."""

    def __init__(self, processes):
        self.processes = processes

    def __getitem__(self, index):
        return self.processes[index]

    def wait(self, expected=0):
        """Until all have ended. `expected`: the exit status of all, or of each, or several that will do.

        Returns:
          the output of each.
        """
        statuses = [process.popen.wait(PATIENCE) for process in self.processes]
        wanted = [expected] * len(statuses) if isinstance(expected, int) else expected
        for status, allowed in zip(statuses, wanted, strict=True):
            allowed = (allowed,) if isinstance(allowed, int) else allowed
            assert status in allowed, f"{statuses}\n" + "\n".join(p.output[-3000:] for p in self.processes)
        return [process.output for process in self.processes]


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A function (arguments of python, processes=2, devices=4, each=(), variables=(), outputs={}) -> Run.

    The same command so many times, with --coordinator, --processes and --process where there are several. By index:
    `each` adds arguments, `variables` environment variables, which then are to say what those flags do; `outputs` has
    file descriptors for stdout and stderr of those whose output is not to be kept.
    """
    folder = tmp_path_factory.mktemp("output")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SLURM_"))}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    started = []

    def run(arguments, processes=2, devices=4, each=(), variables=(), outputs=None):
        address, made = f"localhost:{free_port()}", []
        for index in range(processes):
            command = [sys.executable, *arguments]
            if processes > 1 and not variables:
                command += [f"--coordinator={address}", f"--processes={processes}", f"--process={index}"]
            command += each[index] if each else []
            path = folder / f"{len(started)}.txt"
            own = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {FLAGS}"}
            own |= variables[index] if variables else {}
            with path.open("w") as output:
                given = (outputs or {}).get(index, output)
                popen = subprocess.Popen(command, env=environment | own, stdout=given, stderr=subprocess.STDOUT)
            started.append(popen)
            made.append(Process(popen, path))
        return Run(made)

    yield run
    for popen in started:
        with contextlib.suppress(OSError):
            popen.kill()
        popen.wait()


@pytest.fixture(scope="session")
def config_file(make_tiny_config, tmp_path_factory):
    config = make_tiny_config() | {"checkpoint": {"every": 4}}
    config["train"] |= {"steps": 12}
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(f"def get_config():\n    return {config!r}\n")
    return path


@pytest.fixture(scope="session")
def train(start, config_file):
    """A function (workdir, overrides ..., **as start) -> Run of the train verb."""

    def run(workdir, *overrides, **arguments):
        command = ["-m", "mf_jax", "train", f"--config={config_file}", f"--workdir={workdir}"]
        return start([*command, *(f"--config.{override}" for override in overrides)], **arguments)

    return run


@pytest.fixture(scope="session")
def two(train, tmp_path_factory):
    """Workdir of the uninterrupted run: two processes, everything split over their eight devices."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    outputs = train(workdir, "mesh.fsdp=8").wait()
    assert "from step 0 to 12 on 8 x cpu in 2 processes" in outputs[0]
    assert "training" not in outputs[1]
    return workdir


@pytest.fixture(scope="session")
def losses():
    """A function workdir -> {step: every logged value that is no time}."""

    def read(workdir):
        path = pathlib.Path(workdir) / "metrics.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        names = ("loss", "grad_norm", "param_norm", "missing")
        return {e["step"]: {k: v for k, v in e.items() if k.startswith(names)} for e in entries}

    return read


@pytest.fixture(scope="session")
def steps_of():
    """A function workdir -> the steps of its checkpoints, in order."""

    def read(workdir):
        folder = pathlib.Path(workdir) / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    return read


@pytest.fixture
def digests(capsys):
    """A function workdir -> {part: digest} as `show` prints them, in this one process with one device."""

    def show(workdir):
        assert main(["show", f"--checkpoint={workdir}"]) == 0
        return dict(re.findall(r"(\w+) sha256: (\w+)", capsys.readouterr().out))

    return show
