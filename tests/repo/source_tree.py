"""Reads the package's source for the tests of this folder: modules, imports, docstrings."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "crosscoders"


@dataclass(frozen=True)
class Import:
    """One import statement and when it runs: "at import", "in a call" or "never" (`if TYPE_CHECKING:`)."""

    target: str
    names: tuple[str, ...]
    line: int
    runs: str
    is_relative: bool


def module_name(path: Path) -> str:
    """`src/crosscoders/kernels/__init__.py` -> `crosscoders.kernels`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in paths}


def _when_runs(node: ast.AST, outer: str) -> str:
    """When what stands inside this node runs."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        return "never"
    is_call = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    return "in a call" if is_call and outer != "never" else outer


def imports_of(tree: ast.AST, *, runs: str = "at import") -> Iterator[Import]:
    """All imports below a node."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno, runs, False)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(node.module or "", names, node.lineno, runs, node.level > 0)
        else:
            yield from imports_of(node, runs=_when_runs(node, runs))
