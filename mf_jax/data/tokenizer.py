"""Text as bytes: no vocabulary file, no download, every language.

Legend: L text length in bytes.
"""

import numpy as np


class ByteTokenizer:
    """UTF-8 bytes, each plus one; 0 is padding.

    Args:
      max_bytes: L, the length of every token array.
    """

    vocab_size = 257

    def __init__(self, max_bytes: int):
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        self.max_bytes = max_bytes

    def __call__(self, text: str) -> np.ndarray:
        """Tokens of one text.

        Returns:
          (L,) int32.

        Raises:
          ValueError: the text is longer than max_bytes. A prompt is never cut silently.
        """
        data = text.encode("utf-8")
        if len(data) > self.max_bytes:
            raise ValueError(
                f"text of {len(data)} UTF-8 bytes exceeds the limit of {self.max_bytes}: shorten it, or use a model "
                f"with a longer text length. The text starts with {text[:40]!r}"
            )
        ids_L = np.zeros(self.max_bytes, np.int32)
        ids_L[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
        return ids_L

    def fit(self, text: str) -> str:
        """The longest beginning of `text` that fits, cut between characters; for captions of training data."""
        return text.encode("utf-8")[: self.max_bytes].decode("utf-8", errors="ignore")

    def decode(self, ids_L: np.ndarray) -> str:
        """The text of one token array (L,)."""
        ids_L = np.asarray(ids_L)
        return (ids_L[ids_L > 0] - 1).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
