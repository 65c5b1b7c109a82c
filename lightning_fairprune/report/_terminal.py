"""The comparison on a terminal of 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_fairprune.report._compare import Comparison, Setting
from lightning_fairprune.report._tables import settings_table
from lightning_fairprune.report._words import (
    compared_with,
    marks,
    points,
    signed,
    verdict,
)

MOST_ROWS, MOST_CLASSES = 20, 5
SHOWN = ("average", "worst", "gap", "std", "alpha", "density")


def tables(comparison: Comparison) -> RenderableType:
    """Returns verdict, table of settings and table of the classes that lost most."""
    parts: list[RenderableType] = [
        *(Text(sentence, style="bold") for sentence in verdict(comparison)),
        Text(compared_with(comparison) + "\n", style="dim"),
        _settings(comparison),
        Text(),
        _classes(comparison),
    ]
    parts += [Text(f"Note: {note}", style="dim") for note in comparison.notes]
    return Group(*parts)


def _settings(comparison: Comparison) -> Table:
    table = _table(f"Recall on {comparison.data}, percent")
    given = settings_table(comparison, SHOWN)
    for name in given.head:
        if name in ("setting", *given.text):
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for label, cells in given.rows[:MOST_ROWS]:
        small = [f"\n{cell.small}" if cell.small else "" for cell in cells]
        texts = [Text.assemble(c.text, (s, "dim")) for c, s in zip(cells, small, strict=True)]
        table.add_row(Text(label), *texts)
    if len(given.rows) > MOST_ROWS:
        table.add_row(Text(f"{len(given.rows) - MOST_ROWS} more in summary.csv", style="dim"))
    return table


def _classes(comparison: Comparison) -> Table:
    lost = comparison.reference is not None
    table = _table("Classes that lost most" if lost else "Classes with the lowest recall")
    table.add_column("setting", overflow="fold")
    table.add_column("class", overflow="fold")
    for heading in ("before", "after", "change") if lost else ("recall",):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("density", justify="right", no_wrap=True)
    table.add_column("")
    for setting in comparison.settings[:MOST_ROWS]:
        _add_classes(table, comparison, setting)
    return table


def _add_classes(table: Table, comparison: Comparison, setting: Setting) -> None:
    marked, change, lost = (
        marks(setting),
        setting.change.nanmean(0),
        comparison.reference is not None,
    )
    for i, k in enumerate(setting.order[:MOST_CLASSES].tolist()):
        recall = points(float(setting.mean[k]))
        before = points(float(setting.mean_before[k]))
        table.add_row(
            Text(setting.label if i == 0 else ""),
            Text(comparison.class_names[k]),
            *((before, recall, signed(float(change[k]))) if lost else (recall,)),
            points(float(setting.density[k])),
            Text("significant" if k in marked else ""),
        )
    table.add_section()


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
