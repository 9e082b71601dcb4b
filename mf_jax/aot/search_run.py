"""`compile --search`: the axes of the search for a config, its compilations, its table."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from mf_jax.aot import step
from mf_jax.aot.hlo import parse
from mf_jax.aot.memory import OutOfMemory
from mf_jax.aot.prediction import milliseconds
from mf_jax.aot.report import predict
from mf_jax.aot.schedule import Times
from mf_jax.aot.search import Axis, Overrides, Result, Search, Try
from mf_jax.aot.search_results import SearchResults, default_file, key
from mf_jax.config import loading
from mf_jax.config.config import Config
from mf_jax.models.remat import PRESETS
from mf_jax.monitoring import flops
from mf_jax.monitoring.chips import CHIPS, DEVICES, GIB, Chip
from mf_jax.parallel import sharding

LARGER = 3  # times that the batch is doubled
_PREDICTED = tuple(preset for preset in PRESETS if preset != "offload")
_HEADER = (
    f"{'data x fsdp':>12}{'batch':>8}{'accumulate':>12}  {'remat':<15}{'GiB':>8}{'ms':>16}{'examples/s':>19}"
    f"{'MFU %':>14}"
)


def search_config(config: Config, devices: Sequence[jax.Device]) -> int:
    """Prints the tries and the overrides to use; 0 if anything fits.

    Raises:
      ValueError: the memory of the devices is not known; the config does not suit them.
    """
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None:
        raise ValueError(
            f"--search needs a chip whose memory is known; that of {devices[0].device_kind} is not: give --topology"
        )
    results = SearchResults(default_file())
    print(f"results are kept in {results.file}; memory per device in all: {chip.usable / GIB:.2f} GiB")
    if chip.clock is None:
        print("the compiler for GPUs estimates no times: both figures are the roofline, apart from the collectives'")
    print(_HEADER, flush=True)
    tries: list[Try] = []

    def seen(one: Try) -> None:
        tries.append(one)
        print(_row(one), flush=True)

    variants = Variants(config, devices, chip, results)
    best = Search(axes(config, devices), chip.usable, variants.compile, variants.most, seen).run()
    if best is None:
        print("nothing fits: more devices in mesh.fsdp, or more chips")
        return 1
    print(f"fastest, by the geometric mean of both figures: {_arguments(best)}")
    if best.overrides["train.batch"] != config.train.batch:
        own = [one for one in tries if one.fits and one.overrides["train.batch"] == config.train.batch]
        if own:
            print(f"fastest with the config's own batch: {_arguments(max(own, key=lambda one: one.rate))}")
    return 0


class Variants:
    """Compiles variants of a config for devices; what `results` has is not compiled again."""

    def __init__(self, config: Config, devices: Sequence[jax.Device], chip: Chip, results: SearchResults):
        self.config, self.devices, self.chip, self.results = config, devices, chip, results
        self.peak = DEVICES[devices[0].device_kind].peak
        self._last: tuple[Overrides, step.Job] | None = None

    def _job(self, overrides: Overrides) -> step.Job:
        if self._last is None or self._last[0] != overrides:
            texts = [f"{name}={value}" for name, value in overrides.items()]
            config = loading.resolve(loading.to_dict(self.config), texts)
            self._last = overrides, step.make_job(config, self.devices)
        return self._last[1]

    def most(self, overrides: Overrides) -> float:
        """Examples per second with all FLOPs at the peak.

        Raises:
          ValueError: such a mesh or batch is not possible.
        """
        job = self._job(overrides)
        per_step = flops.hardware_flops(job.model, job.config, job.text_rows)
        return overrides["train.batch"] * self.peak * job.mesh.size / per_step

    def compile(self, overrides: Overrides) -> Result:
        job = self._job(overrides)
        at = key(job.config, self.devices, job.compiler_options)
        if (found := self.results.get(at)) is None:
            found = self._compiled(job)
            self.results.add(at, overrides, found)
        return found

    def _compiled(self, job: step.Job) -> Result:
        try:
            program = step.compile_step(job)
        except OutOfMemory as error:
            return Result(error.needed)
        predicted = predict(job, parse(program.text), self.chip)
        seconds = predicted.seconds
        return Result(program.memory.total, seconds.roofline, seconds.cycles, predicted.ideal)


def axes(config: Config, devices: Sequence[jax.Device]) -> list[Axis]:
    """The axes of the search."""
    return [_presets(config), _layouts(config, len(devices)), _parts(config, devices)]


def _presets(config: Config) -> Axis:
    """Remat presets. `offload` only if it is the config's own: its copies to the host are in neither figure."""
    own = config.model.remat
    presets = [preset for preset in reversed(PRESETS) if preset in (own, *_PREDICTED)]
    return Axis(tuple({"model.remat": preset} for preset in presets), presets.index(own), all=True)


def _layouts(config: Config, devices: int) -> Axis:
    """data x fsdp, by the part of the parameters that a device keeps."""
    sizes = sharding.mesh_sizes(config.mesh, devices)
    within = sizes["data"] * sizes["fsdp"] // config.mesh.slices
    fsdp = [size for size in range(within, 0, -1) if within % size == 0]
    alternatives = tuple({"mesh.data": within // size, "mesh.fsdp": size} for size in fsdp)
    return Axis(alternatives, fsdp.index(sizes["fsdp"]))


def _parts(config: Config, devices: Sequence[jax.Device]) -> Axis:
    """Batch and accumulation, by the examples that a device computes at a time."""
    batch = config.train.batch
    with sharding.rules(config.mesh.rules):
        whole = batch // sharding.batch_parts(sharding.make_mesh(config.mesh, devices))
    parts = [(batch, whole // size) for size in range(1, whole + 1) if whole % size == 0]
    parts += [(batch * 2**k, 1) for k in range(1, LARGER + 1)]
    alternatives = tuple({"train.batch": b, "train.accumulate": a} for b, a in parts)
    return Axis(alternatives, parts.index((batch, config.train.accumulate)), directions=(1,))


def _row(one: Try) -> str:
    of = one.overrides
    layout = f"{of['mesh.data']} x {of['mesh.fsdp']}"
    row = f"{layout:>12}{of['train.batch']:>8}{of['train.accumulate']:>12}  {of['model.remat']:<15}"
    if one.result is None:
        return f"{row}  {one.verdict}"
    row += f"{one.result.needed / GIB:8.2f}"
    if not one.result.roofline:
        return f"{row}  {one.verdict}"
    seconds = Times(one.result.roofline, one.result.cycles)
    rates = _range(of["train.batch"] / seconds.cycles, of["train.batch"] / seconds.roofline, 0)
    mfu = _range(100 * one.result.ideal / seconds.cycles, 100 * one.result.ideal / seconds.roofline, 1)
    return f"{row}{milliseconds(seconds):>16}{rates:>19}{mfu:>14}" + ("" if one.fits else f"  {one.verdict}")


def _range(first: float, second: float, digits: int) -> str:
    low, high = sorted((first, second))
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _arguments(one: Try) -> str:
    return " ".join(f"--config.{name}={value}" for name, value in one.overrides.items())
