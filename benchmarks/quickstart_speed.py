"""How fast the quickstart trains, and whether its data keeps up.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/quickstart_speed.py      # as make quickstart does

Prints, from one run on an otherwise idle machine: the warm train step (median of 20, model FLOP/s by
mf_jax/monitoring/flops.py), a 2048^2 float32 matrix product for scale, and the images/s of the loader alone with 2
worker processes.
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp

from mf_jax.config import loading as configs
from mf_jax.data.loader import build_train_loader
from mf_jax.joint_model import build_model
from mf_jax.monitoring import flops
from mf_jax.parallel import sharding
from mf_jax.training import train_state
from mf_jax.training.train_step import make_train_step


def median_seconds(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def loader_of(config, workers: int):
    data = dataclasses.replace(config.data, workers=workers)
    tokenizer = config.text.tokenizer()
    return build_train_loader(data, batch_size=config.train.batch, tokenizer=tokenizer, seed=config.seed)


def step_seconds(config) -> tuple[float, float]:
    """(median seconds of a warm train step, its model FLOPs)."""
    mesh = sharding.make_mesh(sharding.MeshConfig())
    model = build_model(config)
    loader = loader_of(config, 0)
    batch = sharding.put_batch(next(loader), mesh)
    loader.close()
    optimizer = config.optimizer.make(config.train.steps)
    step = jax.jit(make_train_step(model, config.objective, optimizer, config.seed, 1, 0.99), donate_argnums=0)
    holder = {"state": train_state.new(model, config, mesh)}

    def once():
        holder["state"], metrics = step(holder["state"], {}, batch)
        return metrics

    with sharding.scope(mesh):
        median_seconds(once, 2)
        return median_seconds(once, 20), flops.step_flops(model, config)


def loader_images_per_second(config, workers: int, batches: int = 60) -> float:
    loader = loader_of(config, workers)
    batch = config.train.batch
    for _ in range(10):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    rate = batches * batch / (time.perf_counter() - start)
    loader.close()
    return rate


def main() -> None:
    config = configs.load("configs/quickstart.py")
    x = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    median_seconds(lambda: product(x, x), 2)
    matmul = 2 * 2048**3 / median_seconds(lambda: product(x, x), 20)
    seconds, work = step_seconds(config)
    consumed = config.train.batch / seconds
    delivered = loader_images_per_second(config, 2)
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(f"matrix product 2048^2: {matmul / 1e9:.0f} GFLOP/s")
    print(f"train step: {seconds:.3f} s, {consumed:.1f} images/s, {work / seconds / 1e9:.1f} GFLOP/s (model FLOPs)")
    print(f"loader alone, 2 workers: {delivered:.0f} images/s, {delivered / consumed:.1f} times the train step's")


if __name__ == "__main__":
    main()
