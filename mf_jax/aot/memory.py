"""Memory of a compiled program, and the compilers' messages where there is not enough of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from mf_jax.monitoring import chips


class OutOfMemory(Exception):
    """The compiler's error that a program does not fit into a device's memory.

    Attributes:
      needed, available: bytes per device; needed counts as much as the compiler had placed when it gave up.
      largest: names of the largest arrays in the program with their sizes, where the compiler lists them.
    """

    def __init__(self, needed: float, available: float, largest: Sequence[str]):
        super().__init__(f"needs {needed / chips.GIB:.2f} GiB of {available / chips.GIB:.2f}")
        self.needed = needed
        self.available = available
        self.largest = tuple(largest)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a compiled program, in bytes per device.

    Attributes:
      arguments: by what they are: parameters, EMA, a frozen network and so on; all of them stay where they are.
      padding: what the compiler's layouts add to the arguments.
      temporaries: activations, gradients and gathered weights: what the program allocates besides.
      results: not in the place of an argument. code: the program.
      peak: the compiler's own figure for arguments and temporaries at their highest.
      host: in the host's memory.
    """

    arguments: dict[str, int]
    padding: int
    temporaries: int
    results: int
    code: int
    peak: int
    host: int

    @property
    def total(self) -> int:
        """Bytes that a device must have, with fragmentation and the program itself."""
        placed = sum(self.arguments.values()) + self.padding + self.temporaries + self.results
        return max(placed, self.peak) + self.code


_SIZE = r"([\d.]+)([KMGTP]?)"
_OOM = (
    re.compile(rf"required for .*?\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


def out_of_memory(message: str) -> OutOfMemory | None:
    """The error that a compiler's message stands for; None for any other message."""
    for pattern in _OOM:
        if found := pattern.search(message):
            needed, available = (float(n) * 1024 ** " KMGTP".index(unit or " ") for n, unit in
                                 (found.group(1, 2), found.group(3, 4)))  # fmt: skip
            largest = re.findall(r"Size: ([\d.]+\w)\n(?:.*\n)*?\s*Operator: op_name=\"([^\"]*)\"", message)
            return OutOfMemory(needed, available, [f"{size} {name}" for size, name in largest[:3]])
    return None
