"""The command `fairprune demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightning_fairprune.demo import _digits, _runs
from lightning_fairprune.demo._report import terminal_table, write

SECONDS = 3  # of a run, measured

NEXT = """\
Next: put two lines into your own training, as in examples/01_two_lines.py, or start from YAML with
`fairprune fit --help`. All settings of the callback: python -m pydoc lightning_fairprune.DataPruning"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration, prints the table and the paths of the files.

    Args:
        argv: arguments after ``fairprune demo``; those of the process by default.

    Returns:
        0, or 1 if a package is missing.

    Raises:
        SystemExit: With status 2 and a message, if an argument is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="fairprune demo",
        description="Train a small network on handwritten digits, the hardest digits rarest, with five "
        "ways to choose the training data, and compare what each costs the weakest class. Takes about "
        "a minute on two cores; needs no download.",
    )
    for name, default, text in (
        ("--density", 0.3, "fraction of the training images to keep"),
        ("--seeds", 3, "runs of each method; 1 is quick, 10 is telling"),
        ("--out", Path("fairprune-demo"), "folder for the files"),
    ):
        parser.add_argument(name, type=type(default), default=default, help=f"{text} (%(default)s)")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        _runs.require_extras()
        arguments.out.mkdir(parents=True, exist_ok=True)  # now, rather than after a minute of work
        _runs.check(arguments.density, arguments.seeds, list(_runs.METHODS), _runs.STEPS)
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        parser.error(f"--out {arguments.out} cannot be written to: {error.strerror}.")
    except ValueError as error:
        parser.error(str(error))
    console.print(_introduction(arguments.density, arguments.seeds), highlight=False)
    records = _runs.run(arguments.density, arguments.seeds, steps=_runs.STEPS, console=console)
    files = write(records, arguments.out)
    console.print(terminal_table(records))
    console.print(_explanation(arguments.seeds), highlight=False)
    console.print("\nWritten: " + ", ".join(map(str, files)), highlight=False, soft_wrap=True)
    console.print(NEXT, highlight=False, soft_wrap=True)
    return 0


def _introduction(density: float, seeds: int) -> str:
    sizes, order = _digits.train_sizes(), _digits.load()[2]
    easy, hard = int(order[0]), int(order[-1])
    return (
        f"Handwritten digits, {_digits.NUM_TRAIN} training images: {int(sizes[easy])} of the digit {easy}, the "
        f"easiest for a linear classifier, down to {int(sizes[hard])} of the digit {hard}, the hardest. "
        f"{len(_runs.METHODS)} methods, {seeds} {'seeds' if seeds > 1 else 'seed'}, density {density:g}; "
        f"about {SECONDS * len(_runs.METHODS) * seeds:.0f} seconds on two free cores.\n"
    )


def _explanation(seeds: int) -> str:
    brackets = "Mean over the seeds, lowest and highest below it. " if seeds > 1 else ""
    images, val = len(_digits.load()[1]), _digits.NUM_CLASSES * _digits.NUM_VAL
    test = images - val - _digits.NUM_CLASSES * int(_digits.train_sizes().max())
    return (
        f"{brackets}Every run takes {_runs.STEPS} steps of {_digits.BATCH} images, those of the "
        f"{_runs.WARMUP_EPOCHS} warm-up epochs on all the data included, so no method sees more than "
        f"another; full data simply continues. Afterwards a fresh subset is drawn every epoch (EL2N always "
        f"keeps the hardest). Quotas read the recalls of {val} validation images; the "
        f"table is about {test} others."
    )
