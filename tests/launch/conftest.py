"""Running the scripts of launch/ with stand-ins for the programs that they call, none of which is ever reached."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CALLED = ("gcloud", "kubectl", "xpk", "docker", "sbatch", "srun", "scancel", "scontrol", "git", "python", "sleep")


class Scripts:
    """The scripts, run from a directory of their own with stand-ins first in PATH.

    A stand-in writes its name and arguments as a line to `calls` and ends with 0; `stand_in` gives one a body.
    """

    def __init__(self, folder: pathlib.Path):
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "calls"
        self.folder = folder
        self.environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
            self.environment.pop(name, None)
        for name in CALLED:
            self.stand_in(name, "")

    def stand_in(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/usr/bin/env bash\necho {name} \"$*\" >> '{self.log}'\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def command(self, name: str, *arguments: str) -> list[str]:
        program = sys.executable if name.endswith(".py") else "bash"
        return [program, str(ROOT / "launch" / name), *arguments]

    def run(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(name, *arguments),
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(name, *arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def scripts(tmp_path):
    return Scripts(tmp_path)
