"""Requests to stop a run: signals, and output that can no longer be written.

A terminal that closes sends SIGHUP and accepts no more output; a launcher that dies leaves broken pipes. Neither may
end a run without a checkpoint, or without a message to the other processes. So both are requests, as SIGTERM is, and
what is printed afterwards is discarded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

CLOSED_OUTPUT = "closed output"


@contextlib.contextmanager
def stop_requests() -> Iterator[list[str]]:
    """Context that turns SIGTERM, SIGINT, SIGHUP and a closed output into names in the list that it yields.

    A second SIGTERM or SIGINT ends the process. A second SIGHUP does not: when a terminal closes, its shell sends one
    and the system another. Under nohup SIGHUP stays ignored.
    """
    requests: list[str] = []
    before: dict[int, Any] = {}  # the handlers that signal.signal returned

    def note(number: int, frame: Any) -> None:
        requests.append(signal.Signals(number).name)
        if number != signal.SIGHUP:
            signal.signal(number, before[number])

    with guarded_output(requests):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, note)
        try:
            yield requests
        finally:
            for caught, handler in before.items():
                signal.signal(caught, handler)


@contextlib.contextmanager
def guarded_output(requests: list[str]) -> Iterator[None]:
    """Context in which a closed sys.stdout or sys.stderr does not raise but adds CLOSED_OUTPUT to `requests`."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        sys.stdout, sys.stderr = guarded = [
            GuardedStream(stream or stack.enter_context(open(os.devnull, "w")), lambda: requests.append(CLOSED_OUTPUT))
            for stream in before
        ]
        try:
            yield
        finally:
            for stream in guarded:
                stream.flush()  # what is left would fail when Python exits
            sys.stdout, sys.stderr = before


def readable_output() -> TextIO:
    """sys.stdout, or sys.stderr once stdout was found closed."""
    return sys.stderr if isinstance(sys.stdout, GuardedStream) and sys.stdout.broken else sys.stdout


class GuardedStream:
    """A text stream that calls `note` at its first failure and is redirected to /dev/null from then on.

    The file descriptor is redirected: so writes by subprocesses, libraries and Python's flush at exit are, too.
    """

    def __init__(self, stream: TextIO, note: Callable[[], None]):
        self._stream = stream
        self._note = note
        self.broken = False

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[], Any]) -> None:
        if self.broken:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self._stream.closed:
                raise  # text that the stream's encoding does not have
            self.broken = True
            with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, or closed
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            self._note()
