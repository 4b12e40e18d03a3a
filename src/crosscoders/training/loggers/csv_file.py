"""Metrics as a CSV file that grows while the run goes on, one row per step."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from crosscoders._io import atomic_write
from crosscoders._typing import typed
from crosscoders.training.loggers.base import Logger

_KEY = "step"


@final
class CsvLogger(Logger):
    """Writes each logging step's row at once, so that a killed run keeps every row up to its last one.

    Metrics and evaluation of one step share a row; a row that brings new columns makes the file be written
    anew, whole or not at all. A checkpoint holds the rows, and a resumed run's file begins with those up to
    its step: each step stands in it once, as in a run without interruption.

    Args:
        path: The file; its folder is made.

    Example:
        >>> from tempfile import mkdtemp
        >>> from crosscoders.training.loggers import CsvLogger
        >>> logger = CsvLogger(f"{mkdtemp()}/training.csv")
        >>> logger.start(step=0)
        >>> logger.write({"tokens": 64, "loss": 0.5}, step=1)
        >>> logger.write({"evaluate/error": 0.25}, step=1)
        >>> logger.path.read_text().split()
        ['step,tokens,loss,evaluate/error', '1,64,0.5,0.25']
    """

    @typed
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, int | float]] = []
        self._columns: list[str] = []
        self._offset = 0
        self._was_loaded = False

    def start(self, *, step: int) -> None:
        """Begin the file with the rows up to this step; a run from the start begins an empty one.

        Args:
            step: Steps that the run has behind it.
        """
        known = self.rows if self._was_loaded or self.rows else _read(self.path) if step else []
        self.rows = [row for row in known if row[_KEY] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_whole()

    def write(self, values: dict[str, int | float], *, step: int) -> None:
        """Add a row, or complete the last one if it is of the same step.

        Args:
            values: Metrics by name.
            step: Steps done.
        """
        row = {_KEY: step, **values}
        is_same = bool(self.rows) and self.rows[-1][_KEY] == step
        if is_same:
            row = {**self.rows.pop(), **values}
        self.rows.append(row)
        if not row.keys() <= set(self._columns):
            self._write_whole()
            return
        with self.path.open("r+b", buffering=0) as file:
            self._offset = file.seek(self._offset if is_same else 0, io.SEEK_SET if is_same else io.SEEK_END)
            file.write(self._line(row))  # one call of the system: a row is there whole or not at all
            file.truncate()

    def close(self) -> None:
        """Nothing: the file is closed after each row."""

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the rows.

        Args:
            state: A value of `state_dict`.
        """
        self.rows = [dict(row) for row in state["rows"]]
        self._was_loaded = True

    def _write_whole(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        header = [self._line(dict(zip(self._columns, self._columns)))] if self.rows else []
        lines = header + [self._line(row) for row in self.rows]
        self._offset = sum(map(len, lines[:-1]))
        atomic_write(self.path, lambda temporary: temporary.write_bytes(b"".join(lines)))

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        return text.getvalue().encode()


def _read(path: Path) -> list[dict[str, int | float]]:
    """The rows of an earlier part of the run whose checkpoint held none; a torn last line is left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    whole = [row for row in rows if None not in row and None not in row.values()]
    return [{name: _number(text) for name, text in row.items() if text} for row in whole]


def _number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)
