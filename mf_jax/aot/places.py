"""Where in the model an instruction comes from, by the path of names that jax gives it."""

from __future__ import annotations

import dataclasses
import re

from mf_jax.aot.collectives import source
from mf_jax.aot.hlo import Computation, Instruction

FORWARD, AGAIN, BACKWARD, UPDATE = "forward", "again", "backward", "update"
LOOP = "loop over layers"
_JAX = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "shard_map", "pjit", "remat")
_NETWORK = re.compile(r"(?:^|[/(])([A-Z]\w*)(?=[/)]|$)")
_STEPS = 4  # from an instruction without a name to the operand that lends it one


@dataclasses.dataclass(frozen=True)
class Place:
    """Attributes:
    network: class of the network, "FlatDiT"; "" outside of networks.
    part: its names of modules, "trunk/q"; LOOP for what a loop over layers itself does, which puts away what the
      backward pass needs and takes it back; "" for none.
    part_of_step: FORWARD; AGAIN, what remat computes a second time; BACKWARD; UPDATE, what is outside of networks and
      of the gradient: random numbers, the optimizer, EMA, statistics.
    """

    network: str
    part: str
    part_of_step: str


def place(path: str) -> Place:
    """The place of a path: "jit(f)/transpose(jvp(Net))/while/body/trunk/q/dot_general" is (Net, trunk/q, BACKWARD).

    Several operations together, "(jvp(Net)/q/dot_general:jvp(Net)/k/dot_general)", are at the place of the first.
    """
    path = path.replace("/(", "/").partition(":")[0]
    names = path.split("/")
    found = _NETWORK.search(path)
    network = found[1] if found else ""
    own: list[str] = []
    for name in names[:-1]:
        is_own = re.fullmatch(r"[A-Za-z_][\w.]*", name) and name not in (*_JAX, network, *own[-1:])
        if is_own and not name.startswith(f"{network}."):
            own.append(name)
    part = "/".join(own) or (LOOP if "while" in names and network else "")
    if "rematted_computation" in names:
        return Place(network, part, AGAIN)
    if "transpose(" in path:
        return Place(network, part, BACKWARD)
    return Place(network, part, FORWARD if network or "jvp(" in path else UPDATE)


def path_of(computation: Computation, instruction: Instruction) -> str:
    """The path of an instruction; of the nearest operand that has one, where the compiler gave it none."""
    one: Instruction | None = instruction
    for _ in range(_STEPS):
        if one is None:
            break
        if path := source(one.text):
            return path
        one = computation.instructions.get(one.operands[0]) if one.operands else None
    return ""
