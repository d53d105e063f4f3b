"""RUN/log.csv: a header, then a row for each event. For eyes, spreadsheets and `read_log`; TensorBoard on request.

Rows have the step, the seconds of training, and the event's numbers; the other columns are empty. A number that no
earlier event had widens the table: the file is written anew, whole or not at all. A resumed run first drops the rows
that are past its state.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_atomically

__all__ = ["Log", "read_log"]

_POSITION = ("step", "seconds")


def read_log(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a log.csv, each with the numbers that it has.

    Raises:
        FileNotFoundError: there is none.
    """
    text = Path(path).read_text(encoding="utf-8")
    rows = csv.reader(text[: text.rfind("\n") + 1].splitlines())  # the last row of a killed process may be half a row
    header = next(rows, [])
    return [{name: float(cell) for name, cell in zip(header, row, strict=True) if cell} for row in rows]


class Log:
    """The log of one run.

    Args:
        folder: the run's.
        step: where the run goes on; rows past it are dropped.
        tensorboard: also write event files to `folder / "tensorboard"`.

    Raises:
        ImportError: TensorBoard is wanted and missing.
    """

    def __init__(self, folder: Path, step: int = 0, *, tensorboard: bool = False) -> None:
        self.path = folder / "log.csv"
        self.columns = list(_POSITION)
        self.board: Any = _board(folder / "tensorboard", step) if tensorboard else None
        kept = [line for line in read_log(self.path) if line["step"] <= step] if self.path.exists() else []
        for line in kept:
            self.columns += [name for name in line if name not in self.columns]
        self._rewrite(kept)

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add a row."""
        line = {"step": step, "seconds": round(seconds, 2), **{k: float(f"{v:.6g}") for k, v in values.items()}}
        if new := [name for name in values if name not in self.columns]:
            before = read_log(self.path)
            self.columns += new
            self._rewrite(before)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(self._text([line]))
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def last_validation(self) -> dict[str, float]:
        """The numbers of the last row that is not one of training losses."""
        rows = [line for line in read_log(self.path) if "loss" not in line]
        return {name: value for name, value in rows[-1].items() if name not in _POSITION} if rows else {}

    def close(self) -> None:
        """Write what TensorBoard has not written yet."""
        if self.board is not None:
            self.board.close()

    def _rewrite(self, lines: list[dict[str, float]]) -> None:
        write_atomically(self.path, (",".join(self.columns) + "\n" + self._text(lines)).encode())

    def _text(self, lines: list[dict[str, float]]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        whole = lambda value: int(value) if float(value).is_integer() else value
        for line in lines:
            writer.writerow([whole(line[name]) if name in line else "" for name in self.columns])
        return text.getvalue()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard is missing. Install it: pip install 'interhand_prior[train]', or leave out --tensorboard."
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
