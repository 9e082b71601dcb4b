"""The training loader: shuffled, repeated batches, shared out over processes and made by worker processes.

The examples form one endless stream, fixed by the seed and the number of records. Global batch k is positions
k B to (k+1) B of it; a process makes those rows of it that its devices hold. So neither the number of processes nor
of workers changes what the model sees or in which order, and the whole state is one number, the next position.

grain shuffles, and gives each position its own random generator. Its iterators are not used: with worker processes
their state is bound to the number of workers, and restoring it with another one gives wrong examples without a message
(grain 0.2.18). grain.experimental.ElasticIterator keeps one number as well, but deals examples round robin over
processes, so that the order inside the global batch would depend on their number. mf_jax.data.workers says why the
workers are not grain's either.

Legend: B global batch size, b batch size of this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grain
import numpy as np
from absl import logging

from mf_jax.data.config import DataConfig
from mf_jax.data.precomputed import Shapes
from mf_jax.data.tokenizer import Tokenizer
from mf_jax.data.transforms import BOOK_KEEPING, Examples, View
from mf_jax.data.workers import Prefetch


def build_train_loader(
    data: DataConfig,
    *,
    batch_size: int,
    tokenizer: Tokenizer | None,
    seed: int,
    rows: Iterable[int] | None = None,
    precomputed: Shapes | None = None,
) -> TrainLoader:
    """The training batches that a data config describes.

    Args:
      batch_size: B.
      tokenizer: of captions; None where text_features are precomputed. With workers it is pickled.
      seed: of the order, the sparsifier and the augmentation.
      rows: of each batch, those that this process makes, in order; by default all.
      precomputed: shapes and dtypes of an example's fields that `data.precomputed` names, as the model reads them.

    Raises:
      ValueError: as `DataConfig.open_training` and `TrainLoader`.
    """
    examples = Examples(
        data.open_training(),
        resolution=data.resolution,
        crop=data.augment.crop,
        tokenizer=tokenizer,
        cache=data.cache,
        precomputed=precomputed,
    )
    view = View(data.resolution, data.augment, data.sparsify, seed)
    return TrainLoader(examples, view, batch_size=batch_size, seed=seed, workers=data.workers, rows=rows)


class TrainLoader:
    """Endless iterator over batches of examples; see the top of the file for the order.

    Worker processes start with the first batch, or with start(). They end when the loader is closed or collected, and
    when this process dies, however it dies.

    Args:
      examples: random access to examples. With workers it is pickled.
      view: what the model sees of an example; given the generator of the position. With workers it is pickled.
      batch_size: B.
      seed: of order and views; every epoch has others.
      workers: processes that make batches; 0 makes them in a thread of this process.
      rows: (b,) of each batch, those that this process makes, in order; by default all.

    Raises:
      ValueError: no examples, or rows that are not of the batch. From next(): what reading an example raises, and
        more than `examples.source.max_unreadable` different files that cannot be read.
    """

    def __init__(
        self,
        examples: Examples,
        view: View,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        rows: Iterable[int] | None = None,
    ):
        if len(examples) == 0:
            raise ValueError("the training split has no records")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self._rows = tuple(int(row) for row in (range(batch_size) if rows is None else rows))
        if not self._rows or not all(0 <= row < batch_size for row in self._rows):
            raise ValueError(f"rows {self._rows} are not rows of a batch of {batch_size}")
        if workers < 0:
            raise ValueError(f"data.workers must not be negative, got {workers}")
        self._stream = grain.MapDataset.source(examples).seed(seed).shuffle().random_map(view).repeat()
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._workers = workers
        self._position = 0
        self._unreadable: set[int] = set()
        self._prefetch: Prefetch | None = None

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """This process's rows of the next global batch.

        Returns:
          image (b,H,W,3) uint8; depth (b,H,W) float32 metres, 0 where missing; depth_valid (b,H,W) bool;
          text_ids (b,L) int32, text_mask (b,L) bool where the tokenizer gives one; precomputed fields in place of image
          and text_ids. Arrays that come from a worker are read-only.
        """
        batch = next(self._running())
        self._position += self._batch_size
        self._count_unreadable(batch["index"], batch["skipped"])
        return {name: array for name, array in batch.items() if name not in BOOK_KEEPING}

    @property
    def position(self) -> int:
        """The next position of the stream: how many examples all processes together have made so far."""
        return self._position

    @property
    def epoch(self) -> float:
        """Passes over the data so far, a fraction."""
        return self._position / len(self._examples)

    def get_state(self) -> dict[str, int]:
        """The position, with the seed and number of records that it depends on; the same on every process, for JSON."""
        return {"position": self._position, "seed": self._seed, "records": len(self._examples)}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues from a state; numbers of workers and processes and batch size may differ from when it was saved.

        Raises:
          ValueError: the state is of another seed or of another number of records, hence of another order.
        """
        for name, mine in (("seed", self._seed), ("records", len(self._examples))):
            if state[name] != mine:
                raise ValueError(
                    f"the checkpoint's data order has {name}={state[name]}, this run has {mine}: the examples would "
                    f"not continue where they stopped. Restore the data config, or start a new run from the weights"
                )
        self.close()
        self._position = int(state["position"])

    def start(self) -> None:
        """Starts making batches in the background, so that the first is ready sooner. Never needed."""
        self._running()

    def close(self) -> None:
        """Stops the workers. The loader may be used again; it then starts new ones."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None

    def _running(self) -> Prefetch:
        if self._prefetch is None:
            batches = _Batches(self._stream, self._position, self._batch_size, self._rows)
            self._prefetch = Prefetch(batches, self._workers)
        return self._prefetch

    def _count_unreadable(self, index_b: np.ndarray, skipped_b: np.ndarray) -> None:
        source = self._examples.source
        for index, skipped in zip(index_b, skipped_b, strict=True):
            for passed_over in range(index, index + skipped):
                record = passed_over % len(source)
                if record not in self._unreadable:
                    self._unreadable.add(record)
                    logging.warning("Cannot read %s; the next record takes its place.", source.path(record))
        if self._unreadable and len(self._unreadable) > source.max_unreadable:
            files = ", ".join(source.path(record) for record in sorted(self._unreadable)[:3])
            raise ValueError(
                f"{len(self._unreadable)} files cannot be read, more than "
                f"source.max_unreadable={source.max_unreadable}; the first are {files}"
            )


class _Batches:
    """One process's rows of the global batches of a stream, from a position on, with BOOK_KEEPING."""

    def __init__(self, stream: grain.MapDataset, start: int, batch_size: int, rows: tuple[int, ...]):
        self._stream = stream
        self._start = start
        self._batch_size = batch_size
        self._rows = rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = self._start + index * self._batch_size
        examples = [self._stream[first + row] for row in self._rows]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
