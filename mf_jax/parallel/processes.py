"""The process group of a run: failure detection, agreed stopping, messages from and to process 0, barriers.

Every process keeps one TCP connection to process 0 for as long as the run lasts, and a thread that listens to it. So

  - a process that dies, however it dies, ends all others within a second: its system closes the connection. One whose
    host is cut off or without power does so after PEER_TIMEOUT seconds, by TCP's keep-alive. Neither needs a heartbeat
    from Python, so a compilation, garbage collection or a slow file system is never mistaken for a death;
  - an error in one process ends all others with that error's message, while they wait in a collective for it;
  - a signal to one process, or its closed output, stops all after the same step.

jax's coordination service has no messages for any of the three: it ends a process from C++ (abort, with a stack trace),
takes a heartbeat timeout to notice a death, and does not pass errors on. jax's preemption service is not used: it
handles SIGTERM alone, and a notice that comes before the first step of a resumed run names a step that is already past.
Left to jax's heartbeat is a process that is alive but makes no progress at all, see distributed.HEARTBEAT.

Messages are JSON objects, one per frame of multiprocessing.connection; nothing that arrives is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, TypeVar, cast

from mf_jax.parallel.stopping import readable_output

PEER_TIMEOUT = 20  # seconds without an answer from the other host's system until a connection counts as broken
MAX_MESSAGE = 2**20  # bytes
EXIT_WAIT = 5.0  # seconds that an ending process waits until the others have its message

Source = TypeVar("Source", bound=Connection | socket.socket)


def wait_readable(sources: Iterable[Source], timeout: float | None = None) -> list[Source]:
    """The connections and sockets that can be read from; waits for the first, at most `timeout` seconds."""
    return cast("list[Source]", wait(list(sources), timeout))


class ProcessGroup:
    """The processes of a run and the messages between them. `ProcessGroup()` is a group of one, which never waits."""

    def __init__(
        self,
        process: int = 0,
        peers: Mapping[int, tuple[Connection, str]] | None = None,
        verb: str = "train",
        after_death: str = "",
    ):
        """Starts the listening thread, in a group of several.

        Args:
          process: index of this process. peers: {index: (connection, host name)}: on process 0 all others, on the
            others {0: ...}; None for a group of one.
          verb: of the command line, which messages begin with. after_death: what to do when a process has died, the end
            of that message.
        """
        self.process = process
        self._verb, self._after_death = verb, after_death
        self._hosts = {index: host for index, (_, host) in (peers or {}).items()}
        self._peers = {index: connection for index, (connection, _) in (peers or {}).items()}
        self._sending = threading.Lock()
        self._broadcasts: queue.Queue[Any] = queue.Queue()
        self._arrived: queue.Queue[int] = queue.Queue()  # on process 0: indices of processes that reached `barrier`
        self._gathered: dict[int, queue.Queue[Any]] = {index: queue.Queue() for index in self._peers}
        self._finished: set[int] = set()  # processes whose end is not a failure
        self._ending = threading.Event()
        self._calls = 0  # of `should_stop`
        self._last = math.inf  # the call that returns True
        self._gate = threading.Lock()  # locked by the thread while the processes agree on `_last`
        self._counts: dict[int, int] = {}  # on process 0: `_calls` of each, while they agree
        self._asked = False
        self.stopped_by = ""  # "SIGTERM", or "SIGTERM on process 1": once `should_stop` has returned True
        self._alone = peers is None
        if not self._alone:
            self._inbox, self._note = multiprocessing.Pipe(duplex=False)
            self._thread = threading.Thread(target=self._listen, daemon=True, name="process group")
            self._thread.start()

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which prints, writes logs and locks the workdir."""
        return self.process == 0

    def print(self, text: str) -> None:
        """Prints on process 0 only; to stderr once stdout was found closed."""
        if self.is_main:
            print(text, file=readable_output(), flush=True)

    def broadcast(self, value: Any) -> Any:
        """Returns process 0's value on every process; all must call it, in the same order. Values are sent as JSON."""
        if self._alone:
            return value
        if self.is_main:
            self._send({"broadcast": value})
            return value
        return self._broadcasts.get()

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes by index on process 0, [] on the others, which do not wait.

        All must call it, in the same order. Values are sent as JSON, of at most MAX_MESSAGE bytes.
        """
        if self.is_main:
            return [value, *(self._gathered[index].get() for index in sorted(self._peers))]
        self._send({"gathered": value})
        return []

    def barrier(self) -> None:
        """Waits until all processes have called it equally often."""
        if self.is_main:
            for _ in self._peers:
                self._arrived.get()
        else:
            self._send({"barrier": True})
        self.broadcast(None)

    def maximum(self, values: Sequence[int]) -> tuple[int, ...]:
        """The largest of all processes of each value; all must call it, in the same order."""
        offered = self.gather([int(value) for value in values])
        return tuple(self.broadcast([max(of_one) for of_one in zip(*offered, strict=True)]))

    def should_stop(self, requests: Sequence[str]) -> bool:
        """Whether to stop after this step; every process must call it once per step, and gets True at the same call.

        A call costs a lock. Only after a request do the processes exchange how many calls each has made; the first
        call that none of them has made yet returns True.

        Args:
          requests: that this process has received so far, by name (stopping.stop_requests).
        """
        if requests and not self._asked:
            self._asked = True
            name = requests[0]
            if self._alone:
                self.stopped_by, self._last = name, self._calls + 1
            else:
                self._note.send_bytes(json.dumps({"stop": name}).encode())
        with self._gate:
            self._calls += 1
            return self._calls >= self._last

    def abort(self, text: str, status: int, details: str = "") -> NoReturn:
        """Ends this process and all others, which print `text` with the index of this one.

        The error here may only be a consequence of another process's: a collective that broke off, an orbax barrier
        that timed out. So this waits a moment for the others' messages first. It waits longer on the others than on
        process 0, which therefore reports an error that all have in common.

        Args:
          text: the message. status: exit status of all processes. details: printed by this process only.
        """
        time.sleep(1.0 if self.is_main else 3.0)
        if self._ending.is_set():  # the thread is about to end this process
            time.sleep(2 * EXIT_WAIT)
        self._ending.set()
        self._send({"end": f"process {self.process} ended the run: {text}", "status": status})
        _briefly(_write_error, f"{details}mf_jax {self._verb}: {text}\n")
        self._thread.join(EXIT_WAIT)
        self._exit(status)

    def finish(self) -> None:
        """Announces to the others that this process has finished, so that its end is not a failure."""
        self._send({"finished": True})

    def _send(self, message: Mapping[str, Any], to: Sequence[int] | None = None) -> None:
        frame = json.dumps(message).encode()
        with self._sending:
            for index, connection in self._peers.items():
                if to is None or index in to:
                    with contextlib.suppress(OSError):  # the listening thread notices dead processes
                        connection.send_bytes(frame)

    def _listen(self) -> None:
        """The body of the thread: handles messages until all connections are closed."""
        sources = {connection: index for index, connection in self._peers.items()} | {self._inbox: self.process}
        while len(sources) > 1:
            for source in wait_readable(sources):
                index = sources[source]
                try:
                    message = json.loads(source.recv_bytes(MAX_MESSAGE))
                except (EOFError, OSError):
                    del sources[source]
                    if index not in self._finished and not self._ending.is_set():
                        self._end(
                            f"process {index} on {self._hosts[index]} has died or cannot be reached any more"
                            + self._after_death,
                            status=1,
                            sources=sources,
                        )
                    continue
                if "end" in message:
                    if self._ending.is_set():
                        return  # process 0 has received this process's "end"
                    self._end(message["end"], message["status"], sources)
                elif "finished" in message:
                    self._finished.add(index)
                elif "barrier" in message:
                    self._arrived.put(index)
                elif "gathered" in message:
                    self._gathered[index].put(message["gathered"])
                elif "broadcast" in message:
                    self._broadcasts.put(message["broadcast"])
                else:
                    self._agree(index, message)

    def _agree(self, index: int, message: Mapping[str, Any]) -> None:
        """Handles a message of the agreement behind `should_stop`, in order: stop (to process 0), hold, count, last."""
        if "stop" in message and not self.is_main:
            self._send(message)
        elif "stop" in message and not self.stopped_by:
            self.stopped_by = f"{message['stop']} on process {index}"
            self._gate.acquire()
            self._counts = {0: self._calls}
            self._send({"hold": True})
        elif "hold" in message:
            self._gate.acquire()
            self._send({"count": self._calls})
        elif "count" in message:
            self._counts[index] = message["count"]
            if len(self._counts) == 1 + len(self._peers):
                self._last = max(self._counts.values()) + 1
                self._send({"last": self._last, "by": self.stopped_by})
                self._gate.release()
        elif "last" in message:
            self._last, self.stopped_by = message["last"], message["by"]
            self._gate.release()

    def _end(self, text: str, status: int, sources: dict[Connection, int]) -> NoReturn:
        """Ends this process from the listening thread, as the main thread may hang in a collective.

        Process 0 ends last, after the others have received the message and closed their connections: with it ends
        jax's coordination service, at which jax would abort them.
        """
        self._ending.set()
        if self.is_main:
            self._send({"end": text, "status": status})
        _briefly(_write_error, f"mf_jax {self._verb}: {text}\n")
        if self.is_main:
            deadline = time.monotonic() + EXIT_WAIT
            while len(sources) > 1 and (ready := wait_readable(sources, max(0.0, deadline - time.monotonic()))):
                for source in ready:
                    try:
                        source.recv_bytes(MAX_MESSAGE)
                    except (EOFError, OSError):
                        del sources[source]
        self._exit(status)

    def _exit(self, status: int) -> NoReturn:
        """Exits at once, without exit handlers, which could wait for dead processes."""
        if self.is_main:  # flushes stdout; the main thread may hang in a write
            _briefly(lambda: print(end="", flush=True))
        os._exit(status)


def _write_error(text: str) -> None:
    if sys.__stderr__ is not None:  # else descriptor 2 may be another file
        os.write(2, text.encode(errors="replace"))


def _briefly(write: Callable[..., None], *arguments: str) -> None:
    """Calls `write` in a thread, for one second at most: a closed, full or blocked output must not delay the exit."""

    def attempt() -> None:
        with contextlib.suppress(OSError, ValueError):
            write(*arguments)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(1.0)
