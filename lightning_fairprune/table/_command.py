"""The command `fairprune select`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_fairprune.records.recall_history import printable, shortened
from lightning_fairprune.selection import Keep
from lightning_fairprune.table._record import TableSelection
from lightning_fairprune.table._select import RULES, select_table

OUT = "kept.parquet"
MOST_ROWS = 20
OPTIONS = ["quota", "recall", "keep", "seed", "by", "id", "label", "score", "group", "memory"]
OPTIONS += ["shrinkage", "floor"]


def main(argv: Sequence[str] | None = None) -> int:
    """Selects rows of a table, prints the number of each class and the path of their ids.

    Args:
        argv: arguments after ``fairprune select``; those of the process by default.

    Returns:
        0, or 1 if a package is missing.

    Raises:
        SystemExit: With status 2 and a message, if an argument or the table is wrong.
    """
    parser = _parser()
    given = parser.parse_args(argv)
    console, progress = Console(), Console(stderr=True)
    try:
        with _told(), progress.status("Reading the tables") as status:
            options = {name: getattr(given, name) for name in OPTIONS}
            chosen = select_table(
                given.tables,
                given.density,
                out=None if given.dry_run or given.print_sql else given.out,
                on_step=lambda words: status.update(Text(words)),
                **options,
            )
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename or given.out}: {error.strerror or error}.")
    if given.print_sql:
        print(chosen.sql, end="")
        return 0
    console.print(classes(chosen))
    last = (
        f"Nothing was written: {chosen.budget} of {chosen.num_samples} rows would be kept"
        if chosen.path is None
        else f"Written: {chosen.path}, {chosen.budget} of {chosen.num_samples} rows, "
        f"and {chosen.path.with_suffix('.json').name} beside it"
    )
    console.print(f"\n{last}", highlight=False, soft_wrap=True, markup=False)
    return 0


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Prints warnings as sentences, without the lines of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"Warning: {message}", file=sys.stderr)
        yield


def classes(chosen: TableSelection) -> Table:
    """Returns a table of all classes, or of those with the lowest and highest densities."""
    table = Table(
        title=Text(f"Rows kept: quota {chosen.rule}, {chosen.keep}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("class", overflow="fold")
    for heading in ("size", "recall", "kept", "density"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows, half = chosen.rows(), MOST_ROWS // 2
    many = len(rows) > MOST_ROWS
    if many:  # the lowest densities first
        rows.sort(key=lambda row: 0 if row[3] is None else row[3] / row[1])
    for i, (name, size, recall, kept) in enumerate([*rows[:half], *rows[-half:]] if many else rows):
        if many and i == half:
            table.add_row(Text(f"{len(rows) - MOST_ROWS} more", style="dim"))
        table.add_row(
            Text(printable(shortened(name))),
            str(size),
            "" if recall is None else f"{recall:.3f}",
            "" if kept is None else str(kept),
            "" if kept is None else f"{kept / size:.3f}",
        )
    table.add_section()
    total = int(chosen.sizes.sum())
    table.add_row("all", str(total), "", str(chosen.budget), f"{chosen.budget / total:.3f}")
    return table


def _shrinkage(text: str) -> float | str:
    return text if text == "auto" else float(text)


_shrinkage.__name__ = "shrinkage"  # argparse names it where it cannot read a value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairprune select",
        description="Choose the rows of a table to train on, by class: Parquet or CSV files, also such "
        "that do not fit into memory.",
    )
    parser.add_argument(
        "tables", nargs="+", metavar="TABLE", help=".parquet or .csv file, or a glob in quotes"
    )
    parser.add_argument("--density", type=float, required=True, help="fraction of the rows to keep")
    parser.add_argument(
        "--quota",
        choices=RULES,
        default="drop",
        help="rows per class: drop and drop_reference follow recalls, none lets the order decide "
        "across classes (%(default)s)",
    )
    parser.add_argument(
        "--recall",
        type=Path,
        metavar="FILE|RUN",
        help="recall of each class: CSV file with the columns of the class and recall, or the folder of "
        "a run with RecallMonitor",
    )
    parser.add_argument(
        "--keep",
        choices=get_args(Keep),
        default="random",
        help="which rows of a class (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random order (%(default)s)")
    parser.add_argument(
        "--by",
        choices=("label", "group"),
        default="label",
        help="what the classes are; group: each pair of label and group (%(default)s)",
    )
    for role in ("id", "label", "score", "group"):
        parser.add_argument(
            f"--{role}", default=role, metavar="COLUMN", help=f"column of the {role} (%(default)s)"
        )
    parser.add_argument(
        "--memory",
        default="2GiB",
        help="memory to use; what does not fit goes to disk, beside the output (%(default)s)",
    )
    parser.add_argument(
        "--shrinkage",
        type=_shrinkage,
        default="auto",
        help="how far recalls of a run, or with a column support, are pulled to the mean: auto, as far as "
        "noise explains their differences, or a number of pseudo-samples (%(default)s)",
    )
    parser.add_argument(
        "--floor",
        type=int,
        default=0,
        help="rows that every class keeps at least, or all of a smaller class (%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(OUT),
        help="Parquet file for the ids; its summary goes beside it (%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the quotas and write nothing")
    parser.add_argument(
        "--print-sql",
        action="store_true",
        help="print the selection as one query on my_table, for other databases, and write nothing",
    )
    return parser
