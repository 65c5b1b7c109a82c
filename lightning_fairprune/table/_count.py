"""The first pass over a table: its classes, and rows that cannot be selected from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_fairprune.selection.strata import shared
from lightning_fairprune.table._record import Cell
from lightning_fairprune.table._source import Columns

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


MOST_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The classes of a table.

    Args:
        classes: in order of label and group.
        sizes: int64 [K], rows per class.
        bounds: float64 [K, 2], lowest and highest finite score of each class, or 0.
        num_samples: rows of the table.
        keys: columns of ``samples`` that define the class.
    """

    classes: tuple[Cell, ...]
    sizes: Tensor
    bounds: Tensor
    num_samples: int
    keys: tuple[str, ...]

    @property
    def excluded(self) -> bool:
        """Whether rows have the label -1, which leaves them out."""
        return int(self.sizes.sum()) < self.num_samples

    def register(self, connection: DuckDBPyConnection, across: bool) -> None:
        """Create the table ``classes``; with ``across``, rows compete across classes."""
        import pyarrow as pa

        low, high = self.bounds.unbind(1)
        home = torch.arange(len(self.classes))
        if across:
            home, low, high = home * 0, low.min().expand_as(low), high.max().expand_as(high)
        parts: dict[str, Any] = {"class": torch.arange(len(self.classes)).tolist()}
        parts |= dict(zip(self.keys, zip(*self.classes, strict=True), strict=True))
        parts |= {"home": home.tolist(), "lo": low.tolist(), "hi": high.tolist()}
        _table(connection, "classes", pa.table({k: pa.array(list(v)) for k, v in parts.items()}))


def classes_of(connection: DuckDBPyConnection, columns: Columns, finite: bool) -> Found:
    """Count the view ``samples`` by class.

    Raises:
        ValueError: no rows; rows without id, label, group or score; labels below -1; too many
            classes; with ``finite``, infinite scores.
    """
    keys = ("label", "part")[: len(columns.cell)]
    value = "CAST(score AS DOUBLE)"
    bad = f"score IS NULL OR {'NOT isfinite' if finite else 'isnan'}({value})"
    bounds, bad_count = "0::DOUBLE, 0::DOUBLE", "0"
    if columns.score is not None:
        bounds = ", ".join(f"{f}({value}) FILTER (isfinite({value}))" for f in ("MIN", "MAX"))
        bad_count = f"COUNT(*) FILTER ({bad})"
    listed = ", ".join(keys)
    connection.execute(
        f"CREATE TABLE counted AS SELECT {listed}, COUNT(*), COUNT(*) - COUNT(id), {bad_count}, "
        f"{bounds} FROM samples GROUP BY {listed}"
    )
    many = connection.execute("SELECT COUNT(*) FROM counted").fetchall()[0][0]
    if many > MOST_CLASSES:
        raise ValueError(
            f"the column of the classes must have at most {MOST_CLASSES} different values, "
            f"{' and '.join(map(repr, columns.cell))} has {many}."
        )
    rows = connection.execute("SELECT * FROM counted").fetchall()
    if not rows:
        raise ValueError("the tables have no rows.")
    width = len(keys)
    for i, name in enumerate(columns.cell):
        lacking = sum(row[width] for row in rows if row[i] is None)
        if lacking:
            where = _first_id(connection, f"{keys[i]} IS NULL")
            raise ValueError(
                f"{lacking} rows have no {('label', 'group')[i]} (column {name!r} is NULL), first "
                f"{where}: give those to leave out the label -1."
            )
        below = min((row[i] for row in rows if isinstance(row[i], int)), default=0)
        if below < -1:
            raise ValueError(f"column {name!r} must be >= -1, got {below}.")
    if lacking := sum(row[width + 1] for row in rows):
        raise ValueError(f"{lacking} rows have no id (column {columns.id!r} is NULL).")
    known = sorted(row for row in rows if -1 not in row[:width])
    if lacking := sum(row[width + 2] for row in known):
        where = _first_id(connection, f"({bad})" + "".join(f" AND {_known(k, rows)}" for k in keys))
        what = "finite score" if finite else "score"
        raise ValueError(
            f"{lacking} rows have no {what} (NULL or NaN{', or infinite' if finite else ''}), first "
            f"{where}: score every row, or give those to leave out the label -1."
        )
    if not known:
        raise ValueError("all rows have the label -1, which leaves them out.")
    return Found(
        tuple(row[:width] for row in known),
        torch.tensor([row[width] for row in known]),
        torch.tensor([[row[-2] or 0.0, row[-1] or 0.0] for row in known], dtype=torch.float64),
        sum(row[width] for row in rows),
        keys,
    )


def refuse_doubles(connection: DuckDBPyConnection, numbered: bool, column: str) -> None:
    """Raise a ValueError if an id of the view ``samples`` occurs twice.

    Integers are counted and collected as bits in blocks of 64: a small table where ids are dense, and
    never larger than that of the ids.
    """
    where = ""
    if numbered:
        mismatch = connection.execute(
            "SELECT block FROM (SELECT id >> 6 AS block, COUNT(*) AS n, "
            "BIT_COUNT(BIT_OR(1::UBIGINT << CAST(id & 63 AS UBIGINT))) AS different "
            "FROM samples GROUP BY block) WHERE n <> different LIMIT 1"
        ).fetchall()
        if not mismatch:
            return
        where = f"WHERE id >> 6 = {mismatch[0][0]}"
    found = connection.execute(
        f"SELECT id, COUNT(*) FROM samples {where} GROUP BY id HAVING COUNT(*) > 1 LIMIT 1"
    ).fetchall()
    if found:
        name, times = found[0]
        raise ValueError(f"column {column!r} must be unique, but {name!r} occurs {times} times.")


def shares(connection: DuckDBPyConnection, quota: Tensor, strata: int) -> None:
    """Create the table ``piles`` (pile, quota): the quota of each class, or the shares of its strata."""
    import pyarrow as pa

    share = quota[:, None]
    if strata > 1:
        counted = connection.execute("SELECT pile, SUM(n) FROM histogram GROUP BY pile").fetchall()
        sizes = torch.zeros(len(quota) * strata, dtype=torch.int64)
        places = torch.tensor([pile for pile, _ in counted])
        sizes[places] = torch.tensor([int(n) for _, n in counted])
        share = shared(sizes.view(-1, strata), quota)
    flat = share.flatten().numpy()
    _table(connection, "piles", pa.table({"pile": range(len(flat)), "quota": flat}))


def _table(connection: DuckDBPyConnection, name: str, content: Any) -> None:
    connection.register("arrow", content)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow")
    connection.unregister("arrow")


def _known(key: str, rows: list[Any]) -> str:
    """Return the condition that a row is not left out; only integers can be -1."""
    whole = isinstance(rows[0][("label", "part").index(key)], int)
    return f"{key} >= 0" if whole else "true"


def _first_id(connection: DuckDBPyConnection, condition: str) -> str:
    # No WHERE: DuckDB skips parts of a Parquet file by their largest value, which ignores NaN.
    found = connection.execute(f"SELECT MIN(id) FILTER ({condition}) FROM samples").fetchall()
    return f"id {found[0][0]!r}"
