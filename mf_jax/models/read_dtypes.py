"""The dtypes in which a network reads its parameters, found in the program that jax traces of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr


def read_dtypes(function: Callable[..., Any], params: Any, *arguments: Any) -> Any:
    """`params` as shapes, each with the dtype to hold it in without a change of any result.

    That is bfloat16 for a float32 array that every operation of the program first converts to bfloat16, and its own
    dtype for all others: a scale that multiplies in float32, the kernel of a head that computes in float32.

    Args:
      function: called with params and the arguments. params, arguments: trees of arrays or jax.ShapeDtypeStruct.

    Returns:
      A tree like params of jax.ShapeDtypeStruct; shardings are kept.
    """
    leaves, tree = jax.tree.flatten(params)
    shapes = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves])
    program = jax.make_jaxpr(function)(shapes, *arguments).jaxpr
    held = []
    for variable, leaf in zip(program.invars, leaves, strict=False):
        found = _read_as(program, variable)
        halved = leaf.dtype == jnp.float32 and found == {jnp.dtype(jnp.bfloat16)}
        dtype = jnp.bfloat16 if halved else leaf.dtype
        held.append(jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=getattr(leaf, "sharding", None)))
    return jax.tree.unflatten(tree, held)


def _read_as(program: Jaxpr, variable: Any) -> set[jnp.dtype]:
    """The dtypes that a program's operations convert a variable to; its own where one uses it as it is."""
    own = jnp.dtype(variable.aval.dtype)
    found = {own} if any(output is variable for output in program.outvars) else set()
    for equation in program.eqns:
        for position, operand in enumerate(equation.invars):
            if operand is not variable:
                continue
            if equation.primitive.name == "convert_element_type":
                found.add(jnp.dtype(equation.params["new_dtype"]))
            elif (inner := _body(equation)) is not None:
                found |= _read_as(inner, inner.invars[position])
            else:
                found.add(own)
    return found


def _body(equation: Any) -> Jaxpr | None:
    """The program that an operation runs on exactly its operands (a scan's, a nested jit's); None for others."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        if inner is not None:
            body = getattr(inner, "jaxpr", inner)  # with or without its constants
            return body if len(body.invars) == len(equation.invars) else None
    return None
