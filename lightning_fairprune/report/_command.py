"""The command `fairprune report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightning_fairprune.report._build import OUT, prepare, require_extras, write
from lightning_fairprune.report._json import json_text
from lightning_fairprune.report._terminal import tables


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report, prints its tables and the path of the page, or with ``--json`` its numbers.

    Args:
        argv: arguments after ``fairprune report``; those of the process by default.

    Returns:
        0, or 1 if a package is missing.

    Raises:
        SystemExit: With status 2 and a message, if an argument is wrong.
    """
    parser = _parser()
    given = parser.parse_args(argv)
    console = Console()
    try:
        require_extras()
        comparison, dataset = prepare(
            given.runs, given.reference, given.out, given.data, given.level, given.dataset
        )
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename or given.out}: {error.strerror or error}.")
    if given.json:
        print(json_text(comparison))
    else:
        console.print(tables(comparison))
    try:
        files = write(comparison, dataset, given.out, None if given.json else console)
    except OSError as error:
        parser.error(f"--out {given.out} cannot be written to: {error.strerror or error}.")
    if given.json:
        return 0
    last = f"\nWritten: {files[0]} and {len(files) - 1} files beside it"
    console.print(last, highlight=False, soft_wrap=True, markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairprune report",
        description="Compare the recalls of trained models class by class: a page, figures and tables "
        "on who pays for pruning.",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a logger (lightning_logs/version_0) that RecallMonitor wrote to, or a folder with "
        "such folders below; NAME=PATH names its setting",
    )
    add(
        "--reference",
        action="append",
        metavar="RUN",
        help="what distortion is relative to: a run, or a folder with its seeds (the reference that the "
        "runs have kept)",
    )
    add("--data", help="evaluation to compare: test, val, val/1 (test, else val, if all have it)")
    add("--out", type=Path, default=Path(OUT), help="folder for the files (%(default)s)")
    add("--level", type=float, default=0.95, help="level of intervals and bounds (%(default)s)")
    add("--json", action="store_true", help="print the numbers as JSON instead of tables")
    add(
        "--dataset",
        metavar="MODULE:NAME",
        help="training set, or a function that returns it, to show examples of what was kept and "
        "dropped; the working directory can be imported from",
    )
    return parser
