"""What the compilation cache saves at the start of a run: python benchmarks/startup_time.py [PAIRS]

Starts `python -m mf_jax train` for one step in a new process and a new workdir, and measures the time from the start of
the process to the first line of metrics.jsonl, which is written when the first step is finished. Cold: with an empty
compilation cache. Warm: with the one that the cold start has left. PAIRS (default 3) of cold and warm starts, in turn.
The model is the quickstart's with the trunk of the scaling family, 30 layers under remat, at width 256. Beside each
start is what the run itself recorded in goodput.json, and the processor time of the training process (Linux), which a
busy machine changes less.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax

CONFIG = """
import runpy

def get_config():
    config = runpy.run_path({quickstart!r})["get_config"]()
    config["model"] = dict(kind="flat_dit", width=256, layers=30, heads=4, kv_heads=1, remat="full")
    config["train"] = dict(steps=1, batch=4, log_every=1)
    return config
"""


def processor_seconds(pid: int) -> float:
    """User and system time that a running process has had so far, in all its threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(config: pathlib.Path, workdir: pathlib.Path, cache: pathlib.Path) -> tuple[float, float, dict[str, float]]:
    """(seconds to the first finished step, processor seconds to then, the run's own accounts in seconds)."""
    command = [sys.executable, "-m", "mf_jax", "train", f"--config={config}", f"--workdir={workdir}"]
    metrics = workdir / "metrics.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"--config.train.compilation_cache={cache}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"training ended before its first step:\n{process.communicate()[0]}")
        time.sleep(0.005)
    seconds = time.perf_counter() - begin
    processor = processor_seconds(process.pid)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)
    return seconds, processor, json.loads((workdir / "goodput.json").read_text())["seconds"]


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    quickstart = pathlib.Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    totals: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for pair in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "config.py").write_text(CONFIG.format(quickstart=str(quickstart)))
            for kind, values in totals.items():
                seconds, processor, accounts = start(root / "config.py", root / kind, root / "cache")
                values.append((seconds, processor))
                print(
                    f"{kind} {pair + 1}: {seconds:5.1f} s (processor {processor:4.1f} s); of these "
                    f"the train step's compilation {accounts['compile']:4.1f} s, "
                    f"the rest up to the first batch {accounts['startup']:4.1f} s; load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    for i, what in enumerate(("time to the first step", "processor time")):
        cold, warm = (statistics.median(value[i] for value in values) for values in totals.values())
        print(f"{what}, median: cold {cold:.1f} s, warm {warm:.1f} s, {warm / cold:.2f} of it")


if __name__ == "__main__":
    main()
