"""Text without waste: captions share rows of the text encoder, and the transformer's text is as short as it can be.

Captions are packed, by first fit decreasing, within a group: the examples that one device computes at a time. So a
caption never leaves its device. The number of rows of a group and the length of the transformer's text are the same on
all devices, and each is one of a few fixed numbers: every pair of them is a program to compile.

Legend: b examples of this process, n of a group, R rows of a group, L ids of a row, M text tokens of the transformer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

# Numbers of rows that there are programs for, as shares of the captions of a group.
SHARES = (*(i / 32 for i in range(1, 13)), 1 / 2, 3 / 4, 1.0)

Batch = dict[str, np.ndarray]


class TextShape(NamedTuple):
    """The sizes that a step's text has on every device.

    Attributes:
      rows: R; 0 where text is not packed. length: M.
    """

    rows: int
    length: int


def first_fit_decreasing(lengths: Sequence[int] | np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs texts into rows: each, the longest first, into the first row that has room for it.

    Args:
      lengths: (n,) of the texts, at most `size`, that of a row.

    Returns:
      (n,) row and (n,) position in it of each text.
    """
    rows, starts = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    filled = np.zeros(len(lengths), np.int64)
    for i in np.argsort(-np.asarray(lengths), kind="stable"):
        rows[i] = row = np.argmax(filled + lengths[i] <= size)
        starts[i] = filled[row]
        filled[row] += lengths[i]
    return rows, starts


def expected_rows(tokens: float, size: int, group: int) -> int:
    """Rows R to expect for groups of captions of so many tokens on average, in rows of `size` tokens.

    The fullest group decides. Of some tens of groups of captions whose lengths deviate from the mean by two thirds of
    it, as those of an exponential distribution that is cut off do, it has the tokens of 2 sqrt(n) captions more than
    the mean.
    """
    return fixed_rows(min(math.ceil(tokens / size * (group + 2 * math.sqrt(group))), group), group)


def fixed_rows(needed: int, group: int) -> int:
    """The smallest of the fixed numbers of rows for a group that is at least `needed`."""
    return next(rows for share in SHARES if (rows := math.ceil(share * group)) >= needed)


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """How the text of a run's batches is laid out.

    Attributes:
      lengths: that M may have, ascending. packed: whether rows are shared.
      group: n. parts: accumulated parts of a batch; example i of a device is in part i % parts.
    """

    lengths: tuple[int, ...]
    packed: bool
    group: int
    parts: int = 1

    def arrange(self, batch: Batch, agree: Callable[[Sequence[int]], Sequence[int]] = tuple) -> tuple[TextShape, Batch]:
        """The batch with its text laid out, and the sizes.

        Args:
          batch: of this process; has `text_mask` (b, L) unless the layout leaves nothing to choose.
          agree: makes the largest of all processes of each of some numbers; all of them call it.

        Returns:
          `text_mask` (b, M) and what goes with it: `text_features` (b, M, D) if they come with the data; else
          `text_ids` (b, M) or, packed, in the place of those
            text_ids (rows, L): rows of several captions; row r of part i on this process's device d is number
              (d R + r) parts + i, so that rows are split like examples.
            text_segments (rows, L) int32: 1, 2, ... by caption of the row, 0 where there is none.
            text_at (b,) int32: where each caption begins in the R rows of its group, laid end to end.
        """
        if not self.packed and len(self.lengths) == 1:
            return TextShape(0, self.lengths[0]), batch
        lengths_b = batch["text_mask"].sum(axis=1)
        rows_b, starts_b = self._pack(lengths_b, batch["text_mask"].shape[1])
        needed = int(rows_b.max()) + 1 if self.packed else 0
        needed, longest = agree((needed, int(lengths_b.max())))
        length = next(length for length in self.lengths if length >= longest)
        cut = {name: batch[name][:, :length] for name in ("text_mask", "text_features", "text_ids") if name in batch}
        if not self.packed:
            return TextShape(0, length), batch | cut
        rows = fixed_rows(needed, self.group)
        packed = self._packed(batch["text_ids"], lengths_b, rows_b, starts_b, rows)
        return TextShape(rows, length), batch | cut | packed

    def expected(self, tokens: float, size: int) -> TextShape:
        """The sizes to expect for captions of so many tokens on average (0: not known), in rows of `size` tokens."""
        rows = expected_rows(tokens or size, size, self.group) if self.packed else 0
        return TextShape(rows, self.lengths[-1])

    def packed_shapes(self, b: int, rows: int, size: int) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
        """Shapes and dtypes of the fields that `arrange` packs for b examples; {} where it packs none."""
        if not self.packed:
            return {}
        shape = (b // self.group * rows, size)
        return {"text_ids": (shape, np.int32), "text_segments": (shape, np.int32), "text_at": ((b,), np.int32)}

    def encoded(self, shape: TextShape) -> float:
        """Rows of the text encoder per example; a row that is cut counts by its length."""
        return shape.rows / self.group if self.packed else shape.length / self.lengths[-1]

    def _members(self, b: int) -> list[np.ndarray]:
        """The examples of each group: of device 0 part 0, part 1, ..., of device 1 part 0 and so on."""
        return list(np.arange(b).reshape(-1, self.group, self.parts).swapaxes(1, 2).reshape(-1, self.group))

    def _pack(self, lengths_b: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(b,) row in its group and (b,) position in that row of each caption."""
        rows_b, starts_b = np.zeros_like(lengths_b), np.zeros_like(lengths_b)
        if self.packed:
            for members in self._members(len(lengths_b)):
                rows_b[members], starts_b[members] = first_fit_decreasing(lengths_b[members], size)
        return rows_b, starts_b

    def _packed(
        self, ids_bL: np.ndarray, lengths_b: np.ndarray, rows_b: np.ndarray, starts_b: np.ndarray, rows: int
    ) -> Batch:
        """The packed fields, for `rows` rows in each group."""
        b, L = ids_bL.shape
        shapes = self.packed_shapes(b, rows, L)
        device_b, part_b = np.arange(b) // (self.group * self.parts), np.arange(b) % self.parts
        lines_b = (device_b * rows + rows_b) * self.parts + part_b
        ids, segments = (np.zeros(*shapes[name]) for name in ("text_ids", "text_segments"))
        for i in np.lexsort((starts_b, lines_b)):
            here = lines_b[i], slice(starts_b[i], starts_b[i] + lengths_b[i])
            ids[here] = ids_bL[i, : lengths_b[i]]
            segments[here] = 1 + segments[lines_b[i], max(starts_b[i] - 1, 0)]
        return {"text_ids": ids, "text_segments": segments, "text_at": (rows_b * L + starts_b).astype(np.int32)}
