# ruff: noqa: INP001
"""For the site: examples in docstrings show as code, and the shape of one axis without its space."""

import dataclasses
import re
import textwrap
from typing import Any

from griffe import Attribute, Expr, Extension, Function, Object

_EXAMPLE = re.compile(r"^Example:\n(?P<code>(?:(?: {4}.*)?\n?)+)", re.M)


class Examples(Extension):
    """Turns `Example:` sections into a heading and a fenced block, and `" latent"` into `"latent"`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring and the annotations of one object, which are shown afterwards."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)
        if isinstance(obj, Function):
            obj.returns = _tidied(obj.returns)
            for parameter in obj.parameters:
                parameter.annotation = _tidied(parameter.annotation)
        if isinstance(obj, Attribute):
            obj.annotation = _tidied(obj.annotation)


def _fenced(match: re.Match[str]) -> str:
    code = textwrap.dedent(match["code"]).strip("\n")
    language = "pycon" if code.startswith(">>>") else "python"
    return f"**Example**\n\n```{language}\n{code}\n```\n"


def _tidied(part: Any) -> Any:
    """An annotation without the space that linters want before the name of a lone axis."""
    if isinstance(part, str):
        return re.sub(r"""^(['"]) """, r"\1", part)
    if isinstance(part, list):
        return [_tidied(each) for each in part]
    if isinstance(part, Expr):
        for field in dataclasses.fields(part):
            if field.name != "parent":
                setattr(part, field.name, _tidied(getattr(part, field.name)))
    return part
