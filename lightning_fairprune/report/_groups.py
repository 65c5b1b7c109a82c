"""Groups that a fit discovered, in words."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_fairprune.figures.words import in_percent
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.recall_history import printable


def discovered(record: PruningRecord, class_names: Sequence[str] | None) -> dict[int, str]:
    """Returns the groups of the classes that were split, in words, by their number; the worst learnt of a class last.

    The recalls are those that the last quotas follow from, of the validation data.
    """
    if record.group_class is None:
        return {}
    of = record.group_class.tolist()
    recall = record.history[-1].recall if record.history else None
    found = {}
    for group, label in enumerate(of):
        parts = of.count(label)
        if parts < 2:
            continue
        known = () if class_names is None else class_names
        name = printable(known[label]) if label < len(known) else f"class {label}"
        place = group - of.index(label) + 1
        kept, size = int(record.selection.quota[group]), int(record.selection.sizes[group])
        text = f"{name}, group {place} of {parts}: {kept:,} of {size:,} samples kept"
        if recall is not None and group < len(recall) and not bool(recall[group].isnan()):
            text += f", recall {in_percent(float(recall[group]))} %"
        found[group] = text
    return found
