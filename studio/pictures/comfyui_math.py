"""The arithmetic of ComfyUI's nodes for numbers. Whole numbers stay exact."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

Number = int | float

LONGEST = 300
"""Most characters of an expression."""
LARGEST = 2**128
"""No number on the way is larger."""

_TWO: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CALLS: Mapping[str, Callable[..., Any]] = {
    "round": round,
    "ceil": math.ceil,
    "floor": math.floor,
    "min": min,
    "max": max,
    "int": int,
    "abs": abs,
    "float": float,
}
_WORDS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "+": operator.add,
    "sum": operator.add,
    "addition": operator.add,
    "subtract": operator.sub,
    "subtraction": operator.sub,
    "-": operator.sub,
    "multiply": operator.mul,
    "multiplication": operator.mul,
    "*": operator.mul,
    "divide": operator.truediv,
    "division": operator.truediv,
    "/": operator.truediv,
    "floor division": operator.floordiv,
    "floordiv": operator.floordiv,
    "//": operator.floordiv,
    "modulo": operator.mod,
    "mod": operator.mod,
    "%": operator.mod,
    "min": min,
    "max": max,
}


def evaluate(expression: str, value: Callable[[str], Number | None]) -> Number | None:
    """The value of an expression such as `a * 2 + 1`; None for one that is not understood.

    value: the number that a name stands for, or None. Known: + - * / // %, round, ceil, floor, min, max, int, abs.
    """
    if len(expression) > LONGEST:
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, value)
    except (
        SyntaxError,
        ValueError,
        ArithmeticError,
        TypeError,
        KeyError,
        RecursionError,
        MemoryError,
    ):  # a stranger's text
        return None


def calculate(operation: str, left: Number, right: Number) -> Number | None:
    """The result of an operation by its name, as "add"; None for an unknown one."""
    try:
        return _bounded(_WORDS[operation.strip().lower()](left, right))
    except (KeyError, ArithmeticError, ValueError):
        return None


def _value(part: ast.expr, value: Callable[[str], Number | None]) -> Number:
    match part:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name):
            found = value(name)
            if found is None:
                raise KeyError(name)
            return found
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, value)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, value)
        case ast.BinOp(left=left, op=sign, right=right):
            return _bounded(_TWO[type(sign)](_value(left, value), _value(right, value)))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]):
            return _bounded(_CALLS[name](*(_value(one, value) for one in given)))
    raise KeyError(type(part).__name__)


def _bounded(number: Number) -> Number:
    if not -LARGEST <= number <= LARGEST:
        raise ValueError("too large")
    return number
