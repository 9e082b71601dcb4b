"""The lock of a run's directory, and the check that all its hosts share that directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Iterator

from mf_jax.parallel.processes import ProcessGroup

VISIBLE_WITHIN = 10.0  # seconds until a file that one host writes must be visible on the others


@contextlib.contextmanager
def locked(workdir: pathlib.Path, group: ProcessGroup) -> Iterator[None]:
    """Context in which `workdir`, created if it does not exist, is locked for this run.

    Process 0 locks the file WORKDIR/lock, and writes a random word into it that the others must find there: so a
    directory that the hosts do not share is noticed now and not at the first checkpoint. The system unlocks the file
    when process 0 ends.

    Raises:
      ValueError: another run has locked it, or this process sees another directory than process 0.
    """
    path = workdir / "lock"
    if not group.is_main:
        _check_shared(path, group.broadcast(None), group)
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"workdir {workdir} is in use by another run; wait for it or give another --workdir"
            ) from None
        word = secrets.token_hex(8)
        file.truncate(0)
        file.write(word)
        file.flush()
        os.fsync(file.fileno())
        group.broadcast(word)
        yield


def _check_shared(path: pathlib.Path, word: str, group: ProcessGroup) -> None:
    """ValueError if the lock file does not show process 0's word within VISIBLE_WITHIN seconds."""
    deadline = time.monotonic() + VISIBLE_WITHIN
    while not path.is_file() or path.read_text() != word:
        if time.monotonic() > deadline:
            raise ValueError(
                f"workdir {path.parent} of process {group.process} on {socket.gethostname()} is not that of process 0; "
                "all hosts must share it (NFS, Lustre, a mounted bucket)"
            )
        time.sleep(0.1)
