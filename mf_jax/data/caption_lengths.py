"""How long the captions of a source are, to know how much of a model's text is padding."""

from __future__ import annotations

import numpy as np

from mf_jax.data.config import DataConfig
from mf_jax.data.precomputed import TEXT_FEATURES
from mf_jax.data.tokenizer import Tokenizer

COUNT = 64


def caption_lengths(data: DataConfig, tokenizer: Tokenizer | None, count: int = COUNT) -> np.ndarray:
    """Ids of the captions of `count` training records, evenly spaced; of all where there are fewer. (count,) int.

    Args:
      tokenizer: None where text features come with the data; their rows are counted then.

    Raises:
      ValueError: the source cannot be opened, or a record not be read.
    """
    source = data.open_training()
    lengths = []
    for index in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)):
        record = source[int(index)]
        if tokenizer is None:
            lengths.append(len(record[TEXT_FEATURES]))
            continue
        fields = tokenizer.fields(tokenizer.fit(record["caption"]))
        lengths.append(int(fields.get("text_mask", fields["text_ids"] > 0).sum()))
    return np.array(lengths)
