"""The command `fairprune`: LightningCLI, selection on tables, report, experiments and demonstration."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

__all__ = ["main"]

# The order of --help. All but the last five are LightningCLI's.
COMMANDS = {
    "fit": "train a LightningModule, with DataPruning among trainer.callbacks",
    "validate": "run one validation",
    "test": "run one test",
    "predict": "run inference",
    "select": "choose the rows of a table to train on, by class, by SQL on Parquet or CSV files",
    "report": "compare trained models class by class: a page, figures and tables",
    "check": "say whether runs with quotas did better than others on the same samples",
    "experiment": "train a grid of methods, densities and seeds, resumably, and compare their classes",
    "demo": "compare five ways to choose training data, on images that come with scikit-learn",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    ``fit``, ``validate``, ``test`` and ``predict`` are those of
    :class:`lightning.pytorch.cli.LightningCLI` for any model and data module given by class path.
    Modules in the working directory can be imported, and the classes of this package have short names:
    ``DataPruning``, ``RecallMonitor``, ``ClassWeighting``, ``FairPruneDataModule``.

    Args:
        argv: the arguments, without the name of the program; those of the process by default.

    Raises:
        SystemExit: With status 2, if an argument is wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["demo"]:
        from lightning_fairprune import demo

        return demo.main(arguments[1:])
    if arguments[:1] == ["experiment"]:
        from lightning_fairprune import experiments

        return experiments.main(arguments[1:])
    if arguments[:1] == ["check"]:
        from lightning_fairprune import report

        return report.check_main(arguments[1:])
    if arguments[:1] == ["report"]:
        from lightning_fairprune import report

        return report.main(arguments[1:])
    if arguments[:1] == ["select"]:
        from lightning_fairprune import table

        return table.main(arguments[1:])
    # LightningCLI allows options before the command: fairprune --config common.yaml fit
    if any(name in arguments for name in COMMANDS):
        _lightning(arguments)
        return 0
    parser = _parser()
    parser.parse_args(arguments)
    parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    """Returns the parser for arguments without a command: help, version and mistakes."""
    from lightning_fairprune import __version__

    parser = argparse.ArgumentParser(
        prog="fairprune",
        description="Train on less data without the worst class paying for it.",
        epilog="fairprune COMMAND --help lists the options of a command; "
        "fairprune fit --print_config prints a configuration to start from.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, does in COMMANDS.items():
        commands.add_parser(name, help=does)
    return parser


def _lightning(arguments: list[str]) -> None:
    from lightning.pytorch.cli import LightningCLI

    # Imported classes have short names.
    import lightning_fairprune._loading.wrapper
    import lightning_fairprune.callbacks  # noqa: F401

    # A console script, unlike `python -m`, cannot import from the working directory.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    before = sys.argv
    # LightningCLI reads arguments and program name there.
    sys.argv = ["fairprune", *arguments]
    try:
        with warnings.catch_warnings():
            # jsonargparse would write this warning into config.yaml in place of the value; after an
            # error it tries the next type.
            warnings.filterwarnings("error", message=r"\s*Unable to serialize instance")
            LightningCLI(seed_everything_default=0)
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
