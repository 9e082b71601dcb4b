"""Runs tests/eight_devices on eight simulated devices, in a process of its own."""

import os
import pathlib
import subprocess
import sys


def test_on_eight_devices():
    folder = pathlib.Path(__file__).parent / "eight_devices"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    run = subprocess.run(command, env=environment, cwd=folder.parent.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
