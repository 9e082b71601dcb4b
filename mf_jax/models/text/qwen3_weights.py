"""The weight table of Qwen3: names of Qwen/Qwen3-8B and its siblings on one side, `models/qwen3.py` on the other."""

from mf_jax.models.text.qwen3 import Qwen3
from mf_jax.models.weight_table import Entry

_LINEAR = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
}


def table(encoder: Qwen3) -> list[Entry]:
    """The arrays of an encoder. Layers above the last one it reads, the final norm and the head are left over."""
    layers = encoder.layers[-1]
    there = "model.layers.{i}."
    return [
        Entry("embedding", "model.embed_tokens.weight"),
        *(Entry(f"layers/{o}/kernel", f"{there}{t}.weight", "linear", layers) for o, t in _LINEAR.items()),
        *(Entry(f"layers/{o}/scale", f"{there}{t}.weight", layers=layers) for o, t in _NORMS.items()),
    ]
