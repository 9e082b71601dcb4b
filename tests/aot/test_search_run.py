"""`compile --search` with a stub in the place of the compiler: its table, and results that are kept on disk."""

import json

import jax
import pytest

from mf_jax.aot import search_results, search_run, step
from mf_jax.aot.memory import Memory, OutOfMemory
from mf_jax.config.loading import resolve
from mf_jax.monitoring import chips
from mf_jax.monitoring.chips import GIB, Chip, Device

CHIP = Chip("toy", "tpu", 2, hbm=8 * GIB, hbm_bandwidth=1e9, link_bandwidth=1e8, clock=1e9, attention=(0.5, 0.5))
# A product of 2 x 100 x 100 x 100 FLOPs, and 60 us by its bytes at 1 GB/s.
PROGRAM = """HloModule m
ENTRY main (a: bf16[100,100], b: bf16[100,100]) -> bf16[100,100] {
  a = bf16[100,100]{1,0} parameter(0)
  b = bf16[100,100]{1,0} parameter(1)
  ROOT c = bf16[100,100]{1,0} dot(a, b), lhs_contracting_dims={1}, rhs_contracting_dims={0},
    backend_config={"estimated_cycles":"CYCLES"}
}
"""


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Compiles nothing; a list of what it was asked for.

    'none' does not fit, 'dots' needs 5 GiB, the others 1. A step takes 200 us by its cycles, and 5 us for each part.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(chips.DEVICES, kind, Device(1e15, CHIP))
    monkeypatch.setitem(chips.CHIPS, kind, CHIP)
    asked = []

    def compile_step(job):
        remat = job.config.model.remat
        asked.append((remat, job.config.train.batch, job.config.train.accumulate))
        if remat == "none":
            raise OutOfMemory(10 * GIB, 8 * GIB, [])
        memory = Memory({}, 0, (5 if remat == "dots" else 1) * GIB, 0, 0, 0, 0)
        cycles = 200_000 + 5000 * job.config.train.accumulate
        return step.Program(memory, PROGRAM.replace("CYCLES", str(cycles)), 1.0, 2.0, {})

    monkeypatch.setattr(step, "compile_step", compile_step)
    return asked


@pytest.fixture
def config(tiny_config):
    return resolve(tiny_config, ["model.remat=full", "train.batch=8", "train.accumulate=8"])


def test_table_and_overrides(compiler, config, capsys):
    """60 and 240 us for 8 parts, 60 and 205 us for one, whatever the preset and the batch."""
    assert search_run.search_config(config, jax.devices()) == 0
    out = capsys.readouterr().out
    assert "1 x 1       8           8  full               1.00" in out
    rows = [line for line in out.splitlines() if "1 x 1" in line]
    assert "  0.060 to 0.240    33333 to 133333  " in rows[0]
    # Four presets; parts of 2, 4 and 8; three larger batches; for the largest, the next preset.
    assert len(compiler) == len(set(compiler)) == 11
    assert any(line.endswith("none              10.00  does not fit") for line in rows)
    best = "--config.model.remat=full --config.mesh.data=1 --config.mesh.fsdp=1 --config.train.batch={} "
    assert f"fastest, by the geometric mean of both figures: {best.format(64)}--config.train.accumulate=1" in out
    assert f"fastest with the config's own batch: {best.format(8)}--config.train.accumulate=1" in out


def test_an_interrupted_search_goes_on(compiler, config, monkeypatch, capsys):
    """The third compilation is interrupted in the middle of a line: two are kept, the others compiled once."""
    compiling = step.compile_step

    def interrupted(job):
        if len(compiler) == 2:
            raise KeyboardInterrupt
        return compiling(job)

    monkeypatch.setattr(step, "compile_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search_run.search_config(config, jax.devices())
    file = search_results.default_file()
    file.write_text(file.read_text() + '{"key": "1234", "resu')
    monkeypatch.setattr(step, "compile_step", compiling)
    capsys.readouterr()
    search_run.search_config(config, jax.devices())
    out = capsys.readouterr().out
    assert len(compiler) == len(set(compiler)) == 11
    search_run.search_config(config, jax.devices())
    assert len(compiler) == 11 and capsys.readouterr().out == out
    kept = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    assert len(kept) == len(compiler)
    assert kept[0]["what"]["model.remat"] == "full" and kept[0]["result"]["needed"] == GIB


def test_what_a_result_depends_on(config, tiny_config, monkeypatch):
    devices = jax.devices()
    own = search_results.key(config, devices, {"a": 1})
    assert own == search_results.key(
        resolve(tiny_config, ["model.remat=full", "train.accumulate=8"]), devices, {"a": 1}
    )
    assert own != search_results.key(resolve(tiny_config, ["model.remat=dots"]), devices, {"a": 1})
    assert own != search_results.key(config, devices, {"a": 2})
    assert own != search_results.key(config, devices * 2, {"a": 1})
    for change in (
        lambda: monkeypatch.setenv("LIBTPU_INIT_ARGS", "--something"),
        lambda: monkeypatch.setattr(search_results.importlib.metadata, "version", lambda package: "0.0.1"),
        lambda: monkeypatch.setattr(search_results, "_source", lambda: "another"),
    ):
        change()
        assert own != search_results.key(config, devices, {"a": 1})
        monkeypatch.undo()
        assert own == search_results.key(config, devices, {"a": 1})


def test_axes(tiny_config):
    """One device, 8 examples in parts of 2; `offload` only where the config has it."""
    config = resolve(tiny_config, ["train.batch=8", "train.accumulate=4", "model.remat=dots"])
    presets, layouts, parts = search_run.axes(config, jax.devices())
    assert [one["model.remat"] for one in presets.alternatives] == ["full", "attention_mlp", "dots", "none"]
    assert presets.start == 2
    assert layouts.alternatives == ({"mesh.data": 1, "mesh.fsdp": 1},)
    assert [tuple(one.values()) for one in parts.alternatives] == [
        (8, 8), (8, 4), (8, 2), (8, 1), (16, 1), (32, 1), (64, 1)
    ]  # fmt: skip
    assert parts.start == 1


def test_layouts_of_a_slice(tiny_config):
    """16 devices, 2 of them along tensor, in 2 slices: 4 of each slice for data and fsdp."""
    config = resolve(tiny_config, ["mesh.slices=2", "mesh.tensor=2", "mesh.data=1", "mesh.fsdp=4"])
    layouts = search_run._layouts(config, 16)
    assert [tuple(one.values()) for one in layouts.alternatives] == [(1, 4), (2, 2), (4, 1)]
    assert layouts.start == 0
