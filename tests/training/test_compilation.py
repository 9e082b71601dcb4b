"""The persistent cache is jax's, used where it is said, and left as it was; the dump is of the executable that runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.training import compilation
from mf_jax.training.compiler_options import TPU, compiler_options


@pytest.fixture
def without_cache():
    """jax as in a process that has been told of no cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation.compilation_cache.reset_cache()


@pytest.fixture
def cache_events():
    """What jax reports of its cache: names, in order."""
    events = []

    def note(event, **_):
        if event.startswith("/jax/compilation_cache/cache_"):
            events.append(event.rpartition("/")[2])

    jax.monitoring.register_event_listener(note)
    yield events
    jax.monitoring.unregister_event_listener(note)


def compile_anew(scale):
    """As the next process would, which has no executable in memory."""
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.sin(x) * scale)(jnp.float32(1)))


def test_the_second_compilation_is_read_from_the_directory(without_cache, cache_events, tmp_path):
    results = []
    for _ in range(2):
        with compilation.persistent_cache("", tmp_path / "cache"):
            results.append(compile_anew(3.0))
    assert results[0] == results[1]
    assert cache_events.count("cache_misses") == cache_events.count("cache_hits") > 0
    assert list((tmp_path / "cache").glob("*-cache"))
    assert jax.config.jax_compilation_cache_dir is None


def test_each_run_of_a_process_uses_its_own_directory(without_cache, tmp_path):
    for name in ("a", "b"):
        with compilation.persistent_cache("", tmp_path / name):
            compile_anew(5.0)
    held = [len(list((tmp_path / name).glob("*-cache"))) for name in ("a", "b")]
    assert held[0] == held[1] > 0
    compile_anew(7.0)
    assert held[1] == len(list((tmp_path / "b").glob("*-cache")))


def test_a_directory_that_jax_was_told_stays_unless_one_is_given(without_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "told"))
    with compilation.persistent_cache("", tmp_path / "default"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "told")
    with compilation.persistent_cache(str(tmp_path / "given"), tmp_path / "default"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "given")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "told")
    assert not (tmp_path / "default").exists()


def test_a_relative_directory_stays_the_same_one(without_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with compilation.persistent_cache("cache", tmp_path / "default"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")


def test_a_directory_that_cannot_be_is_an_error(without_cache, tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match="file"),
        compilation.persistent_cache(str(tmp_path / "file" / "cache"), tmp_path / "default"),
    ):
        pass


def test_a_step_is_compiled_once_and_the_dump_is_of_it(tmp_path):
    traced = []

    def step(x, y):
        traced.append(1)
        return jnp.dot(x, y), jnp.sum(x)

    x = np.ones((4, 4), np.float32)
    compiled = compilation.compile_for_run(jax.jit(step), (x, x), tmp_path / "hlo", {})
    np.testing.assert_array_equal(compiled(x, x)[0], x @ x)
    assert len(traced) == 1
    asked = (tmp_path / "hlo" / "train_step.stablehlo.txt").read_text()
    assert "stablehlo.dot_general" in asked and "tensor<4x4xf32>" in asked
    assert (tmp_path / "hlo" / "train_step.optimized.txt").read_text() == compiled.as_text()
    assert "HloModule" in compiled.as_text()


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compilation.compile_for_run(jax.jit(jnp.sin), (np.ones(3, np.float32),), None, {})
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_the_compiler_does_not_know_is_named():
    lowered = jax.jit(jnp.sin).lower(np.ones(3, np.float32))
    assert compilation.compile_with_options(lowered, {"xla_cpu_enable_fast_math": True})(np.zeros(3, np.float32)).shape
    with pytest.raises(ValueError, match=r"no option 'xla_no_such'; remove it with --config.train.compiler_options"):
        compilation.compile_with_options(lowered, {"xla_no_such": 1})


def test_options_of_a_chip_and_of_the_config():
    name = next(iter(TPU))
    assert compiler_options("cpu", {}) == {}
    assert compiler_options("TPU v5 lite", {}) == TPU
    assert compiler_options("TPU v5", {name: None, "mine": 3}) == {"mine": 3} | {
        k: v for k, v in TPU.items() if k != name
    }
    assert compiler_options("TPU v6 lite", {name: 5})[name] == 5
