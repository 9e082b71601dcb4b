"""The FLOP formula against XLA's count at the real sizes: python benchmarks/flops_against_xla.py [CONFIG ...]

For each config, all of the paper's models unless named: model FLOPs of one example by mf_jax/flops.py, and by how much
XLA's count of the same computation exceeds them: the model's forward pass, forward and backward, and the whole train
step at the config's batch (noise, loss, teacher, AdamW, EMA). XLA counts before it optimises, without remat, with the
blocks unrolled, because it counts the body of a loop once. Latents and text features come with the batch, so that the
frozen networks are in neither count. Nothing is compiled, allocated or run.

XLA also counts, by the element, what the formula leaves out: norms, activations, softmax, rotary embedding, AdamW; and
the products that have no token axis.
"""

import functools
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import synthetic

from mf_jax.monitoring import flops
from mf_jax.training import partition, train_state

CONFIGS = [f"configs/{kind}_{size}.py" for kind in ("t2i", "mofo") for size in ("370m", "800m", "3b")]
CONFIGS.append("configs/flux2_klein_9b.py")


def counted(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def counts(model, config) -> tuple[float, float, float]:
    """XLA's (forward, forward and backward, train step), per example."""
    B = config.train.batch
    batch = synthetic.fields(model, B)
    state = train_state.abstract(model, config)
    x = {
        name: jax.ShapeDtypeStruct((B, rows * columns, model.modalities[name].codec.channels), jnp.float32)
        for name, (rows, columns) in model.grids.items()
    }
    t = dict.fromkeys(x, jax.ShapeDtypeStruct((B,), jnp.float32))

    def forward(trained, frozen, x, t, batch):
        return sum(jnp.sum(y) for y in model.predict(partition.combine(trained, frozen), x, t, batch).values())

    teacher = state.params if config.objective.distills else None
    arguments = (state.params, state.untrained, x, t, batch)
    return (
        counted(forward, *arguments) / B,
        counted(jax.value_and_grad(forward), *arguments) / B,
        counted(synthetic.train_step(model, config), state, {}, batch, teacher) / B,
    )


def main() -> None:
    nn.scan = functools.partial(nn.scan, unroll=True)
    print(f"jax {jax.__version__}")
    print(f"{'':<30}  {'forward':>18}  {'forward+backward':>18}  {'train step':>18}")
    for path in sys.argv[1:] or CONFIGS:
        start = time.perf_counter()
        config = synthetic.load(path, model={"remat": "none", "attention": "xla"})
        model = synthetic.model_of(config)
        step = flops.step_flops(model, config) // config.train.batch
        teacher = flops.teacher_flops(model) if config.objective.distills else 0
        formula = (flops.forward_flops(model), step - teacher, step)
        columns = (
            f"{own / 1e12:8.4f} T {100 * (found / own - 1):+6.2f} %"
            for own, found in zip(formula, counts(model, config), strict=True)
        )
        print(f"{path:<30}  {'  '.join(columns)}  ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
