"""Atomic file writes: to a temporary file beside the target, which is then renamed over it."""

import os
from pathlib import Path


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes data to path, replacing what is there in one step; makes parent directories. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
