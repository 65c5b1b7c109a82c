"""From the folders of runs to the files of a report."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lightning_fairprune._files import write_whole
from lightning_fairprune.report import _similarity, _sparsity
from lightning_fairprune.report._compare import Comparison, compare
from lightning_fairprune.report._draw import drawings, render
from lightning_fairprune.report._examples import check_dataset, examples_of, load_dataset
from lightning_fairprune.report._export import classes_csv, markdown, runs_csv, summary_csv
from lightning_fairprune.report._labels import labels_of
from lightning_fairprune.report._page import page
from lightning_fairprune.report._read import Paths, read

OUT = "fairprune-report"


def report(
    runs: Paths,
    reference: Paths | None = None,
    out: str | os.PathLike[str] = OUT,
    *,
    data: str | None = None,
    level: float = 0.95,
    dataset: Any = None,
    console: Console | None = None,
) -> Comparison:
    """Writes a page, figures and tables on the effect of pruning on each class.

    Args:
        runs: folders of loggers, such as ``"lightning_logs/version_0"``, or folders that contain them;
            ``"NAME=PATH"`` names their setting. Runs with the same name, or unnamed ones that differ only
            in the seed, are seeds of one setting.
        reference: likewise, the runs that distortion is relative to; None for the references saved in
            the runs.
        out: folder for the files, which is made if needed; files in it are replaced.
        data: the evaluation to compare, such as ``"test"`` or ``"val/1"``; None for the test, the
            validation, or the first that all runs have.
        level: of the t intervals over runs and of the bounds on losses, in (0, 1).
        dataset: the training set, to show samples that were kept and dropped: a map-style dataset or
            ``"package.module:name"``.
        console: for the progress bar; None shows none.

    Returns:
        The numbers in the files.

    Raises:
        FileNotFoundError: If a run has no recalls.
        ValueError: If the runs cannot be compared or a file is damaged.
        OSError: If `out` cannot be written to.
        ImportError: If jinja2, matplotlib or scipy is not installed.
    """
    require_extras()
    comparison, found = prepare(runs, reference, out, data, level, dataset)
    write(comparison, found, Path(out), console)
    return comparison


def require_extras() -> None:
    """Raises an ImportError before any work if a package is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the report needs jinja2, matplotlib and scipy, and {error.name} is not installed: "
            'pip install "lightning-fairprune[report]".'
        ) from error


def prepare(
    runs: Paths,
    reference: Paths | None,
    out: str | os.PathLike[str],
    data: str | None,
    level: float,
    dataset: Any,
) -> tuple[Comparison, Any]:
    """Returns comparison and data set and makes the folder, so that errors come before drawing."""
    others = [] if reference is None else read(reference)
    comparison = compare(read(runs), others, data=data, level=level)
    if dataset is not None:
        dataset = load_dataset(dataset) if isinstance(dataset, str) else dataset
        check_dataset(dataset, comparison)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"`out` {str(out)!r} cannot be written to: {error.strerror}.") from error
    return comparison, dataset


def write(
    comparison: Comparison, dataset: Any, folder: Path, console: Console | None
) -> list[Path]:
    """Writes all files and returns them, the page first."""
    planned = drawings(comparison)
    planned += _sparsity.drawings(comparison) + _similarity.drawings(comparison)
    columns = TextColumn("Drawing"), BarColumn(), MofNCompleteColumn()
    hidden = console is None or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        pictures = [render(drawing) for drawing in bar.track(planned)]
    thumbnails = [] if dataset is None else examples_of(comparison, dataset)
    labels = labels_of(comparison, dataset)
    contents = {f"{picture.drawing.name}.png": picture.file for picture in pictures}
    texts = {
        "summary.md": markdown(comparison, labels),
        "summary.csv": summary_csv(comparison),
        "classes.csv": classes_csv(comparison),
        "runs.csv": runs_csv(comparison),
        "index.html": page(comparison, pictures, thumbnails, labels),
    }
    contents |= {name: text.encode() for name, text in texts.items()}
    for name, content in contents.items():
        write_whole(folder / name, partial(Path.write_bytes, data=content))
    return [folder / name for name in reversed(contents)]
