"""MFU of the train step on one GPU: python benchmarks/gpu_mfu.py [--configs ...] [--attention ...] [--remat ...]

Trains each of the paper's models (370M, 800M, 3.3B, text-to-image and with depth) at their own resolution, as the loop
does: bf16 compute, float32 parameters, moments and EMA, AdamW, clipping. Latents and text features are random and made
on the device: no data, no frozen networks. For every config, attention kernel and remat preset it looks for the largest
of the batches 1, 2, 3, 4, 6, 8, 12, ... that fits, by trying, and prints each that it timed: step time (a mean over
steps that nobody waits between), images/s, MFU, HFU (mf_jax/flops.py says what counts) and the memory of the step
(parameters, moments, EMA, batch and what the step itself needs). Compiling takes most of the time; --batch says which
to try, the largest first, until one fits.

    python benchmarks/gpu_mfu.py --configs t2i_800m,mofo_3b --remat none,attention_mlp --profile /tmp/trace

--profile records three steps of each largest batch with jax.profiler, for TensorBoard or Perfetto, and names the three
kernels that took most of the device's time. --tiny shrinks everything, to try the program itself on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import profile_costs
import synthetic

from mf_jax.config.config import Config
from mf_jax.joint_model import JointModel
from mf_jax.monitoring import chips, flops
from mf_jax.parallel import sharding
from mf_jax.training import train_state

CONFIGS = [f"{kind}_{size}" for kind in ("t2i", "mofo") for size in ("370m", "800m", "3b")]
FOLDER = pathlib.Path(__file__).parent.parent / "configs"
FIRST = 8  # the batch that is tried first, and tells how much memory an example takes
WARM_UP, STEPS = 2, 10
TINY = {
    "data": {"resolution": (32, 32)},
    "model": {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1},
    "text": {"max_length": 8, "expected_tokens": 0, "width": 32},
}


@dataclasses.dataclass(frozen=True)
class Timing:
    """One batch size. seconds: per step. memory: bytes of the step."""

    batch: int
    seconds: float
    memory: int


class Trainer:
    """The train step of one model at any batch size, from one state, which is made anew if running out of memory
    took it away."""

    def __init__(self, config: Config, model: JointModel, mesh: jax.sharding.Mesh):
        self._config, self._model, self._mesh = config, model, mesh
        self._state = None
        self._compile = functools.cache(self._compile_anew)

    def time(self, batch_size: int, steps: int) -> Timing | None:
        """None: it does not fit.

        Raises:
          ValueError: the loss is not finite.
        """
        try:
            compiled = self._compile(batch_size)
            memory = compiled.memory_analysis()
            needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            needed += memory.temp_size_in_bytes
            if needed > memory_limit():
                return None
            batch = synthetic.batch(self._model, batch_size)
            self._run(compiled, batch, WARM_UP)
            start = time.perf_counter()
            loss = self._run(compiled, batch, steps)
            seconds = (time.perf_counter() - start) / steps
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
                raise
            return None
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} after {WARM_UP + steps} steps at batch {batch_size}")
        return Timing(batch_size, seconds, needed)

    def trace(self, batch_size: int, folder: pathlib.Path, steps: int = 3) -> None:
        """Records a few warm steps."""
        compiled = self._compile(batch_size)
        batch = synthetic.batch(self._model, batch_size)
        self._run(compiled, batch, 1)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            self._run(compiled, batch, steps)

    def _compile_anew(self, batch_size: int) -> Any:
        step = jax.jit(
            synthetic.train_step(self._model, self._config),
            donate_argnums=0,
            out_shardings=(train_state.state_shardings(self._model, self._config, self._mesh), None),
        )
        state = train_state.abstract(self._model, self._config, self._mesh)
        with sharding.scope(self._mesh):
            return step.lower(state, {}, synthetic.fields(self._model, batch_size)).compile()

    def _run(self, compiled: Any, batch: Any, steps: int) -> float:
        """The loss of the last of these steps, after it."""
        if self._state is None or any(leaf.is_deleted() for leaf in jax.tree.leaves(self._state)):
            self._state = None
            self._state = train_state.new(self._model, self._config, self._mesh)
        for _ in range(steps):
            self._state, metrics = compiled(self._state, {}, batch)
        return float(metrics["loss"])


def memory_limit() -> float:
    """Bytes that this process may use of the device; infinite where it does not say (CPU)."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)


def batches(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to `largest`."""
    return [size for k in range(1, 32) for size in (2 ** (k - 1), 3 * 2 ** (k - 2)) if size == int(size) <= largest]


def search(sizes: list[int], attempt: Callable[[int], Timing | None], guess: Callable[[Timing], int]) -> Timing | None:
    """The largest of these batches that fits; None where not even the smallest does.

    Args:
      sizes: increasing. guess: from the first timing, about how large a batch will fit.
    """
    attempt = functools.cache(attempt)
    at = sizes.index(max(size for size in sizes if size <= max(FIRST, sizes[0])))
    if first := attempt(sizes[at]):
        at = max(i for i, size in enumerate(sizes) if size <= max(guess(first), first.batch))
    while not attempt(sizes[at]):
        if at == 0:
            return None
        at -= 1
    while at + 1 < len(sizes) and attempt(sizes[at + 1]):
        at += 1
    return attempt(sizes[at])


def guess_batch(timing: Timing, params: int) -> int:
    """What fits if all that is neither state nor gradient grows with the batch.

    params: how many; 16 bytes each for parameters, EMA and moments, 4 for the gradient.
    """
    if memory_limit() == math.inf:
        return timing.batch
    grows = max(timing.memory - 20 * params, 1) / timing.batch
    return int((memory_limit() - 20 * params) / grows)


def print_timing(name: str, model: JointModel, config: Config, timing: Timing) -> None:
    peak = chips.peak_flops()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch=timing.batch))
    rates = [count(model, config) / timing.seconds for count in (flops.step_flops, flops.hardware_flops)]
    shares = [f"{100 * rate / peak:5.1f} %" if peak else "      -" for rate in rates]
    print(
        f"{name:<36} batch {timing.batch:>5}  {timing.seconds:8.4f} s  {timing.batch / timing.seconds:8.1f} images/s  "
        f"{rates[0] / 1e12:7.2f} TFLOP/s  MFU {shares[0]}  HFU {shares[1]}  {timing.memory / 2**30:6.1f} GiB",
        flush=True,
    )


def changes(options: argparse.Namespace, attention: str | None, remat: str | None) -> dict[str, dict[str, Any]]:
    chosen = {key: value for key, value in (("attention", attention), ("remat", remat)) if value is not None}
    sections = {name: dict(values) for name, values in (TINY if options.tiny else {}).items()}
    sections["model"] = sections.get("model", {}) | chosen
    return sections


def run(options: argparse.Namespace, path: pathlib.Path, attention: str | None, remat: str | None) -> None:
    config = synthetic.load(path, **changes(options, attention, remat))
    model = synthetic.model_of(config)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    trainer = Trainer(config, model, mesh)
    params = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    name = " ".join([path.stem, attention or "", remat or ""]).strip()

    def attempt(size: int) -> Timing | None:
        timing = trainer.time(size, STEPS)
        if timing is None:
            print(f"{name:<36} batch {size:>5}  does not fit", flush=True)
        else:
            print_timing(name, model, config, timing)
        return timing

    if options.batch:
        largest = next(filter(None, map(attempt, sorted(options.batch, reverse=True))), None)
    else:
        largest = search(batches(options.largest), attempt, lambda first: guess_batch(first, params))
    if largest and options.profile:
        folder = options.profile / name.replace(" ", "-")
        trainer.trace(largest.batch, folder)
        print(profile_costs.summary(folder), flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description="MFU of the train step on one GPU.", allow_abbrev=False)
    parser.add_argument("--configs", type=names, default=CONFIGS, help="names in configs/, or files; by commas")
    parser.add_argument("--attention", type=names, default=[None], help="kernels (default: each config's)")
    parser.add_argument("--remat", type=names, default=[None], help="presets (default: each config's)")
    parser.add_argument("--batch", type=numbers, help="the largest of these that fits, instead of all")
    parser.add_argument("--largest", type=int, default=4096, help="look no further than this batch size")
    parser.add_argument("--profile", type=pathlib.Path, metavar="DIR", help="where traces go")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try this program on a CPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = jax.devices()[0]
    if jax.device_count() > 1:
        sys.exit(f"this measures one device, there are {jax.device_count()}; set CUDA_VISIBLE_DEVICES=0")
    if device.platform == "cpu" and not options.tiny:
        sys.exit("there is no GPU here; --tiny tries the program on a CPU")
    peak = chips.peak_flops()
    known = f"peak {peak / 1e12:.0f} TFLOP/s" if peak else "peak not known"
    print(f"jax {jax.__version__}, {device.device_kind}, {known}", flush=True)
    for config, attention, remat in itertools.product(options.configs, options.attention, options.remat):
        path = pathlib.Path(config) if config.endswith(".py") else FOLDER / f"{config}.py"
        try:
            run(options, path, attention, remat)
        except (ValueError, OSError) as error:
            sys.exit(f"{config}: {error}")


if __name__ == "__main__":
    main()
