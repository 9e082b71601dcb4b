"""How long a step of guided sampling takes, next to PyTorch: python benchmarks/sampling_speed.py

One example, joint mode, guidance 4, float32, with the model of flux2_speed.py. Both compute the same samples from the
same weights, text features and noise, and return when all is computed. Ours is the package's sampler: one program of
all steps, in which both texts are one batch. PyTorch's goes the way of the official sampler: a loop in Python with a
forward pass for each text; without gradients, with fused projections, fused attention and rotary tables made before.

The two take turns, so that other load on the machine meets both; the ratio is the median of the pairs'.
"""

import os
import statistics
import time

import flux2_speed
import jax
import numpy as np
from flux2_speed import GRID, MODEL, TEXT_CHANNELS, TEXT_TOKENS, torch, weight_table

from mf_jax.diffusion.sampler import euler
from mf_jax.diffusion.schedule import schedules
from mf_jax.models import flux2_weights
from mf_jax.models.attention import kernel_for_sampling

STEPS, PAIRS, WARM = 4, 11, 1
SCALE, T_FLOOR, PREDICTION = 4.0, 0.05, {"image": "v", "depth": "x"}


def problem():
    """(parameters, noise by modality, text features of the prompt and of the empty one, schedule by modality)."""
    flux2_speed.BATCH = 1
    params, _, _, _ = flux2_speed.problem()
    generator = np.random.default_rng(1)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    noise = {stream.name: normal(1, GRID[0] * GRID[1], stream.channels) for stream in MODEL.streams}
    text, null = normal(1, TEXT_TOKENS, TEXT_CHANNELS), normal(1, TEXT_TOKENS, TEXT_CHANNELS)
    return params, noise, text, null, schedules(tuple(noise), STEPS, {}, log2_alpha={"depth": 5.0})


def jax_sampler(params, noise, text, null, walk):
    """A function that returns the sampled tokens by modality."""
    model = MODEL.clone(attention=kernel_for_sampling(MODEL.attention, jax.default_backend()))

    def run(params, noise, text, null, walk, guidance):
        def predict(x, t, features):
            return model.apply({"params": params}, x, t, dict.fromkeys(x, GRID), features)

        return euler(predict, noise, walk, PREDICTION, {}, text, null, guidance, T_FLOOR)

    compiled = jax.jit(run)
    given = jax.device_put((params, noise, text, null, walk, dict.fromkeys(noise, np.float32(SCALE))))
    return lambda: jax.block_until_ready(compiled(*given))


def torch_sampler(params, noise, text, null, walk):
    """The same in PyTorch."""
    table = flux2_weights.table(MODEL, prefix="")
    w = {name: torch.tensor(value) for name, value in weight_table.to_theirs(params, table).items()}
    start = {name: torch.tensor(value) for name, value in noise.items()}
    text, null = torch.tensor(text), torch.tensor(null)
    levels = {name: [float(t) for t in walk[name]] for name in noise}

    def run():
        x = dict(start)
        with torch.inference_mode():
            for k in range(STEPS):
                t = {name: torch.full((1,), levels[name][k]) for name in x}
                with_text, without = (flux2_speed.torch_forward(w, x, t, features) for features in (text, null))
                for name in x:
                    y = without[name] + SCALE * (with_text[name] - without[name])
                    now, after = levels[name][k : k + 2]
                    velocity = y if PREDICTION[name] == "v" else (x[name] - y) / max(now, T_FLOOR)
                    x[name] = x[name] + (after - now) * velocity
        return x

    return run


def main() -> None:
    given = problem()
    contestants = {"jax": jax_sampler(*given), "torch": torch_sampler(*given)}
    ours, theirs = (sampler() for sampler in contestants.values())
    apart = max(np.abs(np.asarray(ours[name]) - theirs[name].numpy()).max() for name in ours)
    size = max(float(np.abs(theirs[name].numpy()).max()) for name in ours)
    print(
        f"jax {jax.__version__}, torch {torch.__version__} with {torch.get_num_threads()} threads, {os.cpu_count()} "
        f"processors; tokens up to {size:.0f}, at most {apart:.1e} apart"
    )
    load = [os.getloadavg()[0]]
    times = {name: [] for name in contestants}
    for pair in range(PAIRS + WARM):
        for name in contestants if pair % 2 else reversed(contestants):
            wall, own = flux2_speed.timed(contestants[name])
            times[name] += [(wall / STEPS, own / STEPS)] if pair >= WARM else []
        time.sleep(0.2)  # threads of one that still spin must not meet the other
    load.append(os.getloadavg()[0])
    for name, both in times.items():
        wall, own = zip(*both, strict=True)
        print(
            f"{name:6} {1000 * statistics.median(wall):6.1f} ms per step (best {1000 * min(wall):.1f}), "
            f"{1000 * statistics.median(own):.1f} ms of processors"
        )
    wall, own = (
        statistics.median(a[kind] / b[kind] for a, b in zip(times["jax"], times["torch"], strict=True))
        for kind in (0, 1)
    )
    print(f"jax / torch, median of {PAIRS} pairs: wall {wall:.2f}, processors {own:.2f}")
    print(f"load of the machine: {load[0]:.1f} before, {load[1]:.1f} after")


if __name__ == "__main__":
    main()
