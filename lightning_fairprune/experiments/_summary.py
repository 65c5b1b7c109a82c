"""What is written when the cells of an experiment are done: tables, claims, figures, report pages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from lightning_fairprune._files import write_whole
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._claim import markdown
from lightning_fairprune.experiments._claims import claims_of
from lightning_fairprune.experiments._figure import curves, sparsity_curves
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._results import Row, rows_of, write_parquet
from lightning_fairprune.experiments._store import Store
from lightning_fairprune.experiments._train import RUN


def summarise(
    experiment: Experiment,
    store: Store,
    cells: Sequence[Cell],
    tables: Sequence[Path],
    console: Console,
) -> list[Path]:
    """Writes everything that is made from the results, and says where it is."""
    rows = rows_of(store, cells)
    if not rows:
        return []
    files, notes = list(tables), []
    if parquet := write_parquet(rows, store.out):
        files.append(parquet)
    else:
        install = 'pip install "lightning-fairprune[parquet]"'
        notes.append(f"No results.parquet without pyarrow: {install}.")
    claims = store.out / "claims.md"
    text = markdown(claims_of(experiment, rows), experiment.name)
    write_whole(claims, partial(Path.write_text, data=text))
    files.append(claims)
    try:
        with console.status("Drawing"):
            files += [*_figures(rows, store.out), *_reports(store, cells)]
    except ImportError:
        notes.append(
            'No figure and no report pages without matplotlib and scipy: pip install "lightning-fairprune[report]".'
        )
    for text in ("Written: " + ", ".join(map(str, files)), *notes):
        console.print(text)
    return files


def _figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    drawn = {}
    if any(row.density < 1 for row in rows):
        drawn["densities.png"] = curves(rows)
    if any(row.sparsity for row in rows):
        drawn["sparsities.png"] = sparsity_curves(rows)
    for name, figure in drawn.items():
        write_whole(folder / name, partial(figure.savefig, format="png", dpi=150))
    return [folder / name for name in drawn]


def _reports(store: Store, cells: Sequence[Cell]) -> list[Path]:
    """Writes the page of each density and sparsity, against the models on all the data."""
    from lightning_fairprune.report import report  # no worker needs it

    finished = [cell for cell in cells if cell.in_table and store.result(cell)]
    full = [cell for cell in finished if cell.kind == "baseline"]
    first = [cell for cell in full if cell.name == full[0].name]
    others = [cell for cell in full if cell not in first]
    shown: dict[str, list[Cell]] = {}
    for cell in sorted(finished, key=lambda cell: (-cell.density, cell.sparsity)):
        if cell.density < 1:
            shown.setdefault(f"density{cell.density:g}", list(others)).append(cell)
        if cell.sparsity:
            shown.setdefault(f"sparsity{cell.sparsity:g}", []).append(cell)
    reference = [str(store.folder(cell) / RUN) for cell in first]
    for name, methods in shown.items():
        runs = [f"{cell.name}={store.folder(cell) / RUN}" for cell in methods]
        report(runs, reference or None, store.out / "report" / name, data="test")
    return [store.out / "report" / name / "index.html" for name in shown]
