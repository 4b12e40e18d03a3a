"""Reads the package's source for the tests of this folder: modules, imports, docstrings."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "crosscoders"


@dataclass(frozen=True)
class Import:
    """One import statement; it is late inside a function and under `if TYPE_CHECKING:`."""

    target: str
    names: tuple[str, ...]
    line: int
    is_late: bool
    is_relative: bool


def module_name(path: Path) -> str:
    """`src/crosscoders/kernels/__init__.py` -> `crosscoders.kernels`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in paths}


def _is_late(node: ast.AST) -> bool:
    """Whether what stands inside this node runs after import, or never."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def imports_of(tree: ast.AST, *, is_late: bool = False) -> Iterator[Import]:
    """All imports below a node."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno, is_late, False)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(node.module or "", names, node.lineno, is_late, node.level > 0)
        else:
            yield from imports_of(node, is_late=is_late or _is_late(node))
