"""The page: one file that needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lightning_fairprune.report import _sections, _sparsity
from lightning_fairprune.report._compare import Comparison
from lightning_fairprune.report._draw import Picture
from lightning_fairprune.report._html import paragraph
from lightning_fairprune.report._style import STYLE
from lightning_fairprune.report._words import compared_with, verdict

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    comparison: Comparison, pictures: Sequence[Picture], thumbnails: str = "", layers: str = ""
) -> str:
    """Returns the page.

    Args:
        comparison: what it is about.
        pictures: its figures.
        thumbnails: HTML of the examples; none without a data set.
        layers: HTML on what the layers compute; none where nobody compared them.
    """
    over = _sections.by_group
    sections = {
        "Settings": _sections.settings(comparison),
        "Recall of each class": _sections.classes(comparison, pictures),
        "Density against recall": over(comparison, pictures, ["density_against_recall"]),
        "Over the epochs": _sections.over_epochs(pictures),
        "Sparsity": _sparsity.section(comparison, pictures),
        "What was kept": over(comparison, pictures, ["kept_by_class", "quotas_over_time"]),
        "Examples": thumbnails,
        "Intensification": over(comparison, pictures, ["intensification"]),
        "What the layers compute": layers,
        "How to read this page": _sections.glossary(comparison),
        "Configuration": _sections.configurations(comparison),
    }
    title = f"Recall of each class on {comparison.data}"
    filled = {name: content for name, content in sections.items() if content}
    links = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>\n' for name in filled)
    body = "".join(
        f'<section>\n<h2 id="{_anchor(name)}">{escape(name)}</h2>\n{content}</section>\n'
        for name, content in filled.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{_verdict(comparison)}"
        f"{paragraph(_about(comparison), 'soft')}{_notes(comparison)}</header>\n"
        f'<nav aria-label="Sections">\n<ul>\n{links}</ul>\n</nav>\n<main>\n{body}</main>\n'
        "</body>\n</html>\n"
    )


def _verdict(comparison: Comparison) -> str:
    sentences = verdict(comparison)
    if len(sentences) == 1:
        return paragraph(sentences[0], "verdict")
    lines = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences)
    return f'<ul class="verdict">\n{lines}</ul>\n'


def _about(comparison: Comparison) -> str:
    runs, groups = len(comparison.runs), len(comparison.groups)
    classes = f"{len(comparison.class_names):,} classes"
    what = f"{runs} {'runs' if runs > 1 else 'run'} of {groups} {'settings' if groups > 1 else 'setting'}"
    return f"{what}, {classes}, the last evaluation of each. {compared_with(comparison)}"


def _notes(comparison: Comparison) -> str:
    lines = "".join(f"<li>{escape(note)}</li>\n" for note in comparison.notes)
    return f'<ul class="notes">\n{lines}</ul>\n' if lines else ""


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
