"""Rows of numbers as CSV files: whatever a figure shows, its table says."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._io import atomic_write_text
from crosscoders._typing import typed


@typed
def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the keys of the first one; floats with nine significant digits, NaN and None empty.

    Args:
        path: File to write; its folder must exist.
        rows: At least one, all with the same keys.

    Raises:
        ValueError: No rows, or rows with different keys.
    """
    if not rows:
        raise ValueError(f"write_csv: no rows for {path.name}; a table needs at least one.")
    columns = list(rows[0])
    for at, row in enumerate(rows):
        if list(row) != columns:
            raise ValueError(f"write_csv: row {at} of {path.name} has columns {list(row)}, not {columns}.")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_plain(value) for value in row.values()] for row in rows)
    atomic_write_text(path, buffer.getvalue())


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.9g}" if isinstance(value, float) else value


@typed
def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, the first column flush left and the others right.

    Args:
        rows: As many cells in each.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
