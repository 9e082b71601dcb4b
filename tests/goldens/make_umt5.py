"""Writes umt5/: a tiny UMT5 encoder with random weights, and what transformers computes with it.

    python tests/goldens/make_umt5.py        # needs torch and transformers; nothing else in the project does

The numbers there were made with torch 2.13.0+cpu and transformers 5.23.0 (Python 3.11), float32, one thread.

config.json, model.safetensors: as transformers saves them. umt5.npz, legend B batch, L tokens, D width:
  ids (B, L) int64, mask (B, L) int64, 1 where real. Padding is on the right and has id 0; row 0 also has a real 0.
  hidden_0 .. hidden_2 (B, L, D): the residual stream before each layer. last (B, L, D): after the last layer and the
  final norm. Padded positions are as transformers leaves them, not zero.
  positions (P,) int64 and, for each, key position minus query position, its bucket of (buckets, maximum distance):
  bucket_8_16, bucket_32_128 (P,) int64.

The rows of two tokens in the embedding are a thousandth of the others': there a wrong epsilon of the norms shows.
"""

import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / "umt5"
LENGTHS = (40, 23, 9, 1)
FAINT = (5, 6)


def weights(name: str, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random values for one tensor: norm scales around 1, linear layers that keep the size of their input."""
    noise = torch.randn(value.shape, generator=generator)
    if "layer_norm" in name:
        return 1 + 0.3 * noise
    if "relative_attention_bias" in name:
        return noise
    if name in ("shared.weight", "encoder.embed_tokens.weight"):
        noise[list(FAINT)] *= 1e-3
        return noise
    return noise * value.shape[1] ** -0.5 * (0.5 if name.endswith(".q.weight") else 1.0)


def main() -> None:
    torch.set_num_threads(1)
    config = transformers.UMT5Config(
        vocab_size=100,
        d_model=32,
        d_ff=64,
        d_kv=12,
        num_layers=3,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
        attn_implementation="eager",
    )
    model = transformers.UMT5EncoderModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(weights(name, value, generator))

    ids = torch.randint(2, config.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=generator)
    ids[0, 3] = 0
    ids[0, 10], ids[1, 4], ids[3, 0] = FAINT[0], FAINT[1], FAINT[0]
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, ids, 0)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    arrays = {f"hidden_{i}": output.hidden_states[i] for i in range(config.num_layers)}
    arrays |= {"ids": ids, "mask": mask.long(), "last": output.last_hidden_state}

    positions = torch.arange(-300, 301)
    arrays["positions"] = positions
    attention = model.encoder.block[0].layer[0].SelfAttention
    for buckets, distance in ((8, 16), (32, 128)):
        attention.relative_attention_num_buckets = buckets
        attention.relative_attention_max_distance = distance
        arrays[f"bucket_{buckets}_{distance}"] = attention._relative_position_bucket(positions)

    model.save_pretrained(FOLDER)
    np.savez_compressed(FOLDER / "umt5.npz", **{name: value.numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main()
