"""Search for the largest batch and the cheapest remat preset that fit, by a few full compilations.

Memory grows with the examples that a device computes at a time (its part of the batch, divided by train.accumulate)
and falls from preset to preset. First, the cheapest preset that fits the config's own batch is looked for; if none
does, the most frugal one with smaller parts. Then the parts are enlarged as long as they fit: by less accumulation, at
the end by a larger batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax

from mf_jax.aot import step
from mf_jax.config.config import Config
from mf_jax.models.remat import PRESETS
from mf_jax.monitoring.chips import CHIPS, GIB

LARGER = 3  # tries with larger parts


@dataclasses.dataclass(frozen=True)
class Try:
    """One batch and remat preset, and whether it fits.

    Attributes:
      part: examples that a device computes at a time. needed: bytes, with what the compiler says where it gives up.
      skipped: not compiled, because the tries before it show that it cannot fit; `needed` is extrapolated from them.
    """

    batch: int
    accumulate: int
    remat: str
    part: int
    needed: float
    fits: bool
    skipped: bool = False


def search(
    batch: int, accumulate: int, shares: int, available: float, need: Callable[[int, int, str], float]
) -> Iterator[Try]:
    """The tries, in order; the last that fits is the answer.

    Args:
      shares: in how many the devices deal a batch. available: bytes per device.
      need: (batch, accumulate, remat) -> bytes per device.
    """
    whole = batch // shares

    def attempt(batch: int, accumulate: int, remat: str) -> Try:
        needed = need(batch, accumulate, remat)
        return Try(batch, accumulate, remat, batch // shares // accumulate, needed, needed <= available)

    for remat in PRESETS:
        found = attempt(batch, accumulate, remat)
        yield found
        if found.fits:
            break
    too_large = float("inf")  # a part that is known not to fit with the preset in `found`
    while not found.fits and found.part > 1:
        too_large = found.part
        smaller = next(d for d in range(found.part // 2, 0, -1) if whole % d == 0)
        found = attempt(batch, whole // smaller, found.remat)
        yield found
    if not found.fits:
        return
    fitting = [found]
    larger_parts = [(batch, whole // d) for d in range(2 * found.part, whole + 1) if whole % d == 0]
    larger_parts += [(batch * 2**k, 1) for k in range(1, LARGER + 1)]
    for larger_batch, parts in larger_parts[:LARGER]:
        part = larger_batch // shares // parts
        if part >= too_large:
            return
        if len(fitting) > 1:
            slope = (fitting[-1].needed - fitting[-2].needed) / (fitting[-1].part - fitting[-2].part)
            expected = fitting[-1].needed + slope * (part - fitting[-1].part)
            if expected > 1.1 * available:
                yield Try(larger_batch, parts, found.remat, part, expected, False, skipped=True)
                return
        larger = attempt(larger_batch, parts, found.remat)
        yield larger
        if not larger.fits:
            return
        fitting.append(larger)


def search_config(config: Config, devices: Sequence[jax.Device]) -> int:
    """Prints the tries and the overrides to use; 0 if anything fits.

    Raises:
      ValueError: the memory of the devices is not known.
    """
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None:
        raise ValueError(
            f"--search needs a chip whose memory is known; that of {devices[0].device_kind} is not: give --topology"
        )

    def need(batch: int, accumulate: int, remat: str) -> float:
        tried = dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, batch=batch, accumulate=accumulate),
            model=dataclasses.replace(config.model, remat=remat),
        )
        try:
            return step.compile_step(step.make_job(tried, devices)).memory.total
        except step.OutOfMemory as error:
            return error.needed

    train = config.train
    depth = step.make_job(config, devices).arguments[2]["depth"]
    shares = train.batch // depth.sharding.shard_shape(depth.shape)[0]
    best = None
    print(f"{'batch':>8}{'accumulate':>12}{'per device':>12}  {'remat':<15}{'GiB':>9}  of {chip.usable / GIB:.2f}")
    for one in search(train.batch, train.accumulate, shares, chip.usable, need):
        verdict = "fits" if one.fits else "does not fit, not compiled" if one.skipped else "does not fit"
        row = f"{one.batch:>8}{one.accumulate:>12}{one.part:>12}  {one.remat:<15}{one.needed / GIB:9.2f}  {verdict}"
        print(row, flush=True)
        best = one if one.fits else best
    if best is None:
        print("nothing fits: more devices in mesh.fsdp, or more chips")
        return 1
    print(
        f"use --config.train.batch={best.batch} --config.train.accumulate={best.accumulate} "
        f"--config.model.remat={best.remat}"
    )
    return 0
