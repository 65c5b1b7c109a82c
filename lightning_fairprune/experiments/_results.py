"""The table of all models of an experiment, and its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fairprune import statistics
from lightning_fairprune._files import write_whole
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._store import Store

MEASURES = ("average", "worst", "gap", "std")
FACTS = ("samples_seen", "steps", "seconds", "select_seconds", "query_seconds", "sparsity", "alpha")
COLUMNS = ("method", "kind", "density", "seed", *MEASURES, *FACTS)
LAST = ("fewest kept of a class", "samples seen", "s", "s to select")
HEAD = ("method", "seeds", *MEASURES, *LAST)
WEIGHTS_HEAD = ("method", "seeds", "alpha", *MEASURES, "s")


@dataclass(frozen=True, slots=True)
class Row:
    """One model, from its `result.json`."""

    method: str
    kind: str
    density: float
    seed: int
    average: float  # these four of the recalls of classes or groups in the test
    worst: float
    gap: float
    std: float
    samples_seen: int
    steps: int
    seconds: float  # of the training
    select_seconds: float | None  # None for models without a selection before training
    query_seconds: float | None  # of training its query models
    classes: tuple[str, ...]
    recall: tuple[float | None, ...]  # None for a class without a test sample
    kept: tuple[int, ...] | None  # training samples of each class; None if the labels are not known
    sparsity: float = 0.0
    alpha: float | None = None  # against the dense model of the same seed


ByLevel = Mapping[tuple[str, float], Sequence[Row]]  # by method, and density or sparsity


def rows_of(store: Store, cells: Sequence[Cell]) -> list[Row]:
    """Returns the finished models: baselines first, then by density, sparsity, method and seed."""
    found = [result for cell in cells if cell.in_table and (result := store.result(cell))]
    rows = [_row(result) for result in found]
    names = list(dict.fromkeys(row.method for row in rows))
    return sorted(
        rows, key=lambda row: (-row.density, row.sparsity, names.index(row.method), row.seed)
    )


def _row(result: Mapping[str, Any]) -> Row:
    values: dict[str, Any] = {field.name: result.get(field.name) for field in fields(Row)}
    values |= {"seconds": result["training_seconds"], "sparsity": result.get("sparsity", 0.0)}
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return Row(**values)


def by_density(rows: Sequence[Row]) -> ByLevel:
    """Returns the rows of each method and density, without models whose weights were pruned."""
    return _by_level(rows, "density", sparse=False)


def by_sparsity(rows: Sequence[Row]) -> ByLevel:
    """Returns the rows of each method and sparsity, of models whose weights were pruned."""
    return _by_level(rows, "sparsity", sparse=True)


def _by_level(rows: Sequence[Row], name: str, *, sparse: bool) -> ByLevel:
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if bool(row.sparsity) == sparse:
            found.setdefault((row.method, getattr(row, name)), []).append(row)
    return found


def ratio(sparsity: float) -> float:
    """Returns weights before by weights after, as in the papers.

    Example:
        >>> round(ratio(0.9), 3)
        10.0
    """
    return 1 / (1 - sparsity)


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
    """Returns a table for each density and sparsity, with mean [lowest, highest] over the seeds."""
    dense, parts = by_density(rows), []
    for density in dict.fromkeys(d for _, d in dense):
        title = "all data" if density == 1 else f"density {density:g}"
        lines = [_line(n, seeds) for (n, d), seeds in dense.items() if d == density]
        parts.append(_table(title, HEAD, lines))
    sparse = by_sparsity(rows)
    for sparsity in sorted({s for _, s in sparse}):
        title = f"sparsity {sparsity:g} (ratio {ratio(sparsity):.3g})"
        lines = [_weights_line(n, seeds) for (n, s), seeds in sparse.items() if s == sparsity]
        parts.append(_table(title, WEIGHTS_HEAD, lines))
    if sparse:
        parts.append(
            "alpha is the intensification ratio against the dense model of the same seed: mean ± half of "
            "the 95 % t interval over the\nseeds; > and < mean that the 99 % interval lies on that side of 1.\n"
        )
    return "\n".join(parts)


def _table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [head, ("---", *["--:"] * (len(head) - 1)), *lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in every)
    return f"## {title}\n\n{table}\n"


def _weights_line(name: str, seeds: Sequence[Row]) -> tuple[str, ...]:
    return (
        name,
        str(len(seeds)),
        _alpha([row.alpha for row in seeds if row.alpha is not None]),
        *(spread([getattr(row, measure) for row in seeds]) for measure in MEASURES),
        f"{sum(row.seconds for row in seeds) / len(seeds):.1f}",
    )


def _alpha(values: Sequence[float]) -> str:
    """Returns mean and interval as text; without scipy the range."""
    if not values:
        return ""
    try:
        narrow, wide = statistics.summarise(values, 0.95), statistics.summarise(values)
    except ImportError:
        return spread(values)
    if wide.num_models < 2:
        return spread(values)
    return f"{narrow.mean:.3f} ± {narrow.high - narrow.mean:.3f} {wide.label}"


def _line(name: str, seeds: Sequence[Row]) -> tuple[str, ...]:
    fewest = [min(row.kept) for row in seeds if row.kept]
    select = [row.select_seconds for row in seeds if row.select_seconds is not None]
    return (
        name,
        str(len(seeds)),
        *(spread([getattr(row, measure) for row in seeds]) for measure in MEASURES),
        str(min(fewest)) if fewest else "",
        f"{sum(row.samples_seen for row in seeds) / len(seeds):,.0f}",
        f"{sum(row.seconds for row in seeds) / len(seeds):.1f}",
        f"{sum(select) / len(select):.1f}" if select else "",
    )


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns flat records for files, with a column for the recall and for the kept samples of each class."""
    found = []
    for row in rows:
        record: dict[str, Any] = {name: getattr(row, name) for name in COLUMNS}
        names = _unique(row.classes)
        record |= {f"recall_{n}": v for n, v in zip(names, row.recall, strict=True)}
        kept = row.kept or (None,) * len(names)
        record |= {f"kept_{n}": v for n, v in zip(names, kept, strict=True)}
        found.append(record)
    return found


def _unique(names: Sequence[str]) -> list[str]:
    """Returns distinct names of the classes; ImageNet has two cranes."""
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
    path, whole = folder / "results.parquet", pa.Table.from_pylist(table(rows))
    write_whole(path, lambda temporary: pq.write_table(whole, temporary))
    return path
