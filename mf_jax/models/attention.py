"""Bidirectional attention, by a choice of equivalent kernels: softmax in float32, grouped key/value heads.

    xla      plain products and softmax, on any platform; the only one that takes a bias
    splash   Pallas kernel for TPUs that never holds the logits; "splash_interpret" runs it step by step on a CPU
    cudnn    the fused kernel of cuDNN, for bfloat16 on NVIDIA GPUs

On a mesh, heads are split over `tensor` and queries over `context`; keys and values are gathered over `context`.

Legend: B batch, N queries, M keys, H query heads, K key/value heads, G = H / K, E head channels.
"""

from __future__ import annotations

import functools

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
LARGEST_BLOCK = 512

QUERY_AXES = ("batch", "sequence", "heads", "head")
KEY_AXES = ("batch", "key_sequence", "kv_heads", "head")


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


def attention(
    q_BNHE: jax.Array,
    k_BMKE: jax.Array,
    v_BMKE: jax.Array,
    kernel: str = "xla",
    valid_BM: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale q k + bias) v over the valid keys, (B, N, H, E) in the dtype of v.

    Args:
      kernel: see the top of the file.
      valid_BM: bool, keys that are attended to; all by default. A query without any has a finite, meaningless result.
      bias: of the logits, float32 (B or 1, K or 1, N, M), for "xla" alone; HIDDEN where a key must not be seen.
      scale: of the logits, E^-0.5 by default.

    float32 inputs are multiplied as such, also where the device would by default use fewer bits.
    """
    scale = q_BNHE.shape[-1] ** -0.5 if scale is None else scale
    if kernel == "xla":
        result = _xla(q_BNHE, k_BMKE, v_BMKE, valid_BM, bias, scale)
    else:
        if bias is not None:
            raise ValueError(f"attention with a bias has the kernel 'xla', not {kernel!r}")
        result = _fused(q_BNHE, k_BMKE, v_BMKE, kernel, valid_BM, scale)
    return checkpoint_name(result, SAVED)


def _xla(q, k, v, valid_BM, bias, scale):
    """Attention by plain products and softmax, which XLA compiles."""
    B, N, H, E = q.shape
    M, K = k.shape[1:3]
    if sharding.is_split("sequence") or sharding.is_split("heads"):
        axes = (QUERY_AXES, KEY_AXES, KEY_AXES)
        q, k, v = (
            nn.with_logical_constraint(x, sharding.where_divisible(names, x.shape))
            for x, names in zip((q, k, v), axes, strict=True)
        )
        q_BKGNE = q.reshape(B, N, K, H // K, E).transpose(0, 2, 3, 1, 4)
        groups, rows = "bkgne,bkme->bkgnm", "bkgnm,bkme->bkgne"
    else:  # one product per key/value head, which a CPU does faster
        q_BKGNE = q.reshape(B, N, K, H // K, E).transpose(0, 2, 3, 1, 4).reshape(B, K, (H // K) * N, E)
        groups, rows = "bkqe,bkme->bkqm", "bkqm,bkme->bkqe"
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    precision = jax.lax.Precision.HIGHEST if v.dtype == jnp.float32 else None
    logits = jnp.einsum(groups, q_BKGNE, k, precision=precision, preferred_element_type=jnp.float32) * scale
    shape = logits.shape
    if bias is not None:
        logits = (logits.reshape(B, K, H // K, N, M) + bias[:, :, None]).reshape(shape)
    if valid_BM is not None:
        logits = jnp.where(valid_BM.reshape(B, *(1,) * (len(shape) - 2), M), logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum(rows, weights, v, precision=precision)
    return out.reshape(B, K, H // K, N, E).transpose(0, 3, 1, 2, 4).reshape(B, N, H, E)


def _fused(q, k, v, kernel, valid_BM, scale):
    """Attention by a kernel that the compiler cannot split, called on each device's part of the arrays."""
    heads, kv_heads = (sharding.spec(axes)[2] for axes in (QUERY_AXES, KEY_AXES))
    kv_axes: tuple[str | None, ...] = KEY_AXES
    if heads is None:
        kv_axes = ("batch", "key_sequence", None, "head")
    elif heads != kv_heads:  # query heads split, key/value heads whole
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        kv_axes = ("batch", "key_sequence", "heads", "head")
    call = functools.partial(_splash if kernel.startswith("splash") else _cudnn, kernel=kernel, scale=scale)
    arrays = [q, k, v]
    axes: list[tuple[str | None, ...]] = [QUERY_AXES, kv_axes, kv_axes]
    if valid_BM is not None:
        arrays.append(valid_BM)
        axes.append(("batch", "key_sequence"))
    return sharding.per_device(call, axes, QUERY_AXES)(*arrays)


def _cudnn(q, k, v, valid_BM=None, *, kernel, scale):
    B, N = q.shape[:2]
    mask = None if valid_BM is None else jnp.broadcast_to(valid_BM[:, None, None, :], (B, 1, N, k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation=kernel)


def _splash(q, k, v, valid_BM=None, *, kernel, scale):
    B, N, H, _ = q.shape
    M = k.shape[1]
    rows, columns = (-(-length // LANES) * LANES for length in (N, M))
    segments = None
    if columns != M or valid_BM is not None:
        valid_BM = jnp.ones((B, M), bool) if valid_BM is None else valid_BM
        keys_BM = jnp.pad(valid_BM, ((0, 0), (0, columns - M))).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.ones((B, rows), jnp.int32), kv=keys_BM)
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        for x, length in ((q * scale, rows), (k, columns), (v, columns))
    )
    run = splash.make_splash_mha_single_device(
        splash_mask.MultiHeadMask([splash_mask.FullMask((rows, columns))] * H),
        block_sizes=_blocks(rows, columns),
        residual_checkpoint_name=SAVED,
        interpret=kernel == "splash_interpret",
    )
    out_BHNE = jax.vmap(run)(q, k, v, segments)
    return out_BHNE.transpose(0, 2, 1, 3)[:, :N].astype(v.dtype)


def _blocks(rows: int, columns: int) -> splash.BlockSizes:
    """The largest tiles up to LARGEST_BLOCK that divide the lengths."""
    q, kv = (
        max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0) for length in (rows, columns)
    )
    return splash.BlockSizes(block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv)
