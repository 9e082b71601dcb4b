"""Whether compile time grows with depth: python benchmarks/compile_time.py

Compiles the train step of configs/mofo_370m.py at width 512, batch 8, with 6 and with 30 layers, which are a scan, in
turns. Prints the seconds to trace, lower and compile, by the clock and of processor time, which other load on the
machine disturbs less: every run, the medians, and the ratio of the medians, 30 to 6 layers, which is to be at most 1.3.
Compilation cache off; nothing is allocated or run.
"""

import statistics
import time

import jax
import synthetic

from mf_jax.training import train_state

LAYERS = (6, 30)
REPEATS = 5
LARGEST_RATIO = 1.3


def seconds(layers: int) -> tuple[float, float]:
    """(by the clock, of processor time)."""
    jax.clear_caches()
    config = synthetic.load("configs/mofo_370m.py", model={"width": 512, "layers": layers})
    model = synthetic.model_of(config)
    state, batch = train_state.abstract(model, config), synthetic.fields(model, 8)
    start = time.perf_counter(), time.process_time()
    jax.jit(synthetic.train_step(model, config), donate_argnums=0).lower(state, {}, batch).compile()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    seconds(LAYERS[0])  # what is imported and set up once
    runs = {layers: [] for layers in LAYERS}
    for _ in range(REPEATS):
        for layers in LAYERS:
            runs[layers].append(seconds(layers))
            print("{:>2} layers: {:6.2f} s, {:6.2f} s of processor time".format(layers, *runs[layers][-1]), flush=True)
    medians = {
        layers: [statistics.median(column) for column in zip(*rows, strict=True)] for layers, rows in runs.items()
    }
    for layers, values in medians.items():
        print("{:>2} layers, medians: {:6.2f} s, {:6.2f} s of processor time".format(layers, *values))
    clock, processor = (deep / shallow for deep, shallow in zip(medians[LAYERS[1]], medians[LAYERS[0]], strict=True))
    print(f"30 to 6 layers: {clock:.2f} by the clock, {processor:.2f} in processor time (at most {LARGEST_RATIO})")


if __name__ == "__main__":
    main()
