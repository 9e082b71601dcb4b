"""Prefetching: batches made ahead of time by worker processes or by a thread, always in order.

Worker w of W makes batches w, w + W, w + 2 W and so on, and sends each through its own pipe; a thread here reads the
pipes in turn. Workers hold no state, so they are killed to stop them, and stopping takes no time. They are shielded
from the signals of the process group, and leave when their parent dies.

grain's mp_prefetch is not used: closing it while a worker sends a batch can wait 25 seconds per worker, it leaves
workers behind when the parent is killed, and it has no way to ignore signals while a worker starts (grain 0.2.18).
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np

Batch = dict[str, np.ndarray]
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Batches(Protocol):
    """Random access to batches; it may be endless."""

    def __getitem__(self, index: int, /) -> Batch: ...


class Prefetch:
    """Iterator over batches[start], batches[start + 1], ... made in the background.

    Args:
      batches: picklable if there are workers.
      workers: number of processes; with 0 a thread of this process makes the batches.

    Raises (from next):
      What making a batch raises, in the place of that batch; RuntimeError if a worker process dies.
    """

    def __init__(self, batches: Batches, workers: int):
        processes: list[BaseProcess] = []
        if workers:
            processes, pipes = _start(batches, workers)
            made = _received(processes, pipes)
        else:
            made = (batches[index] for index in itertools.count())
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(max(workers, 2))
        stopped = threading.Event()
        thread = threading.Thread(target=_fill, args=(made, self._queue, stopped), daemon=True, name="batches")
        thread.start()
        # Runs on close, on collection, and before Python at exit waits for processes that ignore its SIGTERM.
        self._stop = util.Finalize(self, _stop, args=(processes, thread, self._queue, stopped), exitpriority=10)

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, Exception):
            self._queue.put(item)  # for whoever asks again
            raise item
        return item

    def close(self) -> None:
        """Ends the workers. No batch can be had afterwards."""
        self._stop()


def _start(batches: Batches, workers: int) -> tuple[list[BaseProcess], list[Connection]]:
    context = multiprocessing.get_context("spawn")
    pickled = pickle.dumps(batches)
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    # A process inherits the mask of signals. Interrupts, preemption notices and hangups that reach the whole group are
    # for the parent, which may want more batches before it stops. (Starting the resource tracker would reset the mask.)
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for worker in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(pickled, worker, workers, sender), daemon=True, name=f"data worker {worker}"
            )
            process.start()
            sender.close()  # the worker holds the only one, so that its death ends the pipe
            processes.append(process)
            pipes.append(receiver)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return processes, pipes


def _work(pickled: bytes, worker: int, workers: int, sender: Connection) -> None:
    """The body of a worker process: makes its batches until the parent ends it."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # grain imports jax. A worker has no use for a device, and must not take one from the parent.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    try:
        batches = pickle.loads(pickled)
        for index in itertools.count(worker, workers):
            _send(sender, batches[index])
    except BrokenPipeError:
        return
    except Exception as error:
        error.add_note(f"In data worker {worker}:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError("".join(traceback.format_exception(error)))
        _send(sender, error)


def _send(sender: Connection, item: Any) -> None:
    """Sends an item; arrays are sent as they are, not copied into a pickle (protocol 5)."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
    sender.send((head, len(buffers)))
    for buffer in buffers:
        sender.send_bytes(buffer.raw())


def _receive(receiver: Connection) -> Any:
    head, count = receiver.recv()
    return pickle.loads(head, buffers=[receiver.recv_bytes() for _ in range(count)])


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "called outside a worker process"
    parent.join()
    os._exit(1)


def _received(processes: list[BaseProcess], pipes: list[Connection]) -> Iterator[Any]:
    for process, pipe in itertools.cycle(zip(processes, pipes, strict=True)):
        try:
            item = _receive(pipe)
        except (EOFError, OSError):
            process.join()
            raise RuntimeError(
                f"{process.name} died with exit code {process.exitcode}; -9 often means that memory ran out"
            ) from None
        if isinstance(item, Exception):
            raise item
        yield item


def _fill(made: Iterator[Batch], ready: queue.Queue, stopped: threading.Event) -> None:
    try:
        while not stopped.is_set():
            ready.put(next(made))
    except Exception as error:
        ready.put(error)


def _stop(processes: list[BaseProcess], thread: threading.Thread, ready: queue.Queue, stopped: threading.Event) -> None:
    stopped.set()
    for process in processes:
        process.kill()
    while thread.is_alive():
        with contextlib.suppress(queue.Empty):
            ready.get(timeout=0.05)  # makes room for the batch that the thread may be holding
    for process in processes:
        process.join()
