"""The GPU benchmark at tiny size on the CPU, without the packages that its machine may lack; and its parts."""

import gzip
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent.parent / "benchmarks"
MISSING = ("grain", "tensorflow_datasets", "clu", "ml_collections", "orbax", "tensorboardX", "trimesh", "matplotlib")
RUN = """
import runpy, sys
for name in {missing}:
    sys.modules[name] = None
sys.path.insert(0, {folder!r})
sys.argv = ["gpu_mfu.py", {arguments}]
runpy.run_path(sys.path[0] + "/gpu_mfu.py", run_name="__main__")
"""


@pytest.fixture
def benchmark(monkeypatch):
    """A function name -> module of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    return importlib.import_module


def start(*arguments):
    program = RUN.format(missing=MISSING, folder=str(BENCHMARKS), arguments=", ".join(map(repr, arguments)))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """(what it printed, the folder of its traces)."""
    folder = tmp_path_factory.mktemp("profile")
    finished = start("--tiny", "--configs", "mofo_3b", "--largest", "4", "--profile", str(folder))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout, folder


def test_tiny_run_times_the_largest_batch(tiny_run):
    """It starts with the largest of those allowed, whose memory tells how many would fit: on a CPU, no more."""
    timed = re.findall(r"^mofo_3b +batch +(\d+) +(\S+) s +(\S+) images/s +(\S+) TFLOP/s +MFU", tiny_run[0], re.M)
    assert [row[0] for row in timed] == ["4"]
    assert float(timed[0][2]) == pytest.approx(4 / float(timed[0][1]), rel=0.01)


def test_tiny_run_names_the_three_largest_costs(tiny_run):
    printed, folder = tiny_run
    assert list(folder.glob("mofo_3b/plugins/profile/*/*.xplane.pb"))
    shares = [float(share) for share in re.findall(r"^ +([\d.]+) % +[\d.]+ ms +\S+", printed, re.M)]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.1


def test_without_a_gpu_it_says_so():
    finished = start("--configs", "t2i_370m")
    assert finished.returncode == 1 and "there is no GPU here" in finished.stderr and "Traceback" not in finished.stderr


def timing(module, size):
    return module.Timing(size, 0.1, size)


@pytest.mark.parametrize("guessed", [1, 24, 48, 100, 4000])
@pytest.mark.parametrize("limit", [0, 1, 5, 8, 47, 48, 512, 9999])
def test_search_ends_at_the_largest_that_fits(benchmark, guessed, limit):
    """However wrong the guess; nothing is tried twice."""
    module = benchmark("gpu_mfu")
    sizes = module.batches(512)
    tried = []

    def attempt(size):
        tried.append(size)
        return timing(module, size) if size <= limit else None

    found = module.search(sizes, attempt, lambda first: guessed)
    assert len(tried) == len(set(tried))
    assert (found.batch if found else 0) == max((size for size in sizes if size <= limit), default=0)


def test_batches(benchmark):
    assert benchmark("gpu_mfu").batches(16) == [1, 2, 3, 4, 6, 8, 12, 16]


def test_guess_from_the_memory_of_one_batch(benchmark, monkeypatch):
    """1000 parameters take 20 kB; 8 examples 800 bytes each, so that 40 kB hold 25."""
    module = benchmark("gpu_mfu")
    measured = module.Timing(8, 0.1, 20_000 + 8 * 800)
    assert module.guess_batch(measured, 1000) == 8  # a CPU does not tell its memory
    monkeypatch.setattr(module, "memory_limit", lambda: 40_000)
    assert module.guess_batch(measured, 1000) == 25


def event(name, start_us, microseconds, process=7, thread=1, **args):
    return dict(ph="X", pid=process, tid=thread, name=name, ts=start_us, dur=microseconds, args=args)


def label(kind, name, process=7, thread=1):
    return dict(ph="M", pid=process, tid=thread, name=f"{kind}_name", args=dict(name=name))


def test_costs_of_a_gpu_trace(benchmark, tmp_path):
    """Kernels of every stream, not the host's events or the device's other rows, which repeat them."""
    trace = [
        label("process", "/device:GPU:0"), label("process", "/host:CPU", process=9),
        label("thread", "Stream #14(Compute)"), label("thread", "Stream #15(MemcpyD2D)", thread=2),
        label("thread", "XLA Ops", thread=3),
        event("gemm", 0, 3000), event("softmax", 3000, 1500), event("gemm", 5000, 3000),
        event("copy", 0, 500, thread=2), event("fusion", 0, 9000, thread=3),
        event("python", 0, 90000, process=9, hlo_op="no"),
    ]  # fmt: skip
    folder = tmp_path / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump(dict(traceEvents=trace), file)
    module = benchmark("profile_costs")
    assert module.costs(dict(traceEvents=trace)) == {"gemm": 6.0, "softmax": 1.5, "copy": 0.5}
    assert re.search(r"75\.0 % +6\.0 ms +gemm\n +18\.8 % +1\.5 ms +softmax", module.summary(tmp_path))
    with pytest.raises(ValueError, match="give the folder"):
        module.summary(tmp_path / "plugins")


def test_an_operation_inside_another_counts_once(benchmark):
    trace = [
        label("process", "/host:CPU"),
        event("while", 0, 1000, hlo_op="w"), event("dot", 100, 300, hlo_op="d"), event("add", 150, 50, hlo_op="a"),
        event("dot", 500, 200, hlo_op="d"), event("Await", 0, 5000),
    ]  # fmt: skip
    found = benchmark("profile_costs").costs(dict(traceEvents=trace))
    assert found == pytest.approx({"while": 0.5, "dot": 0.45, "add": 0.05})


def test_synthetic_configs_are_the_resolved_ones(benchmark):
    """What the benchmarks read without ml_collections is what training would be given."""
    from mf_jax.config import loading as configs

    for name in ("t2i_370m", "mofo_3b", "flux2_klein_9b"):
        path = os.path.join("configs", f"{name}.py")
        assert benchmark("synthetic").load(path) == configs.load(path)
