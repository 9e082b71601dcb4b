"""Streams: the properties of a modality that a transformer needs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stream:
    """A modality as a transformer sees it.

    Attributes:
      channels: of its tokens. position: its coordinate on the modality axis of the rotary embedding.
      decoder_blocks: blocks over its own tokens alone, after the trunk.
    """

    name: str
    channels: int
    position: int
    decoder_blocks: int
