"""How fast FLUX.2 with depth is, next to PyTorch where it is installed: python benchmarks/flux2_speed.py

Prints, warm, in float32, for one forward pass and for one with the gradients of all parameters: wall seconds (median
and best), seconds of processor time, model FLOP/s. PyTorch computes the same outputs from the same parameters, fused
projections and fused attention included; the two take turns, so that other load on the machine meets both.

Legend: B batch, M text tokens, N tokens of one modality, T all tokens, W width, H heads, E head channels.
"""

import functools
import os
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.models import flux2_weights, weight_table
from mf_jax.models.flux2 import Flux2
from mf_jax.models.layers import positions, rotary_table, text_positions
from mf_jax.models.stream import Stream

try:
    import torch
    from torch.nn import functional
except ImportError:
    torch = None

REPEATS = 11
BATCH, GRID, TEXT_TOKENS, TEXT_CHANNELS = 4, (16, 16), 64, 768
MODEL = Flux2(
    streams=(Stream("image", 128, position=0, decoder_blocks=0), Stream("depth", 256, position=1, decoder_blocks=2)),
    width=384,
    heads=6,
    double_blocks=2,
    single_blocks=4,
    axes=(16, 16, 16, 16),
    cross_mixing=False,
)


def forward_flops() -> int:
    """2 per multiply-add, of the matrix products over tokens; attention in full."""
    W, mlp, N = MODEL.width, int(MODEL.width * MODEL.mlp_ratio), GRID[0] * GRID[1]
    T = TEXT_TOKENS + 2 * N
    decoder = MODEL.streams[1].decoder_blocks
    block_tokens = T * (MODEL.double_blocks + MODEL.single_blocks) + N * decoder
    linear = block_tokens * (4 * W * W + 3 * W * mlp)
    linear += TEXT_TOKENS * TEXT_CHANNELS * W + 2 * N * W * sum(stream.channels for stream in MODEL.streams)
    attention = 2 * W * (T * T * (MODEL.double_blocks + MODEL.single_blocks) + N * N * decoder)
    return 2 * BATCH * (linear + attention)


def problem():
    """(parameters, none of them zero; x, t, text)."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    N = GRID[0] * GRID[1]
    x = {stream.name: normal(BATCH, N, stream.channels) for stream in MODEL.streams}
    t = {stream.name: generator.random(BATCH).astype(np.float32) for stream in MODEL.streams}
    text = normal(BATCH, TEXT_TOKENS, TEXT_CHANNELS)
    grids = dict.fromkeys(x, GRID)
    shapes = jax.eval_shape(lambda: nn.unbox(MODEL.init(jax.random.key(0), x, t, grids, text)["params"]))
    params = jax.tree.map(lambda s: normal(*s.shape) / np.float32(np.sqrt(max(s.shape[-2:-1] or (1,)))), shapes)
    return params, x, t, text


def jax_calls(*given):
    """(forward, forward and backward): functions that return when all is computed."""

    def forward(params, x, t, text):
        return MODEL.apply({"params": params}, x, t, dict.fromkeys(x, GRID), text)

    def loss(*given):
        return sum(jnp.mean(jnp.square(y)) for y in forward(*given).values())

    given = jax.device_put(given)
    run, gradient = jax.jit(forward), jax.jit(jax.grad(loss))
    return (lambda: jax.block_until_ready(run(*given))), (lambda: jax.block_until_ready(gradient(*given)))


def torch_calls(params, x, t, text):
    """The same in PyTorch."""
    w = {
        name: torch.tensor(v)
        for name, v in weight_table.to_theirs(params, flux2_weights.table(MODEL, prefix="")).items()
    }
    x, t = ({name: torch.tensor(value) for name, value in given.items()} for given in (x, t))
    text = torch.tensor(text)
    tensors = list(w.values())

    def forward():
        with torch.no_grad():
            return torch_forward(w, x, t, text)

    def gradient():
        for tensor in tensors:
            tensor.requires_grad_(True)
        outputs = torch_forward(w, x, t, text)
        return torch.autograd.grad(sum(y.square().mean() for y in outputs.values()), tensors)

    return forward, gradient


@functools.cache
def torch_tables(names):
    """Rotary tables of streams in a sequence; made once, as no token moves between calls."""
    where = {"txt": text_positions(TEXT_TOKENS), "img": positions(*GRID, 0), "depth": positions(*GRID, 1)}
    table = rotary_table(np.concatenate([where[name] for name in names]), MODEL.axes, MODEL.theta)
    return [torch.tensor(entry)[:, None] for entry in table]


def torch_forward(w, x, t, text):
    """Outputs by modality; w: published tensors by name."""
    streams = {"txt": text, "img": x["image"], "depth": x["depth"]}
    ends = [h.shape[1] for h in streams.values()]

    def linear(name, h):
        return functional.linear(h, w[f"{name}.weight"])

    def vector(name, t_B):
        phase = 1000.0 * t_B[:, None] * torch.exp(-np.log(10000.0) * torch.arange(128) / 128)
        hidden = linear(f"{name}.in_layer", torch.cat([phase.cos(), phase.sin()], dim=1))
        return functional.silu(linear(f"{name}.out_layer", functional.silu(hidden)))

    def modulate(h, shift, scale):
        return (1 + scale) * functional.layer_norm(h, h.shape[-1:], eps=1e-6) + shift

    def chunks(name, vector, count):
        return linear(name, vector)[:, None].chunk(count, dim=-1)

    def qkv(h, norm):
        q, k, v = h.unflatten(-1, (3, MODEL.heads, -1)).unbind(2)
        q, k = (
            functional.rms_norm(a, a.shape[-1:], w[f"{norm}.{name}_norm.scale"], eps=1e-6)
            for a, name in ((q, "query"), (k, "key"))
        )
        return q, k, v

    def attend(q, k, v, cos, sin):
        def turn(a):
            even, odd = a[..., 0::2], a[..., 1::2]
            return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2)

        q, k, v = (a.transpose(1, 2) for a in (turn(q), turn(k), v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def gated(h):
        gate, up = h.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def single(name, h, shift, scale, gate, table):
        both = linear(f"{name}.linear1", modulate(h, shift, scale))
        attention, mlp = both[..., : 3 * MODEL.width], both[..., 3 * MODEL.width :]
        mixed = attend(*qkv(attention, f"{name}.norm"), *table)
        return h + gate * linear(f"{name}.linear2", torch.cat([mixed, gated(mlp)], dim=-1))

    image, depth = vector("time_in", t["image"]), vector("time_in_depth", t["depth"])
    of = {"txt": image, "img": image, "depth": depth}
    h = {name: linear(f"{name}_in", value) for name, value in streams.items()}
    modulation = {name: chunks(f"double_stream_modulation_{name}.lin", of[name], 6) for name in streams}
    table = torch_tables(tuple(streams))
    for i in range(MODEL.double_blocks):
        block = f"double_blocks.{i}"
        parts = []
        for name, (shift, scale, *_) in modulation.items():
            fused = linear(f"{block}.{name}_attn.qkv", modulate(h[name], shift, scale))
            parts.append(qkv(fused, f"{block}.{name}_attn.norm"))
        mixed = attend(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)), *table).split(ends, dim=1)
        for (name, (_, _, gate, shift, scale, mlp_gate)), own in zip(modulation.items(), mixed, strict=True):
            h[name] = h[name] + gate * linear(f"{block}.{name}_attn.proj", own)
            hidden = gated(linear(f"{block}.{name}_mlp.0", modulate(h[name], shift, scale)))
            h[name] = h[name] + mlp_gate * linear(f"{block}.{name}_mlp.2", hidden)

    first = chunks("single_stream_modulation.lin", image, 3)
    second = chunks("single_stream_modulation_depth.lin", depth, 3)
    per_token = [
        torch.cat([a.expand(-1, ends[0] + ends[1], -1), b.expand(-1, ends[2], -1)], dim=1)
        for a, b in zip(first, second, strict=True)
    ]
    joined = torch.cat(list(h.values()), dim=1)
    for i in range(MODEL.single_blocks):
        joined = single(f"single_blocks.{i}", joined, *per_token, table)
    _, rgb, own = joined.split(ends, dim=1)
    decoder, table = chunks("depth_decoder_modulation.lin", depth, 3), torch_tables(("depth",))
    for i in range(MODEL.streams[1].decoder_blocks):
        own = single(f"depth_decoder_blocks.{i}", own, *decoder, table)
    outputs = {}
    for name, tokens, last, given in (("image", rgb, "final_layer", image), ("depth", own, "depth_final_layer", depth)):
        shift, scale = chunks(f"{last}.adaLN_modulation.1", given, 2)
        outputs[name] = linear(f"{last}.linear", modulate(tokens, shift, scale))
    return outputs


def timed(function) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, own = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - own


def main() -> None:
    given = problem()
    contestants = {"jax": jax_calls(*given)}
    versions = f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} processors"
    if torch is not None and jax.default_backend() == "cpu":
        contestants["torch"] = torch_calls(*given)
        versions += f", torch {torch.__version__} with {torch.get_num_threads()} threads"
        ours, theirs = (calls[0]() for calls in contestants.values())
        apart = max(np.abs(np.asarray(ours[name]) - theirs[name].numpy()).max() for name in ours)
        versions += f"; outputs at most {apart:.1e} apart"
    print(versions)
    for i, (title, work) in enumerate((("forward", forward_flops()), ("forward+backward", 3 * forward_flops()))):
        times = {name: [] for name in contestants}
        for repeat in range(REPEATS + 1):
            for name, calls in contestants.items():
                seconds = timed(calls[i])
                times[name] += [seconds] if repeat else []
        for name, both in times.items():
            wall, own = zip(*both, strict=True)
            median = statistics.median(wall)
            print(
                f"{title:17}{name:6} {median:6.2f} s (best {min(wall):.2f}), {statistics.median(own):.2f} processor s, "
                f"{work / median / 1e9:.1f} GFLOP/s of {work / 1e9:.1f} GFLOP"
            )
        if len(times) == 2:
            wall, own = (
                statistics.median(a[kind] for a in times["jax"]) / statistics.median(b[kind] for b in times["torch"])
                for kind in (0, 1)
            )
            print(f"{title:17}jax / torch: wall {wall:.2f}, processor {own:.2f}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
