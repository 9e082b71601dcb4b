"""The weight table of UMT5: names of google/umt5-xxl on one side, `models/umt5.py` on the other."""

from collections.abc import Container

from mf_jax.models.text.umt5 import UMT5Encoder
from mf_jax.models.weight_table import Entry

SHARED = "shared.weight"
_LINEAR = {
    "q": "layer.0.SelfAttention.q",
    "k": "layer.0.SelfAttention.k",
    "v": "layer.0.SelfAttention.v",
    "o": "layer.0.SelfAttention.o",
    "wi_0": "layer.1.DenseReluDense.wi_0",
    "wi_1": "layer.1.DenseReluDense.wi_1",
    "wo": "layer.1.DenseReluDense.wo",
}
_NORMS = {"attention_norm": "layer.0.layer_norm", "mlp_norm": "layer.1.layer_norm"}


def table(encoder: UMT5Encoder, tensors: Container[str] = (SHARED,)) -> list[Entry]:
    """The arrays of an encoder. The decoder's tensors and second copies of the embedding are left over.

    Args:
      tensors: the names in the file. Some have encoder.embed_tokens.weight in the place of shared.weight.
    """
    layers = encoder.config.num_layers
    there = "encoder.block.{i}."
    position = "layer.0.SelfAttention.relative_attention_bias"
    return [
        Entry("embedding", SHARED if SHARED in tensors else "encoder.embed_tokens.weight"),
        *(Entry(f"layers/{o}/kernel", f"{there}{t}.weight", "linear", layers) for o, t in _LINEAR.items()),
        *(Entry(f"layers/{o}/scale", f"{there}{t}.weight", layers=layers) for o, t in _NORMS.items()),
        Entry("layers/position_bias", f"{there}{position}.weight", layers=layers),
        Entry("final_norm/scale", "encoder.final_layer_norm.weight"),
    ]
