"""One table over all models of an experiment, and its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fairprune._files import write_whole
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._store import Store

__all__ = ["Row", "by_setting", "markdown", "rows_of", "spread", "write_parquet", "write_tables"]

MEASURES = ("average", "worst", "gap", "std")
NUMBERS = (*MEASURES, "samples_seen", "steps", "seconds", "select_seconds", "query_seconds")


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Args:
        method: its name in the config.
        kind: ``"baseline"``, ``"final"`` or ``"one_fit"``.
        density: fraction of the samples that it was trained on, 1 for all.
        seed: of the model.
        average: mean recall of the test's classes.
        worst: lowest recall of a class.
        gap: highest minus lowest.
        std: population standard deviation of the recalls.
        samples_seen: training samples, repetitions included.
        steps: of the optimiser.
        seconds: of the training.
        select_seconds: of scores and selection; None for models that select nothing or as they go.
        query_seconds: of training its query models; None likewise.
        classes: names of the K classes or groups.
        recall: of each, None without a test sample.
        kept: training samples of each; None if nobody knows the labels of all the data.
    """

    method: str
    kind: str
    density: float
    seed: int
    average: float
    worst: float
    gap: float
    std: float
    samples_seen: int
    steps: int
    seconds: float
    select_seconds: float | None
    query_seconds: float | None
    classes: tuple[str, ...]
    recall: tuple[float | None, ...]
    kept: tuple[int, ...] | None


def rows_of(store: Store, cells: Sequence[Cell]) -> list[Row]:
    """Returns the models that are finished: baselines first, then by density, method and seed."""
    found = [result for cell in cells if cell.in_table and (result := store.result(cell))]
    rows = [_row(result) for result in found]
    names = list(dict.fromkeys(row.method for row in rows))
    return sorted(rows, key=lambda row: (-row.density, names.index(row.method), row.seed))


def _row(result: Mapping[str, Any]) -> Row:
    plain = {name: result[name] for name in ("method", "kind", "density", "seed", *MEASURES)}
    kept = result.get("kept")
    return Row(
        **plain,
        samples_seen=result["samples_seen"],
        steps=result["steps"],
        seconds=result["training_seconds"],
        select_seconds=result.get("select_seconds"),
        query_seconds=result.get("query_seconds"),
        classes=tuple(result["classes"]),
        recall=tuple(result["recall"]),
        kept=None if kept is None else tuple(kept),
    )


def by_setting(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """Returns the rows of each method and density: its seeds."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.density), []).append(row)
    return groups


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Returns mean, lowest and highest as text.

    Example:
        >>> spread([0.5, 0.7]), spread([0.25])
        ('0.600 [0.500, 0.700]', '0.250')
    """
    mean = f"{sum(values) / len(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def markdown(rows: Sequence[Row]) -> str:
    """Returns one table for each density, all data first: mean [lowest, highest] over the seeds."""
    groups, parts = by_setting(rows), []
    head = (
        "method",
        "seeds",
        *MEASURES,
        "fewest kept of a class",
        "samples seen",
        "s",
        "s to select",
    )
    for density in dict.fromkeys(row.density for row in rows):
        title = "all data" if density == 1 else f"density {density:g}"
        lines = [head, ("---", *["--:"] * (len(head) - 1))]
        lines += [_line(name, group) for (name, d), group in groups.items() if d == density]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {title}\n\n{table}\n")
    return "\n".join(parts)


def _line(name: str, group: Sequence[Row]) -> tuple[str, ...]:
    fewest = [min(row.kept) for row in group if row.kept]
    select = [row.select_seconds for row in group if row.select_seconds is not None]
    return (
        name,
        str(len(group)),
        *(spread([getattr(row, measure) for row in group]) for measure in MEASURES),
        str(min(fewest)) if fewest else "",
        f"{sum(row.samples_seen for row in group) / len(group):,.0f}",
        f"{sum(row.seconds for row in group) / len(group):.1f}",
        f"{sum(select) / len(select):.1f}" if select else "",
    )


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns flat records for files: recall and kept of each class in columns of their own."""
    found = []
    for row in rows:
        record: dict[str, Any] = {n: getattr(row, n) for n in ("method", "kind", "density", "seed")}
        record |= {name: getattr(row, name) for name in NUMBERS}
        names = _unique(row.classes)
        record |= {f"recall_{n}": v for n, v in zip(names, row.recall, strict=True)}
        kept = row.kept or (None,) * len(names)
        record |= {f"kept_{n}": v for n, v in zip(names, kept, strict=True)}
        found.append(record)
    return found


def _unique(names: Sequence[str]) -> list[str]:
    """Returns names that tell classes apart; ImageNet has two called crane."""
    return [name if names.count(name) == 1 else f"{name}_{k}" for k, name in enumerate(names)]


def write_tables(rows: Sequence[Row], name: str, folder: Path) -> list[Path]:
    """Writes `results.csv` and `table.md` and returns them."""
    records = table(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    contents = {"results.csv": text.getvalue(), "table.md": f"# {name}\n\n{markdown(rows)}"}
    for file, content in contents.items():
        write_whole(folder / file, partial(Path.write_text, data=content))
    return [folder / file for file in contents]


def write_parquet(rows: Sequence[Row], folder: Path) -> Path | None:
    """Writes `results.parquet` and returns it; None without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    path = folder / "results.parquet"
    write_whole(
        path, lambda temporary: pq.write_table(pa.Table.from_pylist(table(rows)), temporary)
    )
    return path
