"""FLOPs of a training step by formula, 2 per multiply-add, attention counted in full.

Counted are the matrix products: projections, attention scores and values, feed-forward, token inputs and outputs.
Not counted are norms, softmax, rotary embedding, and layers without a token axis (noise-level embedders, modulation).

Model FLOPs (for MFU) are those of the forward and backward pass. Hardware FLOPs (for HFU) add what remat recomputes and
the frozen networks. Attention kernels that never write the scores out recompute them inside their backward pass; that
is counted in neither.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from mf_jax.joint_model import JointModel
from mf_jax.models.flux2 import Flux2
from mf_jax.models.weight_table import flatten
from mf_jax.training import partition
from mf_jax.training.config import Recipe

# Kinds of matrix products, and those that the backward pass recomputes under each remat preset (models/remat.py).
IN = "q k v gate up"  # a block's products with parameters, except
OUT = "attention_out mlp_down"  # these
SCORES = "scores"
VALUES = "values"  # scores times values: what an attention kernel returns
RECOMPUTED = {
    "none": (),
    "full": (IN, OUT, SCORES, VALUES),
    "attention_mlp": (IN, SCORES),
    "dots": (SCORES,),
    "offload": (IN, SCORES),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Matrix products of one kind in one stack of blocks, or outside of the blocks.

    Attributes:
      path: of their parameters, "backbone/trunk/q"; for attention, of the stack of blocks.
      flops: of the forward pass for one example.
      kind: IN, OUT, SCORES, VALUES; "" outside of the blocks.
    """

    path: str
    flops: int
    kind: str = ""

    @property
    def has_parameters(self) -> bool:
        return self.kind not in (SCORES, VALUES)


def _projections(path: str, blocks: int, tokens: int, width: int, heads: int, kv_heads: int, mlp: int) -> list[Part]:
    """The matrix products with parameters in a stack of blocks, for one stream of tokens."""
    kv_width = width // heads * kv_heads
    sizes = {"q": width, "k": kv_width, "v": kv_width, "mlp_gate": mlp, "mlp_up": mlp}
    outputs = {"attention_out": width, "mlp_down": mlp}
    into = [Part(f"{path}/{name}", 2 * blocks * tokens * width * size, IN) for name, size in sizes.items()]
    return into + [Part(f"{path}/{name}", 2 * blocks * tokens * size * width, OUT) for name, size in outputs.items()]


def _attention(path: str, blocks: int, tokens: int, width: int) -> list[Part]:
    """Attention of all tokens to all in a stack of blocks whose heads have `width` channels together."""
    return [Part(path, 2 * blocks * tokens**2 * width, kind) for kind in (SCORES, VALUES)]


def parts(model: JointModel) -> list[Part]:
    """All matrix products of the model with all its modalities."""
    net = model.backbone
    text = model.text.tokens
    tokens = {name: rows * columns for name, (rows, columns) in model.grids.items()}
    total = text + sum(tokens.values())
    kv_heads = net.heads if isinstance(net, Flux2) else net.kv_heads
    shape = (net.width, net.heads, kv_heads, int(net.width * net.mlp_ratio))

    def stack(path: str, blocks: int, count: int) -> list[Part]:
        return _projections(path, blocks, count, *shape) + _attention(path, blocks, count, net.width)

    found = [Part("backbone/text_in", 2 * text * model.text.channels * net.width)]
    if model.text_encoder is not None:
        found.append(Part("text/join", 2 * text * model.text.channels**2))
    if isinstance(net, Flux2):
        for name, count in {"text": text, **tokens}.items():
            found += _projections(f"backbone/double/{name}", net.double_blocks, count, *shape)
        found += _attention("backbone/double", net.double_blocks, total, net.width)
        found += stack("backbone/single", net.single_blocks, total)
    else:
        found += stack("backbone/trunk", net.layers, total)
    for name, modality in model.modalities.items():
        ends = 2 * tokens[name] * modality.codec.channels * net.width
        found += [Part(f"backbone/{name}_in", ends), Part(f"backbone/{name}_out", ends)]
        if modality.decoder_blocks:
            found += stack(f"backbone/{name}_decoder", modality.decoder_blocks, tokens[name])
    return found


def forward_flops(model: JointModel) -> int:
    """Forward FLOPs of one example with all modalities."""
    return sum(part.flops for part in parts(model))


def teacher_flops(model: JointModel) -> int:
    """Forward FLOPs of the self-distillation teacher for one example: the model with its leading modality alone."""
    alone = {model.leading: model.modalities[model.leading]}
    return forward_flops(dataclasses.replace(model, modalities=alone))


def step_flops(model: JointModel, config: Recipe) -> int:
    """Model FLOPs of one training step of a resolved config.

    The backward pass costs the forward's products twice, once for the inputs and once for the parameters (attention:
    for both of its factors). Left out are the gradients of parameters that are frozen, and of inputs before which
    nothing is trained: the data, and whole stacks where all that is trained comes after them. The teacher of
    self-distillation counts with its forward pass. The frozen networks are not part of the model.
    """
    example = teacher_flops(model) if config.objective.distills else 0
    example += sum(part.flops * (1 + times) for part, times in _backward(model, config.train.freeze))
    return config.train.batch * example


def hardware_flops(model: JointModel, config: Recipe, text_rows: float = 1.0) -> int:
    """FLOPs of the matrix products that the device computes in one training step of a resolved config.

    Those of `step_flops`, what `model.remat` computes again, and the forward passes of the frozen networks in
    `model.networks`: remove those whose results come with the batch from the model before.

    Args:
      text_rows: rows of the frozen text encoder per example; below 1 where captions share rows.

    Raises:
      ValueError: the sizes of a frozen network are not known.
    """
    again = _recomputed(model.backbone.remat, model.backbone.attention)
    backward = _backward(model, config.train.freeze)
    example = sum(part.flops for part, times in backward if times and part.kind in again)
    for name, network in model.networks.items():
        example += round(network.flops(model.resolution).encode * (text_rows if name == "text" else 1.0))
    return step_flops(model, config) + config.train.batch * example


def _recomputed(preset: str, kernel: str) -> set[str]:
    """Kinds of products that a block recomputes in the backward pass, outside of the attention kernel's own."""
    again = set(RECOMPUTED[preset])
    if kernel.startswith("splash") and VALUES not in again:
        again.discard(SCORES)  # the kernel's result and the sums of its softmax are kept: nothing is left to run
    if kernel == "cudnn" and SCORES in again:
        again.add(VALUES)  # the sums of the softmax are not kept, and only the whole kernel makes them
    return again


def _backward(model: JointModel, frozen: tuple[str, ...]) -> list[tuple[Part, int]]:
    """Every part, and how many times its forward products the backward pass costs: 0, 1 or 2.

    Args:
      frozen: train.freeze.
    """
    first = 0 if model.text_encoder is not None else 1
    if frozen:
        params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
        first = min(_stage(path) for path in flatten(partition.partition(params, frozen)[0]))
    data = [f"backbone/{name}_in" for name in model.modalities]
    result = []
    for part in parts(model):
        stage = _stage(part.path)
        # Within the stage where training starts, all but the first block have something trained before them.
        to_inputs = part.path not in data and (stage > first or (stage == first and bool(part.kind or stage == 0)))
        trained = not any(f"{part.path}/".startswith(f"{path}/") for path in frozen)
        result.append((part, to_inputs + (to_inputs if not part.has_parameters else trained)))
    return result


def _stage(path: str) -> int:
    """Position of a parameter in the forward pass, 0 to 5: gradients reach back to the first trained one."""
    top, name = path.split("/")[:2]
    if top == "text":
        return 0
    if name == "double" or name.endswith("_double_modulation"):
        return 2
    if name.endswith(("_decoder", "_decoder_modulation")):
        return 4
    if name.endswith(("_out", "_out_norm", "_out_modulation")):
        return 5
    if name in ("trunk", "single") or name.endswith("_modulation"):
        return 3
    return 1  # text_in, the modalities' _in, noise-level embedders
