"""What a value of JSON that others wrote must look like, and in words where it does not.

A shape is a type of JSON's (int, float, str, bool; int counts as float, bool as neither), None, a range of whole
numbers, numbers Between two, a set of words, a pattern of words, a list [shape] of any length, an object {name: shape}
whose names may be absent and that may have others, of which {str: shape} says more, or a tuple of alternatives.
"""

import json
import re
from typing import Any, NamedTuple

Shape = Any


class Between(NamedTuple):
    """Numbers from `low` to `high`."""

    low: float
    high: float


NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", None: "null"}


def misfit(value: Any, shape: Shape, name: str = "") -> str:
    """Return the first part of `value` that has not its `shape`, called `name`, and what it must be; "" if it fits."""
    if isinstance(shape, dict) and isinstance(value, dict):
        known = ((key, inner, shape.get(key, shape.get(str))) for key, inner in value.items())
        below = f"{name}." if name else ""
        parts = [misfit(inner, own, below + key) for key, inner, own in known if key in shape or str in shape]
    elif isinstance(shape, list) and isinstance(value, list):
        parts = [misfit(inner, shape[0], f"{name}[{index}]") for index, inner in enumerate(value)]
    else:
        return "" if fits(value, shape) else f"{name} must be {words(shape)}, not {json.dumps(value)[:40]}"
    return next(filter(None, parts), "")


def fits(value: Any, shape: Shape) -> bool:
    """Tell whether a value has a shape."""
    if isinstance(shape, Between):
        return type(value) in (int, float) and shape.low <= value <= shape.high
    if isinstance(shape, tuple):
        return any(not misfit(value, each) for each in shape)
    if isinstance(shape, range):
        return type(value) is int and value in shape
    if isinstance(shape, set | frozenset):
        return isinstance(value, str) and value in shape
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    if shape is float:
        return type(value) in (int, float)
    return value is None if shape is None else type(value) is shape


def words(shape: Shape) -> str:
    """Return a shape in words."""
    if isinstance(shape, Between):
        return f"a number from {shape.low:g} to {shape.high:g}"
    if isinstance(shape, tuple):
        return " or ".join(map(words, shape))
    if isinstance(shape, range):
        return f"a whole number from {shape[0]} to {shape[-1]}"
    if isinstance(shape, set | frozenset):
        return " or ".join(sorted(shape))
    if isinstance(shape, re.Pattern):
        return f"a text like {shape.pattern}"
    return "a list" if isinstance(shape, list) else "an object" if isinstance(shape, dict) else NAMES[shape]
