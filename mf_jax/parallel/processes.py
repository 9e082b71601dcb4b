"""The processes of a run, and what they tell each other: that it ends, when to stop, and what process 0 decided.

Every process keeps one TCP connection to process 0 for as long as the run lasts, and a thread that listens to it. So

  - a process that dies, however it dies, ends all others within a second: its system closes the connection. One whose
    host is cut off or without power does so after SILENCE seconds, by TCP's own keep-alive. Neither needs a heartbeat
    from Python, so no compilation, garbage collection or slow file system is ever mistaken for a death;
  - an error in one process ends all others with that error's message, while they wait in a collective for it;
  - a signal to one process, or its closed output, stops all after the same step.

jax's coordination service does none of the three in words: it ends a process from C++ (abort, with a stack trace of its
own), takes a heartbeat timeout to notice a death, and knows no errors. jax's preemption service is not used: it knows
SIGTERM alone, and a notice that comes before the first step of a resumed run names a step that is already past. What
is left to jax's heartbeat is a process that is there and does nothing at all, see distributed.HEARTBEAT.

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

SILENCE = 20  # seconds without an answer from the other host's system until a connection counts as broken
LIMIT = 2**20  # bytes of a message
GOODBYE = 5.0  # seconds that an ending process waits for the others to have heard

Source = TypeVar("Source", bound=Connection | socket.socket)


def wait_readable(sources: Iterable[Source], timeout: float | None = None) -> list[Source]:
    """The connections and sockets that can be read from; waits for the first, at most `timeout` seconds."""
    return cast("list[Source]", wait(list(sources), timeout))


class ProcessGroup:
    """The processes of a run, seen from one of them. `ProcessGroup()` is a process by itself: it waits for nobody."""

    def __init__(self, process: int = 0, peers: Mapping[int, tuple[Connection, str]] | None = None):
        """Starts to listen.

        Args:
          process: this one's index. peers: connection and host name by index: all others on process 0, {0: ...} on
            the others; None for a process by itself.
        """
        self.process = process
        self._hosts = {index: host for index, (_, host) in (peers or {}).items()}
        self._peers = {index: connection for index, (connection, _) in (peers or {}).items()}
        self._sending = threading.Lock()
        self._broadcasts: queue.Queue[Any] = queue.Queue()
        self._arrived: queue.Queue[int] = queue.Queue()  # on process 0: who has come to `barrier`
        self._finished: set[int] = set()  # processes that may go without being missed
        self._ending = threading.Event()
        self._calls = 0  # of `should_stop`
        self._last = math.inf  # the call that returns True
        self._gate = threading.Lock()  # held by the thread while the processes agree on `_last`
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
        """Whether this is process 0: the one that writes logs, prints, and holds the workdir."""
        return self.process == 0

    def print(self, text: str) -> None:
        """Prints, on process 0 only; to stderr if stdout has been found closed."""
        if self.is_main:
            print(text, file=readable_output(), flush=True)

    def broadcast(self, value: Any) -> Any:
        """What process 0 gave, on every process; each must call it, in the same order. Values go through JSON."""
        if self._alone:
            return value
        if self.is_main:
            self._send({"broadcast": value})
            return value
        return self._broadcasts.get()

    def barrier(self) -> None:
        """Waits until all processes have come here as often."""
        if self.is_main:
            for _ in self._peers:
                self._arrived.get()
        else:
            self._send({"barrier": True})
        self.broadcast(None)

    def should_stop(self, requests: Sequence[str]) -> bool:
        """Whether to stop now; every process must ask once per step, and gets True at the same call.

        Costs a lock: only when a request has come do the processes exchange how often each has asked, and the first
        call that none of them has made yet is the one that returns True.

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
        """Ends this process and all others, which print `text` as this one's. Details are printed here alone.

        The others may have failed first, and what went wrong here may only be a consequence: a collective that broke
        off, an orbax barrier that nobody came to. So this waits a moment for their word. It waits longer on the others
        than on process 0, which therefore is the one to report an error that all have in common.
        """
        time.sleep(1.0 if self.is_main else 3.0)
        if self._ending.is_set():  # the thread is about to end this process
            time.sleep(2 * GOODBYE)
        self._ending.set()
        self._send({"end": f"process {self.process} ended the run: {text}", "status": status})
        _briefly(_write_error, f"{details}mf_jax train: {text}\n")
        self._thread.join(GOODBYE)
        self._exit(status)

    def finish(self) -> None:
        """Tells the others that this process is through, and may go."""
        self._send({"finished": True})

    def _send(self, message: Mapping[str, Any], to: Sequence[int] | None = None) -> None:
        frame = json.dumps(message).encode()
        with self._sending:
            for index, connection in self._peers.items():
                if to is None or index in to:
                    with contextlib.suppress(OSError):  # who is gone is noticed where we listen
                        connection.send_bytes(frame)

    def _listen(self) -> None:
        """The thread: until all connections are closed."""
        sources = {connection: index for index, connection in self._peers.items()} | {self._inbox: self.process}
        while len(sources) > 1:
            for source in wait_readable(sources):
                index = sources[source]
                try:
                    message = json.loads(source.recv_bytes(LIMIT))
                except (EOFError, OSError):
                    del sources[source]
                    if index not in self._finished and not self._ending.is_set():
                        self._end(
                            f"process {index} on {self._hosts[index]} has died or cannot be reached any more; the last "
                            "checkpoint is kept, the same command goes on from there",
                            status=1,
                            sources=sources,
                        )
                    continue
                if "end" in message:
                    if self._ending.is_set():
                        return  # process 0 has heard that this one ends
                    self._end(message["end"], message["status"], sources)
                elif "finished" in message:
                    self._finished.add(index)
                elif "barrier" in message:
                    self._arrived.put(index)
                elif "broadcast" in message:
                    self._broadcasts.put(message["broadcast"])
                else:
                    self._agree(index, message)

    def _agree(self, index: int, message: Mapping[str, Any]) -> None:
        """One message of the exchange behind `should_stop`: stop (to process 0), hold, count, last."""
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
        """Ends this process from the thread: the main one may be waiting in a collective for ever.

        Process 0 goes last, after the others have heard and closed their connections: its end is the end of jax's
        coordination service, at which jax would abort them.
        """
        self._ending.set()
        if self.is_main:
            self._send({"end": text, "status": status})
        _briefly(_write_error, f"mf_jax train: {text}\n")
        if self.is_main:
            deadline = time.monotonic() + GOODBYE
            while len(sources) > 1 and (ready := wait_readable(sources, max(0.0, deadline - time.monotonic()))):
                for source in ready:
                    try:
                        source.recv_bytes(LIMIT)
                    except (EOFError, OSError):
                        del sources[source]
        self._exit(status)

    def _exit(self, status: int) -> NoReturn:
        """At once: no handler at exit may wait for processes that are gone."""
        if self.is_main:  # what it has said; the main thread may be stuck in saying more
            _briefly(lambda: print(end="", flush=True))
        os._exit(status)


def _write_error(text: str) -> None:
    if sys.__stderr__ is not None:  # else descriptor 2 may be another file
        os.write(2, text.encode(errors="replace"))


def _briefly(write: Callable[..., None], *arguments: str) -> None:
    """Calls for a second at most. An output that is closed, full or stuck does not keep a process from ending."""

    def attempt() -> None:
        with contextlib.suppress(OSError, ValueError):
            write(*arguments)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(1.0)
