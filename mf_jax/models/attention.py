"""Bidirectional attention, by a choice of equivalent kernels: softmax in float32, grouped key/value heads.

    xla      plain products and softmax, on any platform; the only one that takes a bias
    splash   Pallas kernel for TPUs that never holds the logits; "splash_interpret" runs it step by step on a CPU
    cudnn    the fused kernel of cuDNN, for bfloat16 on NVIDIA GPUs
    heads    plain products and softmax, one key/value head at a time, whose logits stay in a CPU's cache; for sampling
             alone, see `kernel_for_sampling`

On a mesh, heads are split over `tensor` and queries over `context`; keys and values are gathered over `context`.

Legend: B batch, N queries, M keys, H query heads, K key/value heads, G = H / K, E head channels.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from mf_jax.parallel import sharding

KERNELS = ("xla", "splash", "cudnn")
HIDDEN = -0.5 * float(jnp.finfo(jnp.float32).max)  # the logit of a key that a query must not see
SAVED = "attention"  # the result's name for remat policies
LANES = 128  # sequence lengths of the splash kernel are multiples of it
LARGEST_TILE = 1280  # queries, and keys, of 128 channels that the splash kernel works on; half the queries in float32
SMALLEST_TILE = 512  # longer sequences are padded for it: with few of their length's divisors, tiles would be of 128
LARGEST_PART = 512  # of these keys, how many at a time in the forward pass

QUERY_AXES = ("batch", "heads", "sequence", "head")
KEY_AXES = ("batch", "kv_heads", "key_sequence", "head")


def kernel_for(name: str, platform: str, dtype: jnp.dtype) -> str:
    """The kernel that `model.attention` of a config selects on a platform ("cpu", "gpu", "tpu").

    Raises:
      ValueError: an unknown name, or a kernel that cannot run there.
    """
    if name not in ("auto", *KERNELS):
        raise ValueError(f"model.attention is {name!r}; it must be one of auto, {', '.join(KERNELS)}")
    half = dtype == jnp.bfloat16
    if name == "auto":
        return {"tpu": "splash", "gpu": "cudnn" if half else "xla"}.get(platform, "xla")
    if name == "splash" and platform != "tpu":
        if platform != "cpu":
            raise ValueError(f"model.attention is 'splash', a kernel for TPUs; the platform is {platform!r}")
        return "splash_interpret"
    if name == "cudnn" and not (platform == "gpu" and half):
        raise ValueError(
            f"model.attention is 'cudnn', a kernel for bfloat16 on GPUs; this is {jnp.dtype(dtype).name} on {platform}"
        )
    return name


def kernel_for_sampling(name: str, platform: str) -> str:
    """The kernel to sample with, where that to train with is `name` (by `kernel_for`)."""
    return "heads" if name == "xla" and platform == "cpu" else name


def attention(q_BNHE: jax.Array, k_BMKE: jax.Array, v_BMKE: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """`heads_first` for arrays with the tokens before the heads: (B, N, H, E)."""
    q, k, v = (x.swapaxes(1, 2) for x in (q_BNHE, k_BMKE, v_BMKE))
    return heads_first(q, k, v, *arguments, **options).swapaxes(1, 2)


def heads_first(
    q_BHNE: jax.Array,
    k_BKME: jax.Array,
    v_BKME: jax.Array,
    kernel: str = "xla",
    valid_BM: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale q k + bias) v over the valid keys, (B, H, N, E) in the dtype of v.

    Args:
      kernel: see the top of the file.
      valid_BM: bool, keys that are attended to; all by default. A query without any has a finite, meaningless result.
      bias: of the logits, float32 (B or 1, K or 1, N, M), for "xla" alone; HIDDEN where a key must not be seen.
      scale: of the logits, E^-0.5 by default.

    float32 inputs are multiplied as such, also where the device would by default use fewer bits.
    """
    scale = q_BHNE.shape[-1] ** -0.5 if scale is None else scale
    if kernel == "xla":
        return checkpoint_name(_xla(q_BHNE, k_BKME, v_BKME, valid_BM, bias, scale), SAVED)
    if bias is not None:
        raise ValueError(f"attention with a bias has the kernel 'xla', not {kernel!r}")
    result = _fused(q_BHNE, k_BKME, v_BKME, kernel, valid_BM, scale)
    return checkpoint_name(result, SAVED) if kernel == "cudnn" else result  # splash names its own


def _xla(q, k, v, valid_BM, bias, scale):
    """Attention by plain products and softmax, which XLA compiles."""
    B, H, N, E = q.shape
    K, M = k.shape[1:3]
    if sharding.is_split("sequence") or sharding.is_split("heads"):
        axes = (QUERY_AXES, KEY_AXES, KEY_AXES)
        q, k, v = (
            nn.with_logical_constraint(x, sharding.where_divisible(names, x.shape))
            for x, names in zip((q, k, v), axes, strict=True)
        )
        q_BKGNE = q.reshape(B, K, H // K, N, E)
        groups, rows = "bkgne,bkme->bkgnm", "bkgnm,bkme->bkgne"
    else:  # one product per key/value head, which a CPU does faster
        q_BKGNE = q.reshape(B, K, (H // K) * N, E)
        groups, rows = "bkqe,bkme->bkqm", "bkqm,bkme->bkqe"
    precision = jax.lax.Precision.HIGHEST if v.dtype == jnp.float32 else None
    logits = jnp.einsum(groups, q_BKGNE, k, precision=precision, preferred_element_type=jnp.float32) * scale
    shape = logits.shape
    if bias is not None:
        logits = (logits.reshape(B, K, H // K, N, M) + bias[:, :, None]).reshape(shape)
    if valid_BM is not None:
        logits = jnp.where(valid_BM.reshape(B, *(1,) * (len(shape) - 2), M), logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum(rows, weights, v, precision=precision).reshape(B, H, N, E)


def _fused(q, k, v, kernel, valid_BM, scale):
    """Attention by a kernel that the compiler cannot split, called on each device's part of the arrays."""
    heads, kv_heads = (sharding.spec(axes)[1] for axes in (QUERY_AXES, KEY_AXES))
    kv_axes: tuple[str | None, ...] = KEY_AXES
    if heads is None:
        kv_axes = ("batch", None, "key_sequence", "head")
    elif heads != kv_heads:  # query heads split, key/value heads whole
        k, v = (jnp.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
        kv_axes = ("batch", "heads", "key_sequence", "head")
    function = {"cudnn": _cudnn, "heads": _heads}.get(kernel, _splash)
    call = functools.partial(function, kernel=kernel, scale=scale)
    arrays = [q, k, v]
    axes: list[tuple[str | None, ...]] = [QUERY_AXES, kv_axes, kv_axes]
    if valid_BM is not None:
        arrays.append(valid_BM)
        axes.append(("batch", "key_sequence"))
    return sharding.per_device(call, axes, QUERY_AXES)(*arrays)


def _heads(q, k, v, valid_BM=None, *, kernel, scale):
    B, H, N, E = q.shape
    K, M = k.shape[1:3]
    rows = (q * scale).reshape(B * K, (H // K) * N, E)
    hidden_BM = None if valid_BM is None else jnp.repeat(~valid_BM, K, axis=0)
    precision = jax.lax.Precision.HIGHEST if v.dtype == jnp.float32 else None

    def one(head):
        q_RE, k_ME, v_ME, hidden_M = head
        logits = jnp.matmul(q_RE, k_ME.T, precision=precision, preferred_element_type=jnp.float32)
        if hidden_M is not None:
            logits = jnp.where(hidden_M, HIDDEN, logits)
        weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        out = jnp.matmul(weights.astype(v.dtype), v_ME, precision=precision, preferred_element_type=jnp.float32)
        return (out / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)

    out = jax.lax.map(one, (rows, k.reshape(B * K, M, E), v.reshape(B * K, M, E), hidden_BM))
    return out.reshape(B, H, N, E)


def _cudnn(q, k, v, valid_BM=None, *, kernel, scale):
    B, _, N, _ = q.shape
    mask = None if valid_BM is None else jnp.broadcast_to(valid_BM[:, None, None, :], (B, 1, N, k.shape[2]))
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation=kernel).swapaxes(1, 2)


def _splash(q, k, v, valid_BM=None, *, kernel, scale):
    B, H, N, E = q.shape
    M = k.shape[2]
    rows, columns = _padded(N), _padded(M)
    segments = None
    if columns != M or valid_BM is not None:
        valid_BM = jnp.ones((B, M), bool) if valid_BM is None else valid_BM
        keys_BM = jnp.pad(valid_BM, ((0, 0), (0, columns - M))).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.ones((B, rows), jnp.int32), kv=keys_BM)
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
        for x, length in ((q * scale, rows), (k, columns), (v, columns))
    )
    run = splash.make_splash_mha_single_device(
        splash_mask.MultiHeadMask([splash_mask.FullMask((rows, columns))] * H),
        block_sizes=_blocks(rows, columns, E, q.dtype.itemsize),
        residual_checkpoint_name=SAVED,
        interpret=kernel == "splash_interpret",
    )
    return jax.vmap(run)(q, k, v, segments)[:, :, :N].astype(v.dtype)


def _padded(length: int) -> int:
    """The next multiple of LANES that is a tile or divides into tiles of at least SMALLEST_TILE."""
    length = -(-length // LANES) * LANES
    while _largest(length, LARGEST_TILE) < min(length, SMALLEST_TILE):
        length += LANES
    return length


def _blocks(rows: int, columns: int, channels: int, itemsize: int) -> splash.BlockSizes:
    """Tiles that divide the lengths, up to what fits on v5e and v5p: larger ones use the matrix units better.

    The forward pass goes through a tile's keys in parts, but not in parts of 128. One backward kernel makes all three
    gradients: five products instead of the seven of two kernels. It writes the queries' gradient once per tile of keys.
    benchmarks/attention_schedule.py has the compiler's schedule for these tiles and for others.
    """
    largest = LARGEST_TILE // -(-channels // LANES)
    kv = _largest(columns, max(LANES, largest))
    q = _largest(rows, max(LANES, largest * 2 // max(2, itemsize)))
    part = _largest(kv, LARGEST_PART)
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=part if part > LANES else kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        use_fused_bwd_kernel=True,
    )


def _largest(length: int, limit: int) -> int:
    """The largest multiple of LANES up to a limit that divides a length."""
    return max(size for size in range(LANES, limit + 1, LANES) if length % size == 0)
