"""The selection in SQL: as one query for any database, and in passes of bounded memory for DuckDB.

The query ranks all rows of a class, which sorts the table. The passes count the rows of each class
by ranges of score or key instead, to find the range in which the quota ends: earlier ranges are kept
whole, and only its own rows are sorted. Both keep the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_fairprune.selection.strata import STRATA
from lightning_fairprune.table._random import PRIME, random_key_sql
from lightning_fairprune.table._record import Cell
from lightning_fairprune.table._source import Columns, identifier, text

RESERVED = {"all", "by", "group", "index", "key", "order", "partition", "rank", "row", "select"}
RESERVED |= {"set", "table", "to", "union", "user", "value", "values", "where", "with"}
# score * 1e0 is a 64-bit number in every dialect. Halves: the difference of two finite numbers may
# overflow, that of their halves does not; the smallest normal number replaces a width of 0.
SHARE = "(score * 1e0 / 2 - lo / 2) / GREATEST(hi / 2 - lo / 2, 2.2250738585072014e-308)"
STRATUM = f"LEAST(FLOOR({SHARE} * {STRATA}), {STRATA - 1})"


@dataclass(frozen=True, slots=True)
class Order:
    """The order inside a class: ``keep`` and ``seed`` as in `select_table`."""

    keep: str
    seed: int

    @property
    def drawn(self) -> bool:
        """Whether the order uses random keys."""
        return self.keep in ("random", "stratified")

    @property
    def terms(self) -> str:
        """The terms of ORDER BY."""
        if self.drawn:
            return "random, id"
        return "score DESC, id" if self.keep == "hard" else "score, id"

    def source(self, columns: str, name: str) -> str:
        """Return the rows to rank, with random keys if the order needs them."""
        if not self.drawn:
            return name
        return f"(\n{random_key_sql(columns, name, 'id', self.seed)})"


def definition(
    classes: Sequence[Cell], quota: Tensor | int, order: Order, columns: Columns, excluded: bool
) -> str:
    """Return the selection as one query on ``my_table``.

    ``quota`` is int64 [K], rows per class, or an int, of all rows; ``excluded`` leaves out label -1.
    """
    grouped = isinstance(quota, Tensor)
    keys = ["label", "part"][: len(columns.cell)] if grouped else []
    own = "PARTITION BY " + ", ".join(keys) + " " if keys else ""
    taken = {"id": columns.id, "label": columns.label, "part": columns.group}
    taken["score"] = columns.score
    chosen = [f"{_plain(name)} AS {role}" for role, name in taken.items() if name is not None]
    where = [f"{_plain(name)} >= 0" for name in columns.cell] if excluded else []
    parts = [
        f"samples AS (\n  SELECT {', '.join(chosen)}\n  FROM my_table"
        + (f"\n  WHERE {' AND '.join(where)}" if where else "")
        + "\n)"
    ]
    if isinstance(quota, Tensor):
        rows = [
            "SELECT "
            + ", ".join(f"{_literal(part)} AS {key}" for part, key in zip(cell, keys, strict=True))
            + f", {count} AS quota"
            for cell, count in zip(classes, quota.tolist(), strict=True)
        ]
        parts.append("quotas AS (\n  " + "\n  UNION ALL ".join(rows) + "\n)")
    source = order.source(
        ", ".join([*keys, "id", *(["score"] if columns.score else [])]), "samples"
    )
    listed = ", ".join([*keys, "id"])
    if order.keep == "stratified":
        ends = ", ".join([*keys, "MIN(score * 1e0) AS lo, MAX(score * 1e0) AS hi"])
        group = f" GROUP BY {', '.join(keys)}" if keys else ""
        join = _join("drawn", "bounds", keys)
        all_own = ", ".join(f"drawn.{key}" for key in [*keys, "id"])
        pile = ", ".join([*keys, "stratum"])
        parts += [
            f"bounds AS (\n  SELECT {ends} FROM samples{group}\n)",
            f"strata AS (\n  SELECT {all_own}, random, {STRATUM} AS stratum\n"
            f"  FROM {source} AS drawn {join}\n)",
            f"dealt AS (\n  SELECT {listed}, stratum,\n"
            f"    ROW_NUMBER() OVER (PARTITION BY {pile} ORDER BY random, id) AS turn,\n"
            f"    COUNT(*) OVER (PARTITION BY {pile}) AS size\n  FROM strata\n)",
        ]
        source, terms = "dealt", "turn, size DESC, stratum"
    else:
        terms = order.terms
    parts.append(
        f"ranked AS (\n  SELECT {listed},\n    ROW_NUMBER() OVER ({own}ORDER BY {terms}) AS place\n"
        f"  FROM {source}{' AS drawn' if source.startswith('(') else ''}\n)"
    )
    join = " " + _join("ranked", "quotas", keys) if grouped else ""
    most = "quotas.quota" if grouped else str(quota)
    return (
        "WITH "
        + ",\n".join(parts)
        + f"\nSELECT ranked.id\nFROM ranked{join}\nWHERE ranked.place <= {most}\nORDER BY ranked.id\n"
    )


def keyed(order: Order, keys: Sequence[str], buckets: int) -> str:
    """Return a SELECT of id, class, pile (class, or stratum of a class), bucket, and score or key.

    Reads the view ``samples`` and the table ``classes`` (class, home, label, [part,] lo, hi), where
    home is the class in which a row competes. Lower buckets are kept first.
    """
    if order.drawn:
        bucket = f"random * {buckets} // {PRIME}"
    else:
        share = f"LEAST(FLOOR({SHARE} * {buckets}), {buckets - 1})"
        infinite = f"CASE WHEN score > 0 THEN {buckets - 1} ELSE 0 END"
        bucket = f"CASE WHEN isinf(score * 1e0) THEN {infinite} ELSE {share} END"
        if order.keep == "hard":
            bucket = f"{buckets - 1} - ({bucket})"
    pile = f"home * {STRATA} + {STRATUM}" if order.keep == "stratified" else "home"
    score = ["score"] if order.keep != "random" else []
    source = order.source(", ".join(["id", *keys, *score]), "samples")
    what = "random" if order.drawn else "score"
    return (
        f"SELECT id, class, CAST({pile} AS BIGINT) AS pile, CAST({bucket} AS INTEGER) AS bucket, "
        f"{what}\nFROM {source} AS s {_join('s', 'classes', keys)}"
    )


def histogram(rows: str) -> str:
    """Return a SELECT of the number of rows by pile and bucket."""
    return f"SELECT pile, bucket, COUNT(*) AS n FROM ({rows}) GROUP BY pile, bucket"


def edges() -> str:
    """Return a SELECT of the bucket in which the quota of each pile ends, and the rest of the quota there."""
    return (
        "SELECT pile, bucket AS edge, quota - before AS rest FROM (SELECT pile, bucket, n, "
        "SUM(n) OVER (PARTITION BY pile ORDER BY bucket) - n AS before FROM histogram) "
        "JOIN piles USING (pile) WHERE before < quota AND quota <= before + n"
    )


def selection(rows: str, order: Order, columns: str) -> str:
    """Return a SELECT of the rows kept; reads the table ``edges``."""
    return (
        f"SELECT {columns} FROM ({rows}) JOIN edges USING (pile) WHERE bucket < edge\n"
        f"UNION ALL SELECT {columns} FROM (SELECT {columns}, rest, "
        f"ROW_NUMBER() OVER (PARTITION BY pile ORDER BY {order.terms}) AS place "
        f"FROM ({rows}) JOIN edges USING (pile) WHERE bucket = edge) WHERE place <= rest"
    )


def _join(left: str, right: str, keys: Sequence[str]) -> str:
    if not keys:
        return f"CROSS JOIN {right}"
    return f"JOIN {right} ON " + " AND ".join(f"{left}.{k} = {right}.{k}" for k in keys)


def _plain(name: str) -> str:
    """Return a name in SQL, quoted only if necessary: dialects differ in their quotes."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in RESERVED
    return name if plain else identifier(name)


def _literal(value: int | str) -> str:
    return text(value) if isinstance(value, str) else str(value)
