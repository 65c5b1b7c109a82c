"""The sections of the page as HTML; an empty one is left out by the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from lightning_fairprune import recalls
from lightning_fairprune.report._compare import LABEL_LEVEL, RATE, Comparison, Group
from lightning_fairprune.report._draw import Picture
from lightning_fairprune.report._html import cell, details, figure, paragraph, table
from lightning_fairprune.report._read import Run
from lightning_fairprune.report._rows import measured, rows
from lightning_fairprune.report._settings import configuration, differences, shown
from lightning_fairprune.report._words import (
    listed,
    marks,
    percent,
    points,
    ratio,
    signed,
)
from lightning_fairprune.statistics import half_widths

Pictures = Sequence[Picture]

MANY = 15  # classes, above which the table scrolls in its box
MOST_TEXT = 20_000  # characters of a file


def settings(comparison: Comparison) -> str:
    """The table of settings."""
    told = measured(comparison)
    head = ["setting", "runs", *(m.heading for m in told), "worst class"]
    lines = []
    for row in rows(comparison):
        cells = [cell(str(row.runs)), *(cell(*row.cell(m)) for m in told)]
        lines.append((row.label, [*cells, cell(row.weakest, kind="text")]))
    several = any(len(group.runs) > 1 for group in comparison.groups)
    spread = (
        f" Small: half of the {percent(comparison.level)} t interval over the runs."
        if several
        else ""
    )
    caption = f"Recalls in percent, mean over the runs.{spread}"
    return table("Settings", head, lines, text=["worst class"]) + paragraph(caption, "soft")


def classes(comparison: Comparison, pictures: Pictures) -> str:
    """Recall of each class: figure and table for each setting."""
    parts = []
    for i, group in enumerate(comparison.groups):
        parts.append(f"<h3>{escape(group.label)}</h3>\n")
        parts += _figures(pictures, "recall_by_class", i)
        parts.append(_findings(comparison, group))
        parts.append(details("All classes as a table", _class_table(comparison, group)))
    return "".join(parts)


def by_group(comparison: Comparison, pictures: Pictures, names: Sequence[str]) -> str:
    """The figures of some kinds, setting by setting."""
    parts = []
    for i, group in enumerate(comparison.groups):
        found = [text for name in names for text in _figures(pictures, name, i)]
        if found:
            parts += [f"<h3>{escape(group.label)}</h3>\n", *found]
    return "".join(parts)


def over_epochs(pictures: Pictures) -> str:
    """The curves."""
    return "".join(_figures(pictures, "recalls_over_epochs", None))


def configurations(comparison: Comparison) -> str:
    """What differs between settings, and the files of every run."""
    groups = comparison.groups
    known = [configuration(group.runs[0]) for group in groups]
    keys = differences(known)
    parts = []
    if keys:
        lines = [(key, [cell(shown(c.get(key, "–")), kind="text") for c in known]) for key in keys]
        head = ["differs", *(group.label for group in groups)]
        many = "tall" if len(keys) > MANY else ""
        parts.append(table("Settings that differ", head, lines, many, text=head))
    everything = [(group.label, run) for group in groups for run in group.runs]
    if comparison.reference is not None:
        everything = [("reference", run) for run in comparison.reference.runs] + everything
    parts += [details(f"{label}: {run.path.as_posix()}", _files(run)) for label, run in everything]
    return "".join(parts)


def glossary(comparison: Comparison) -> str:
    """How to read the page."""
    entries: dict[str, str] = {
        "recall": "The share of the samples of a class that the model gets right. The average counts "
        "every class alike; classes without samples are left out. Worst is the class with the lowest "
        "recall in each run, gap the highest minus the lowest, std the standard deviation over classes.",
    }
    if comparison.reference is not None:
        entries["change"] = (
            "Recall minus that of the reference, in points. Adjusted takes off what the average "
            "changed; max disparity is how much more the class that lost most lost than the average. "
            "Intervals do not hold the spread of a mean that is compared with."
        )
        entries["α (intensification)"] = (
            "How much wider the recalls lie around their average than in the reference: above 1 "
            f"pruning widens the differences between classes. > and < mean that the {percent(LABEL_LEVEL)} "
            "interval lies on that side of 1, ? that it does not. I is the same for one class; below "
            "0 it changed sides."
        )
    if any(group.test is not None for group in comparison.groups):
        entries["significant"] = (
            "Lost or gained relative to the average: Welch's test of recall minus average, runs against "
            f"reference runs, with false discoveries held at {percent(RATE)} (Benjamini-Hochberg). A class "
            "that is not marked may still have changed: a few runs tell little."
        )
    if any(run.record is not None for run in comparison.runs):
        entries["density"] = "The share of the training samples that was kept last."
    pairs = "".join(f"<dt>{escape(k)}</dt>\n<dd>{escape(v)}</dd>\n" for k, v in entries.items())
    return f"<dl>\n{pairs}</dl>\n"


def _figures(pictures: Pictures, section: str, group: int | None) -> list[str]:
    return [figure(p) for p in pictures if p.plan.section == section and p.plan.group == group]


def _findings(comparison: Comparison, group: Group) -> str:
    if group.test is None:
        return ""
    found = marks(group)
    names = {
        kind: [comparison.class_names[k] for k in group.order.tolist() if found.get(k) == kind]
        for kind in ("lost", "gained")
    }
    if not found:
        return paragraph("No class changed significantly relative to the average.", "soft")
    told = [f"{kind}: {listed(several)}" for kind, several in names.items() if several]
    return paragraph(f"Changed significantly relative to the average - {'; '.join(told)}.", "soft")


def _class_table(comparison: Comparison, group: Group) -> str:
    compared, pruned = group.before is not None, bool((~group.sizes.isnan()).any())
    head = ["class", *(["before"] if compared else []), "after" if compared else "recall"]
    head += ["change", "retention", "adjusted", "I"] if compared else []
    head += ["samples"] + (["size", "kept", "density"] if pruned else [])
    columns = _columns(comparison, group)
    if not compared:
        columns = {name: columns[name] for name in columns if name not in _COMPARED}
    if not pruned:
        columns = {name: columns[name] for name in columns if name not in _PRUNED}
    marked = marks(group)
    lines = []
    for k in group.order.tolist():
        cells = [
            cell(values[k][0], values[k][1], marked.get(k, "") if name == "adjusted" else "")
            for name, values in columns.items()
        ]
        lines.append((comparison.class_names[k], cells))
    many = "tall" if len(lines) > MANY else ""
    return table(f"Classes with {group.label}", head, lines, many)


_COMPARED = ("before", "change", "retention", "adjusted", "I")
_PRUNED = ("size", "kept", "density")


def _columns(comparison: Comparison, group: Group) -> Mapping[str, list[tuple[str, str]]]:
    """Returns the text, and the small print, of each class in each column."""
    before, after = group.mean_before, group.mean
    changes = group.change
    adjusted = recalls.adjusted_change(after, before)
    # Of the means: a ratio of two small differences scatters too much to be averaged over runs.
    widths = [half_widths(values, comparison.level).tolist() for values in (group.recall, changes)]
    spread = [["" if w != w else f"±{points(w)}" for w in width] for width in widths]
    marked = marks(group)
    said = [marked.get(k, "") for k in range(len(after))]
    support = group.support.double().mean(0).tolist()
    sizes, kept = group.sizes.nanmean(0).tolist(), group.kept.nanmean(0).tolist()
    none = [""] * len(after)
    columns = {
        "before": (map(points, before.tolist()), none),
        "after": (map(points, after.tolist()), spread[0]),
        "change": (map(signed, changes.nanmean(0).tolist()), spread[1]),
        "retention": (map(points, recalls.retention(after, before).tolist()), none),
        "adjusted": (map(signed, adjusted.tolist()), said),
        "I": (map(ratio, recalls.class_intensification(after, before).tolist()), none),
        "samples": (map(_whole, support), none),
        "size": (map(_whole, sizes), none),
        "kept": (map(_whole, kept), none),
        "density": (map(points, group.density.tolist()), none),
    }
    return {name: list(zip(texts, small, strict=True)) for name, (texts, small) in columns.items()}


def _whole(value: float) -> str:
    return "–" if value != value else f"{value:,.0f}"


def _files(run: Run) -> str:
    texts = {}
    if run.record is not None:
        lines = [f"{key}: {value}" for key, value in run.record.settings.items()]
        texts["pruning"] = "\n".join(lines)
    if run.sparsity is not None:
        lines = [f"{key}: {value}" for key, value in run.sparsity.settings.items()]
        texts["weight pruning"] = "\n".join(lines)
    texts |= run.texts
    parts = []
    for name, text in texts.items():
        cut = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "\n... cut off here"
        parts.append(f"{paragraph(name, 'soft')}<pre>{escape(cut.strip())}</pre>\n")
    return "".join(parts) or paragraph("There is no hparams.yaml nor config.yaml.", "soft")
