"""Where in the model an instruction comes from, by the path of names that jax gives it."""

from __future__ import annotations

from mf_jax.aot.collectives import source
from mf_jax.aot.hlo import Computation, Instruction

FORWARD, AGAIN, BACKWARD, UPDATE = "forward", "again", "backward", "update"
_JAX = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "shard_map", "pjit", "remat")
_STEPS = 4  # from an instruction without a name to the operand that lends it one


def place(path: str) -> tuple[str, str]:
    """(part, pass) of a path: "jit(f)/transpose(jvp(Net))/while/body/trunk/q/dot_general" is ("trunk/q", BACKWARD).

    The part is what is left without jax's own names and the operation's; "no name" for none. `AGAIN` is what remat
    computes a second time; what is outside of the gradient, the optimizer and the statistics, is `UPDATE`.
    """
    names = path.split("/")
    own = [name for name in names[:-1] if "(" not in name and name not in _JAX and not name[:1].isdigit()]
    part = "/".join(own) or "no name"
    if "rematted_computation" in names:
        return part, AGAIN
    if "transpose(" in path:
        return part, BACKWARD
    return part, FORWARD if "jvp(" in path else UPDATE


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
