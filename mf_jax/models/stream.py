"""What a transformer knows of a modality."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stream:
    """Attributes:
    channels: of its tokens. position: its coordinate on the modality axis of the rotary embedding.
    decoder_blocks: blocks over its own tokens alone, after the trunk.
    """

    name: str
    channels: int
    position: int
    decoder_blocks: int
