"""The comparison as CSV, in fractions, and as Markdown, in percent."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

import torch

from lightning_fairprune import recalls
from lightning_fairprune.report._compare import Comparison, Setting
from lightning_fairprune.report._labels import LabelsOfRun
from lightning_fairprune.report._offsets import gains
from lightning_fairprune.report._tables import (
    MEASURES,
    first_classes,
    offsets_table,
    rows,
    settings_table,
)
from lightning_fairprune.report._words import certified, compared_with, percent, verdict

MOST_CLASSES = 10  # of a setting in the Markdown file
# Names of classes that start so are marked as text, as a spreadsheet would evaluate them.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?")


def summary_csv(comparison: Comparison) -> str:
    """Returns a row per setting, the reference first, with t intervals over runs."""
    head = ["setting", "role", "seeds", "worst_class", "alpha_label"]
    head += [f"{m.name}{end}" for m in MEASURES for end in ("", "_low", "_high")]
    table: list[list[object]] = []
    for row in rows(comparison):
        role = "reference" if row.is_reference else "setting"
        table.append([row.label, role, row.runs, row.weakest, row.alpha_label])
        for found in (row.summaries.get(m.name) for m in MEASURES):
            table[-1] += ["", "", ""] if found is None else [found.mean, found.low, found.high]
    return _csv(head, table)


def runs_csv(comparison: Comparison) -> str:
    names = [m.name for m in MEASURES]
    head = ["setting", "run", "seed", "epoch", "step", "compared_with", "worst_class", "accuracy"]
    table: list[Sequence[object]] = []
    for setting in comparison.settings:
        for m, run in enumerate(setting.runs):
            last = run.history.last(comparison.data)
            weakest = int(setting.recall[m].nan_to_num(torch.inf).argmin())
            chosen = None if run.record is None else run.record.selection
            table.append(
                [setting.label, run.path.as_posix(), run.seed, last.epoch, last.step]
                + [setting.pairing, comparison.class_names[weakest], last.counts.accuracy]
                + [float(setting.values[name][m]) for name in names]
                + ([None, None] if chosen is None else [len(chosen), chosen.num_samples])
                + [" ".join(run.trainings)]
            )
    return _csv([*head, *names, "kept", "num_samples", "training"], table)


def classes_csv(comparison: Comparison) -> str:
    head = ["setting", "run", "seed", "class_index", "class", "support", "recall_before", "recall"]
    head += ["change", "retention", "adjusted_change", "intensification", "size", "kept", "density"]
    table: list[Sequence[object]] = []
    for setting in comparison.settings:
        before = setting.recall * torch.nan if setting.before is None else setting.before
        change, retention = recalls.change, recalls.retention
        found = (change, retention, recalls.adjusted_change, recalls.class_intensification)
        compared = [function(setting.recall, before) for function in found]
        counted = [setting.sizes, setting.kept, setting.kept / setting.sizes]
        columns = torch.stack([before, setting.recall, *compared, *counted], -1).tolist()
        support = setting.support.tolist()
        for m, run in enumerate(setting.runs):
            place = [setting.label, run.path.as_posix(), run.seed]
            for k, name in enumerate(comparison.class_names):
                table.append([*place, k, name, support[m][k], *columns[m][k]])
    return _csv(head, table)


def markdown(comparison: Comparison, labels: Sequence[LabelsOfRun] = ()) -> str:
    """Returns verdict, settings, the classes with the largest losses, and those whose labels look wrong."""
    table = settings_table(comparison)
    cells = [[row, *(f"{c.text} {c.small}".strip() for c in line)] for row, line in table.rows]
    parts = [
        f"# Recall on `{_md(comparison.data)}`",
        "\n".join(f"- {_md(sentence)}" for sentence in verdict(comparison)),
        _md(compared_with(comparison)),
        *(
            ["\n".join(f"- {_md(s)}" for s in certified(comparison))]
            if comparison.certificates
            else []
        ),
        _table(table.head, cells),
    ]
    parts += [_classes(comparison, setting) for setting in comparison.settings]
    for one in labels:
        found = "".join(f"\n- {_md(f'{k.name}: {k.about}')}" for k in one.classes)
        parts.append(
            f"## Labels: {_md(one.setting)}\n\n{_md(one.about)}" + (found and f"\n{found}")
        )
    if gained := gains(comparison):
        table = offsets_table(comparison, gained)
        lines = [[row, *(f"{c.text} {c.small}".strip() for c in line)] for row, line in table.rows]
        sentences = "\n".join(f"- {_md(one.sentence)}" for one in gained)
        parts.append(
            f"## Threshold or representation\n\n{_table(table.head, lines)}\n\n{sentences}"
        )
    if comparison.notes:
        parts.append("\n".join(f"- {_md(note)}" for note in comparison.notes))
    parts.append(
        f"Recalls in percent, mean over the runs; ± {percent(comparison.level)} t interval. α: > or < 1 at "
        "99 %."
    )
    return "\n\n".join(parts) + "\n"


def _classes(comparison: Comparison, setting: Setting) -> str:
    lines = first_classes(comparison, setting, MOST_CLASSES)
    rest = len(setting.order) - len(lines)
    more = f"\n\n{rest} more classes in classes.csv." if rest else ""
    table = _table(list(lines[0]), [list(line.values()) for line in lines])
    return f"## {_md(setting.label)}\n\n{table}{more}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_md(c) for c in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Returns text on one line, escaped for Markdown."""
    return re.sub(r"([\\`*_\[\]<|])", r"\\\1", " ".join(text.split()))


def _csv(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in body)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return "" if value is None else value
