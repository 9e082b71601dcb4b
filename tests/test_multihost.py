"""Under pytest-xdist: runs tests/multihost in one process, whose tests share the runs that they start."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="tests/multihost is collected by itself")
def test_several_processes():
    folder = pathlib.Path(__file__).parent / "multihost"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(folder)]
    run = subprocess.run(command, env=environment, cwd=folder.parent.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
