"""The directory of a run: locked by one run at a time, and the same on all its hosts."""

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

VISIBLE_WITHIN = 10.0  # seconds for what one host writes to be seen on the others


@contextlib.contextmanager
def locked(workdir: pathlib.Path, group: ProcessGroup) -> Iterator[None]:
    """Locks `workdir`, made where it does not exist, for this run; the system unlocks it when process 0 ends.

    Process 0 has the lock and writes a random word into it that the others must find there, so that a directory that
    the hosts do not share is noticed now and not at the first checkpoint.

    Raises:
      ValueError: another run holds it; it is not the directory that process 0 has.
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
    deadline = time.monotonic() + VISIBLE_WITHIN
    while not path.is_file() or path.read_text() != word:
        if time.monotonic() > deadline:
            raise ValueError(
                f"workdir {path.parent} of process {group.process} on {socket.gethostname()} is not that of process 0; "
                "all hosts must share it (NFS, Lustre, a mounted bucket)"
            )
        time.sleep(0.1)
