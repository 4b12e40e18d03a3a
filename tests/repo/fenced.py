"""Finds Python code in pages and docstrings, and runs it."""

import ast
import doctest
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.repo.source_tree import ROOT

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,}) *(?P<info>.*?) *$")
_NO_RUN = re.compile(r"python no-run: (?P<reason>.*network.*)")


@dataclass(frozen=True)
class Block:
    """One fenced block: the line of its first code line, what stands beside the fence, and the code."""

    line: int
    info: str
    code: str

    @property
    def is_run(self) -> bool:
        """Whether the block runs; raises where its marking is not one that we know."""
        if self.info == "python":
            return True
        if self.info.lower().split(":")[0].split(" ")[0] not in {"python", "py", "python3", "pycon"}:
            return False
        if _NO_RUN.fullmatch(self.info):
            return False
        raise ValueError(
            f"line {self.line - 1}: a Python block is marked {self.info!r}; write 'python', or "
            "'python no-run: <why it needs the network>'"
        )


def fenced_blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, whatever their language; an open fence raises."""
    blocks: list[Block] = []
    opened: tuple[int, str, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        if opened is None and match:
            opened, lines = (number, match["indent"], match["ticks"], match["info"]), []
        elif opened is not None and match and match["ticks"] == opened[2] and not match["info"]:
            blocks.append(Block(opened[0] + 1, opened[3], "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            lines.append(line.removeprefix(opened[1]))
    if opened is not None:
        raise ValueError(f"line {opened[0]}: this fence is never closed")
    return blocks


def run_page(blocks: list[Block], *, name: str) -> int:
    """Run the blocks of one page in one namespace; return how many ran. Tracebacks show page and line."""
    namespace: dict[str, Any] = {"__name__": "__page__"}
    to_run = [block for block in blocks if block.is_run]
    for block in to_run:
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, name, "exec", dont_inherit=True), namespace)
    return len(to_run)


def markdown_pages() -> list[Path]:
    """README.md and everything under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_prompts(text: str, *, name: str) -> int:
    """Run the `>>>` examples of one docstring, compare what they print, and return how many there were."""
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__page__"}, name, name, 0)
    output: list[str] = []
    result = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=output.append)
    if result.failed:
        raise AssertionError("".join(output))
    return result.attempted


def docstrings_with_code(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Docstrings that hold a fence or a `>>>` prompt, by the dotted name of what they document."""
    found: dict[str, str] = {}

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = name if isinstance(node, ast.Module) else f"{name}.{node.name}"
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
            if any(mark in text for mark in ("```", "~~~", ">>> ")):
                found[name] = text
        for child in ast.iter_child_nodes(node):
            visit(child, name)

    for module, tree in trees.items():
        visit(tree, module)
    return found
