"""The page: one file without network access and scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from lightning_fairprune.report import _sparsity, _tables, _words
from lightning_fairprune.report._compare import LABEL_LEVEL, RATE, Comparison
from lightning_fairprune.report._draw import Picture
from lightning_fairprune.report._examples import SettingExamples
from lightning_fairprune.report._labels import LabelsOfRun
from lightning_fairprune.report._offsets import gains
from lightning_fairprune.report._settings import texts_of
from lightning_fairprune.report._similarity import similarities


def page(
    comparison: Comparison,
    pictures: Sequence[Picture],
    thumbnails: Sequence[SettingExamples] = (),
    labels: Sequence[LabelsOfRun] = (),
) -> str:
    """Returns the page as HTML, rendered from `templates`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lightning_fairprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _words.percent, "data_uri": data_uri}
    template = environment.get_template("page.html.jinja")
    return template.render(
        comparison=comparison,
        pictures=pictures,
        thumbnails=thumbnails,
        label_notes=labels,
        sparsity_curves=_sparsity.collected(comparison),
        similarities=similarities(comparison),
        offsets=gains(comparison),
        words=_words,
        tables=_tables,
        texts_of=texts_of,
        levels={"label": LABEL_LEVEL, "rate": RATE},
    )


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
