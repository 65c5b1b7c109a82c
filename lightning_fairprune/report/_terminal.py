"""The comparison on a terminal of 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_fairprune.records.recall_history import shortened
from lightning_fairprune.report._compare import Comparison
from lightning_fairprune.report._tables import first_classes, settings_table
from lightning_fairprune.report._words import NOTHING, certified, compared_with, verdict

MOST_ROWS, MOST_CLASSES, MOST_CERTIFICATES = 20, 5, 5
SHOWN = ("average", "worst", "gap", "std", "alpha", "density")


def tables(comparison: Comparison) -> RenderableType:
    """Returns verdict, table of settings and table of the classes with the largest losses."""
    parts: list[RenderableType] = [
        *(Text(sentence, style="bold") for sentence in verdict(comparison)),
        Text(compared_with(comparison), style="dim"),
        *map(Text, certified(comparison, MOST_CERTIFICATES)),
        Text(),
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
    numbers = ["before", "after", "change", "density"] if lost else ["after", "density"]
    table = _table("Classes that lost most" if lost else "Classes with the lowest recall")
    for name in ("setting", "class"):
        table.add_column(name, overflow="fold")
    for name in numbers:
        heading = name if lost or name == "density" else "recall"
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for setting in comparison.settings[:MOST_ROWS]:
        for i, line in enumerate(first_classes(comparison, setting, MOST_CLASSES)):
            table.add_row(
                Text("" if i else setting.label),
                Text(shortened(line["class"])),
                *(line[name] for name in numbers),
                "" if line["significant"] == NOTHING else "significant",
            )
        table.add_section()
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
