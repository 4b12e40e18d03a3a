"""Which messages a conformance check can raise, read from its source, and which of them were raised."""

import ast
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def message_pieces(check: Callable[..., Any]) -> list[str]:
    """The longest fixed part of each message of `require` and `AssertionError` in a check's file."""
    module = inspect.getmodule(inspect.unwrap(check))
    assert module is not None
    found = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("require", "AssertionError"):
            constants = [c.value for c in ast.walk(node.args[-1]) if isinstance(c, ast.Constant)]
            found.append(max((text for text in constants if isinstance(text, str)), key=len))
    assert found, f"{module} requires nothing"
    return found


def error_of(call: Callable[[], Any]) -> str:
    """The message of the AssertionError that this raises; empty if it raises none."""
    try:
        call()
    except AssertionError as err:
        return str(err)
    return ""


def never_raised(check: Callable[..., Any], errors: Iterable[str]) -> list[str]:
    """The messages of a check that none of these errors is."""
    told = list(errors)
    return [piece for piece in message_pieces(check) if not any(piece in error for error in told)]
