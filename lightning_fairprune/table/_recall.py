"""Recalls for the classes of a table: from a CSV file or from the record of a run."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.records.recall_history import GROUPS, RecallHistory, is_of_groups
from lightning_fairprune.table._record import Cell

YES_NO = dict.fromkeys(("true", "t", "yes", "y"), 1) | dict.fromkeys(("false", "f", "no", "n"), 0)


def recall_of(
    source: str | os.PathLike[str] | Mapping[object, float],
    classes: Sequence[Cell],
    columns: Sequence[str],
    shrinkage: float | Literal["auto"] = 0.0,
) -> Tensor:
    """Return float64 [K], the recall of each class, or NaN.

    Args:
        source: recalls by class; a CSV file with the columns of the classes and ``recall``; or a path for
            `RecallHistory.load`, which gives the last validation.
        classes: the classes of the table.
        columns: names of their columns, of the label, or of label and group.
        shrinkage: see `select_table`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the classes of table and source differ, a recall is not in [0, 1], or the source
            cannot be parsed.
    """
    if isinstance(source, Mapping):
        found = {_cell(key): float(value) for key, value in source.items()}
        where = "`recall`"
    else:
        path = Path(source)
        where = str(path)
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            found = _from_csv(path, classes, columns, shrinkage)
        else:
            found = _from_run(path, classes, shrinkage)
    known = set(classes)
    found = {cell: v for cell, v in found.items() if cell in known or not math.isnan(v)}
    recall = listed(found, classes, "a recall", where)
    wrong = (recall < 0) | (recall > 1)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f"recalls must be in [0, 1], or NaN for a class never seen in validation, {where} has "
            f"{float(recall[k]):g} for class {named(classes[k])}."
        )
    return recall


def listed(found: Mapping[Cell, float], classes: Sequence[Cell], what: str, where: str) -> Tensor:
    """Return float64 [K], the numbers in the order of the classes, which must be the same."""
    known = set(classes)
    foreign = [cell for cell in found if cell not in known]
    if foreign:
        raise ValueError(
            f"{where} has {what} for class {named(foreign[0])}, which is not in the table: it has "
            f"{some(classes)}."
        )
    missing = [cell for cell in classes if cell not in found]
    if missing:
        raise ValueError(
            f"{where} has no {what.split()[-1]} for {len(missing)} of {len(classes)} classes, first "
            f"for {named(missing[0])}."
        )
    return torch.tensor([found[cell] for cell in classes], dtype=torch.float64)


def named(cell: Cell) -> str:
    """Return the name of a class for messages."""
    return " / ".join(repr(part) if isinstance(part, str) else str(part) for part in cell)


def some(classes: Sequence[Cell]) -> str:
    """Return the first classes and their number, for messages."""
    names = ", ".join(named(cell) for cell in classes[:5])
    return names if len(classes) <= 5 else f"{names}, ... ({len(classes)} classes)"


def _cell(key: object) -> Cell:
    return tuple(key) if isinstance(key, tuple) else (key,)  # type: ignore[return-value]


def _from_csv(
    path: Path,
    classes: Sequence[Cell],
    columns: Sequence[str],
    shrinkage: float | Literal["auto"],
) -> dict[Cell, float]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    whole = [isinstance(part, int) for part in classes[0]]
    found: dict[Cell, float] = {}
    supports: dict[Cell, int] = {}
    try:
        lines = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 ({error}): save it as such.") from error
    with lines as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        lacking = [name for name in (*columns, "recall") if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(
                f"{path} must have the columns {', '.join((*columns, 'recall'))}, got "
                f"{', '.join(reader.fieldnames or ()) or 'nothing'}."
            )
        for row in reader:
            line = f"line {reader.line_num} of {path}"
            try:
                cell = tuple(
                    _whole(row[name]) if integer else row[name]
                    for name, integer in zip(columns, whole, strict=True)
                )
                value = float(row["recall"] or math.nan)
                if "support" in row:
                    supports[cell] = _support(row["support"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{line} must name a class of the table, such as {named(classes[0])}, and a "
                    f"number, and a `support` be a whole number, got "
                    f"{', '.join(str(row[n]) for n in (*columns, 'recall'))}."
                ) from None
            if cell in found:
                raise ValueError(f"{line} gives class {named(cell)} a second recall.")
            found[cell] = value
    if not supports or any(value < 0 or value > 1 for value in found.values()):
        return found  # the caller refuses a recall that is out of range
    rate, size = (torch.tensor(list(v.values()), dtype=torch.float64) for v in (found, supports))
    hits = (rate * size).round().nan_to_num()
    counts = ClassCounts(hits.long(), torch.where(rate.isnan(), 0, size).long())
    return dict(zip(found, counts.shrunk_recall(shrinkage).tolist(), strict=True))


def _whole(text: str) -> int:
    """Return an integer; the words that DuckDB takes for true and false are 1 and 0."""
    known = YES_NO.get(text.strip().lower())
    return int(text) if known is None else known


def _support(text: str | None) -> int:
    value = float(text or 0)
    if not 0 <= value < 2**53 or value != int(value):
        raise ValueError(text)
    return int(value)


def _from_run(
    path: Path, classes: Sequence[Cell], shrinkage: float | Literal["auto"]
) -> dict[Cell, float]:
    history = RecallHistory.load(path)
    grouped = len(classes[0]) == 2
    names = [n for n in history.names if is_of_groups(n) == grouped and not n.startswith("test")]
    if len(names) != 1:
        kind = f"groups (val{GROUPS})" if grouped else "classes (val)"
        raise ValueError(
            f"{path} must have one validation of {kind}, it has {', '.join(history.names) or 'none'}; "
            "write the recalls to a CSV file."
        )
    recall = history.last(names[0]).counts.shrunk_recall(shrinkage).tolist()
    called = history.names_of(names[0])
    # A run has one number or name per group: the group column alone must identify it.
    own = {cell[-1]: cell for cell in classes}
    if len(own) < len(classes):
        raise ValueError(
            f"{path} has one recall per group, but groups of the table have several labels each; "
            "write the recalls to a CSV file with a row for every label and group."
        )
    numbered = isinstance(classes[0][-1], int)
    if not numbered and called is None:
        raise ValueError(
            f"{path} numbers its classes, but the table names them, such as {named(classes[0])}; "
            "write the recalls to a CSV file."
        )
    keys: Sequence[int | str] = range(len(recall)) if numbered or called is None else called
    return {own.get(key, (key,)): value for key, value in zip(keys, recall, strict=True)}
