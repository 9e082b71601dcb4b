"""Compilation of the train step: jax's persistent cache, and dumps of the program for people to read."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from mf_jax.parallel import sharding
from mf_jax.storage import atomic_file


@contextlib.contextmanager
def persistent_cache(given: str, default: pathlib.Path) -> Iterator[None]:
    """Context in which jax's persistent compilation cache is a directory.

    jax keys the entries by program, devices (a CPU's instruction set), version, flags and the directory's own path, so
    runs and machines may share a directory, under one path. Of several processes the first writes.

    Args:
      given: the directory; "": the one that jax is configured with (JAX_COMPILATION_CACHE_DIR), else `default`.
      default: created if it is used.
    """
    # jax adds its settings as attributes at run time.
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    least = jax.config.jax_persistent_cache_min_compile_time_secs  # type: ignore[attr-defined]
    if before and not given:
        yield
        return
    directory = given or str(default)
    if "://" not in directory:
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        directory = str(pathlib.Path(directory).absolute())
    try:
        _use(directory, 0.0)
        yield
    finally:
        _use(before, least)


def _use(directory: str | None, least_seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()  # else a process that has compiled before keeps its old directory


def compile_with_options(lowered: jax.stages.Lowered, options: Mapping[str, Any]) -> jax.stages.Compiled:
    """The executable of a lowered step.

    Args:
      options: of XLA's compiler, see compiler_options.py.

    Raises:
      ValueError: an option that the compiler does not know.
    """
    try:
        return lowered.compile(compiler_options=dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        if unknown := re.search(r"No such compile option: '([^']*)'", str(error)):
            raise ValueError(
                f"this compiler has no option {unknown[1]!r}; remove it with "
                f"--config.train.compiler_options.{unknown[1]}=None"
            ) from None
        raise


class Programs:
    """The executables of a jitted step, one for each shape that its batches have.

    Args:
      step_fn: as jax.jit returns it. mesh: that it is traced for.
      dump: directory for the text of the first one, see `compile_for_run`; None writes none.
      options: of XLA's compiler, see compiler_options.py.
    """

    def __init__(self, step_fn: Any, mesh: jax.sharding.Mesh, dump: pathlib.Path | None, options: Mapping[str, Any]):
        self._step_fn = step_fn
        self._mesh = mesh
        self._dump = dump
        self._options = options
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}

    def __contains__(self, shape: Hashable) -> bool:
        return shape in self._compiled

    def __getitem__(self, shape: Hashable) -> jax.stages.Compiled:
        return self._compiled[shape]

    def compile(self, shape: Hashable, arguments: tuple[Any, ...]) -> None:
        """Makes the executable for arguments of this shape."""
        dump, self._dump = self._dump, None
        with sharding.scope(self._mesh):
            self._compiled[shape] = compile_for_run(self._step_fn, arguments, dump, self._options)


def compile_for_run(
    step_fn: Any, arguments: tuple[Any, ...], dump: pathlib.Path | None, options: Mapping[str, Any]
) -> jax.stages.Compiled:
    """The executable of a jitted step for arguments of these shapes and shardings.

    Args:
      step_fn: as jax.jit returns it. arguments: arrays or jax.ShapeDtypeStruct. options: as of compile_with_options.
      dump: directory for train_step.stablehlo.txt, the program as jax lowers it, and train_step.optimized.txt, the
        program after XLA's optimisation; None writes neither.
    """
    lowered = step_fn.lower(*arguments)
    compiled = compile_with_options(lowered, options)
    if dump is not None:
        atomic_file.write_bytes(dump / "train_step.stablehlo.txt", lowered.as_text().encode())
        atomic_file.write_bytes(dump / "train_step.optimized.txt", (compiled.as_text() or "").encode())
    return compiled
