"""The columns of the latent browser."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.report.site.checks import check_range, check_shape, real, unsigned

KINDS = ("number", "integer", "choice", "text")
UNDEFINED_CHOICE = 255
SEPARATOR = "\u001f"  # ASCII's unit separator; a page shows the pieces that it parts one by one


@final
@dataclass(frozen=True, kw_only=True)
class Column:
    """One measure or note of every latent.

    Args:
        name: Key of the column, such as "nrn_l2"; also in the address of a view of the browser.
        label: What heads it.
        help: One sentence that says what it is.
        kind: "number" (any tensor of numbers, NaN where undefined), "integer" (the same, shown without
            decimals), "choice" (a tensor of indices into `choices`, -1 where undefined) or "text" (strings;
            of several pieces, such as tokens, with `SEPARATOR` in between).
        values: One entry per latent, in the order of the latents.
        choices: The words of a "choice" column, at most 255; empty for the other kinds.
        group: Columns of one group stand together in the choice of columns.
        is_shown: Whether it is shown before the reader chooses.
    """

    name: str
    label: str
    help: str
    kind: str
    values: Tensor | Sequence[str]
    choices: Sequence[str] = ()
    group: str = ""
    is_shown: bool = False

    def __post_init__(self) -> None:
        where = f"Column({self.name!r})"
        if not self.name:
            raise ValueError(f"{where}: expected a name of at least one character.")
        if self.kind not in KINDS:
            raise ValueError(f"{where}: kind should be one of {', '.join(KINDS)}, got {self.kind!r}.")
        if (self.kind == "choice") != bool(self.choices):
            raise ValueError(f"{where}: choices belong to kind 'choice' alone, got {self.choices!r}.")
        if self.kind == "text":
            _check_strings(where, self.values)
        else:
            self._check_numbers(where)

    def _check_numbers(self, where: str) -> None:
        is_float = isinstance(self.values, Tensor) and self.values.is_floating_point()
        check_shape(where, self.values, (None,), is_float=is_float and self.kind != "choice")
        if self.kind == "choice" and isinstance(self.values, Tensor):
            if len(self.choices) > UNDEFINED_CHOICE:
                raise ValueError(f"{where}: at most {UNDEFINED_CHOICE} choices, got {len(self.choices)}.")
            check_range(where, self.values, -1, len(self.choices) - 1)

    def __len__(self) -> int:
        return len(self.values)


def _check_strings(where: str, values: Any) -> None:
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if not is_sequence or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: kind 'text' expects a list of strings, got {type(values).__name__}.")


@typed
def table_file(
    columns: Sequence[Column], *, n_tokens: int | None, has_text: bool = False, has_pages: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Content of the table file.

    Args:
        columns: The columns, the first one named "latent"; all of one length.
        n_tokens: Tokens that the measures were taken on; None where unknown.
        has_text: Whether the report has the text file, so that the page never asks for one that is missing.
        has_pages: Likewise the files of the latents.

    Returns:
        The JSON part (names, labels, words) and the arrays by column name.

    Raises:
        ValueError: A whole number is too large for float32 to hold exactly.
    """
    described = [_described(column) for column in columns]
    arrays = {column.name: _packed(column) for column in columns if column.kind != "text"}
    content = {
        "n_latents": len(columns[0]),
        "n_tokens": n_tokens,
        "has_text": has_text,
        "has_pages": has_pages,
        "columns": described,
    }
    return content, arrays


def _described(column: Column) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": column.name,
        "label": column.label,
        "help": column.help,
        "kind": column.kind,
        "group": column.group,
        "shown": column.is_shown,
    }
    if column.kind == "choice":
        said["choices"] = list(column.choices)
    if column.kind == "text":
        said["values"] = list(column.values)
    return said


def _packed(column: Column) -> np.ndarray:
    assert isinstance(column.values, Tensor)
    where = f"Column({column.name!r})"
    if column.kind == "choice":
        values = column.values.where(column.values >= 0, UNDEFINED_CHOICE)
        return unsigned(where, values, "u1")
    if not column.values.is_floating_point():
        check_range(where, column.values, -(2**24), 2**24)
    return real(column.values)
