"""Tokenizers: from a prompt to the fields of an example that a text encoder reads.

`ByteTokenizer` goes with the encoder that is trained with the model: no vocabulary file, no download, every language.
The others go with frozen encoders, and read the tokenizer.json that lies beside the published weights.

Legend: L length of every text in ids.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers


class Tokenizer(Protocol):
    """Turns a text into the fields of an example that its text encoder reads."""

    @property
    def limit(self) -> str:
        """How long a text may be, for messages: "96 bytes"."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""

    def fields(self, text: str) -> dict[str, np.ndarray]:
        """The fields of a text: text_ids (L,) int32, and text_mask (L,) bool if the encoder needs it.

        Raises:
          ValueError: the text is too long. A prompt is never cut silently.
        """

    def fit(self, text: str) -> str:
        """The longest beginning of `text` that fits, cut between characters; for captions of training data."""


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
        self.limit = f"{max_bytes} bytes"

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

    def fields(self, text: str) -> dict[str, np.ndarray]:
        """text_ids (L,) int32; the encoder takes padding for a token like others. Raises as __call__."""
        return {"text_ids": self(text)}

    def fit(self, text: str) -> str:
        """The longest beginning of `text` that fits, cut between characters; for captions of training data."""
        return text.encode("utf-8")[: self.max_bytes].decode("utf-8", errors="ignore")

    def decode(self, ids_L: np.ndarray) -> str:
        """The text of one token array (L,)."""
        ids_L = np.asarray(ids_L)
        return (ids_L[ids_L > 0] - 1).astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class _PublishedTokenizer:
    """The tokenizer of a published text encoder: its tokenizer.json, and what the encoder expects around the text.

    Args:
      folder: of the published checkpoint, holding tokenizer.json.
      length: L.

    Raises:
      ValueError: no usable tokenizer.json there, it is of another model, or L is too short for the empty text.
    """

    before = after = ""  # the text
    end: tuple[str, ...] = ()  # tokens after all
    pad: str
    known: tuple[str, ...]  # tokens by which the right file is recognised

    def __init__(self, folder: str | Path, length: int = 512):
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"no file {path}; give the folder of the published text encoder, with its tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"{path} is not a tokenizer of the tokenizers library: {error}") from None
        for token in (*self.known, self.pad, *self.end):
            if self._tokenizer.token_to_id(token) is None:
                raise ValueError(
                    f"{path} has no token {token!r}; {type(self).__name__} needs it: is it another model's?"
                )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.length = length
        self.limit = f"{length} tokens"
        if len(self._ids("")) > length:
            raise ValueError(f"length is {length}; the empty text alone takes {len(self._ids(''))} tokens")

    @property
    def vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab().values()) + 1

    def fields(self, text: str) -> dict[str, np.ndarray]:
        """text_ids (L,) int32, padded on the right; text_mask (L,) bool, true where a token is real.

        Raises:
          ValueError: the text is too long. A prompt is never cut silently.
        """
        ids = self._ids(text)
        if len(ids) > self.length:
            around = len(self._ids(""))
            raise ValueError(
                f"text of {len(ids)} tokens, counting {around} that go around it, exceeds the limit of {self.length}: "
                f"shorten it. The text starts with {text[:40]!r}"
            )
        ids_L = np.full(self.length, self._id(self.pad), np.int32)
        ids_L[: len(ids)] = ids
        return {"text_ids": ids_L, "text_mask": np.arange(self.length) < len(ids)}

    def fit(self, text: str) -> str:
        """A beginning of `text` that fits while one more character does not; for captions of training data.

        What comes after the text is kept. (The encoders' own code cuts the ids instead, and loses it.)
        """
        if len(self._ids(text)) <= self.length:
            return text
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if len(self._ids(text[:middle])) <= self.length:
                fits = middle
            else:
                too_long = middle
        return text[:fits]

    def _ids(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(self.before + text + self.after, add_special_tokens=False).ids
        return ids + [self._id(token) for token in self.end]

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        assert found is not None, token  # __init__ has looked
        return found


class Qwen3Tokenizer(_PublishedTokenizer):
    """Qwen3's: the prompt as the only message of a chat, to be answered without thinking, as in FLUX.2."""

    before = "<|im_start|>user\n"
    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    pad = "<|endoftext|>"
    known = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


class UMT5Tokenizer(_PublishedTokenizer):
    """UMT5's: the prompt and the end-of-sequence token."""

    end = ("</s>",)
    pad = "<pad>"
    known = ()
