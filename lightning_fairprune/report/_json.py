"""The comparison as JSON, in fractions."""

from __future__ import annotations

import json
import math

from lightning_fairprune.report._compare import Comparison
from lightning_fairprune.report._tables import MEASURES, rows
from lightning_fairprune.report._words import certified, verdict


def json_text(comparison: Comparison) -> str:
    """Returns settings and certificates as JSON, in fractions; null for what is not known."""
    settings = [
        {
            "setting": row.label,
            "role": "reference" if row.is_reference else "setting",
            "runs": row.runs,
            "worst_class": row.weakest,
            **{
                m.name: {"mean": _known(s.mean), "low": _known(s.low), "high": _known(s.high)}
                for m in MEASURES
                if (s := row.summaries.get(m.name)) is not None
            },
        }
        for row in rows(comparison)
    ]
    certificates = [
        {
            "setting": one.setting,
            "run": one.run.path.as_posix(),
            "reference": None if one.reference is None else one.reference.path.as_posix(),
            "sentence": sentence,
            "level": one.bounds.level,
            "no_class_lost_more_than": one.bounds.worst,
            "paired": one.bounds.paired,
            "classes": [
                {
                    "class": name,
                    "support": support,
                    "loss": _known(loss),
                    "lost_at_most": None if each is None else _known(each),
                }
                for name, support, loss, each in zip(
                    comparison.class_names,
                    one.bounds.support.tolist(),
                    one.bounds.loss.tolist(),
                    [None] * len(one.bounds.loss)
                    if one.bounds.each is None
                    else one.bounds.each.tolist(),
                    strict=True,
                )
            ],
        }
        for one, sentence in zip(comparison.certificates, certified(comparison), strict=True)
    ]
    content = {
        "data": comparison.data,
        "level": comparison.level,
        "verdict": verdict(comparison),
        "settings": settings,
        "certificates": certificates,
        "notes": comparison.notes,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
