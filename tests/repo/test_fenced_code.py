"""Every fenced Python block in the README, the docs and the docstrings runs, and every `>>>` example."""

from pathlib import Path

import pytest

from tests.repo.fenced import docstrings_with_code, fenced_blocks, markdown_pages, run_page, run_prompts
from tests.repo.source_tree import ROOT, read_modules

PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in markdown_pages()}
DOCSTRINGS = docstrings_with_code(read_modules())
TEXTS = {**PAGES, **DOCSTRINGS}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_fenced_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page share a namespace and run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    assert run_page(fenced_blocks(TEXTS[name]), name=name) >= 0


@pytest.mark.parametrize("name", sorted(name for name, text in DOCSTRINGS.items() if ">>> " in text))
def test_docstring_examples_print_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_prompts(DOCSTRINGS[name], name=name) > 0


def test_a_wrong_example_fails() -> None:
    assert run_prompts(">>> 1 + 1\n2\n", name="right") == 1
    with pytest.raises(AssertionError, match="Expected"):
        run_prompts(">>> 1 + 1\n3\n", name="wrong")


def test_the_readme_shows_code_that_runs() -> None:
    assert any(block.is_run for block in fenced_blocks(PAGES["README.md"]))


def test_blocks_share_a_namespace_and_a_failing_one_names_its_line() -> None:
    page = "# Page\n\n```python\nx = 2\n```\ntext\n```python\nassert x == 3\n```\n"
    with pytest.raises(AssertionError) as caught:
        run_page(fenced_blocks(page), name="page.md")
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("page.md", 8)


def test_indented_and_foreign_blocks_are_told_apart() -> None:
    blocks = fenced_blocks("- item\n\n  ```python\n  if True:\n      y = 1\n  ```\n\n```bash\nls\n```\n")
    assert [block.is_run for block in blocks] == [True, False]
    assert blocks[0].code == "if True:\n    y = 1\n"


def test_a_block_is_left_out_only_for_the_network() -> None:
    skipped, *unmarked = fenced_blocks(
        "```python no-run: needs the network for the weights\n1/0\n```\n"
        "```python no-run\n```\n```python no-run: slow\n```\n```py\n```\n```Python\n```\n"
    )
    assert not skipped.is_run
    for block in unmarked:
        with pytest.raises(ValueError, match="needs the network"):
            assert block.is_run
    with pytest.raises(ValueError, match="never closed"):
        fenced_blocks("```python\nx = 1\n")
