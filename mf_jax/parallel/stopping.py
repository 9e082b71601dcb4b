"""Requests to stop a run: signals, and output that can no longer be written.

A terminal that closes sends SIGHUP and takes no output any more; a launcher that dies leaves broken pipes. Neither may
end a run without a checkpoint, or keep it from telling the other processes. So both are requests, as SIGTERM is, and
what is printed afterwards goes nowhere.
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
    """A list that SIGTERM, SIGINT, SIGHUP and a closed output are written to, by name, instead of ending the process.

    A second SIGTERM or SIGINT ends it. A second SIGHUP does not: a shell whose terminal closes sends one, the system
    another. Under nohup, where SIGHUP is ignored, it still is.
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
    """sys.stdout and sys.stderr never raise because they are closed; `requests` gets CLOSED_OUTPUT when one is."""
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
    """sys.stdout; sys.stderr instead if stdout has been found closed."""
    return sys.stderr if isinstance(sys.stdout, GuardedStream) and sys.stdout.broken else sys.stdout


class GuardedStream:
    """A text stream whose first failure is noted, and whose file is /dev/null from then on.

    So is what Python's flush at exit, subprocesses and libraries write to the same file descriptor.
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
