"""Checks that runs can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.recall_history import is_of_groups, printable
from lightning_fairprune.report._groups import discovered
from lightning_fairprune.report._read import Run


def common_data(runs: Sequence[Run], asked: str | None) -> str:
    """Returns the name of the compared evaluation, or raises a ValueError unless all runs have it."""
    common = [name for name in runs[0].history.names if all(name in r.history.names for r in runs)]
    has = "; ".join(f"{_name(run)} has {', '.join(run.history.names) or 'none'}" for run in runs)
    if asked is not None and asked not in common:
        raise ValueError(f"all runs must have an evaluation of {asked!r}: {has}.")
    if not common:
        raise ValueError(f"the runs must share an evaluation: {has}.")
    odd = [name for name in common if printable(name) != name]
    if odd:
        raise ValueError(
            f"evaluations must have names that can be printed, got {odd[0]!r}: rename the loader."
        )
    data = asked or next((name for name in ("test", "val") if name in common), common[0])
    for run in runs:
        if not bool(run.history.last(data).counts.support.any()):
            raise ValueError(f"the last evaluation of {data!r} in {_name(run)} has no samples.")
    return data


def class_names(runs: Sequence[Run], data: str) -> tuple[str, ...] | None:
    """Returns the names of the classes, or None; raises a ValueError if classes or names differ."""
    first = runs[0]
    size = first.history.last(data).counts.num_classes
    for run in runs:
        other = run.history.last(data).counts.num_classes
        if other != size:
            raise ValueError(
                f"all runs must have the same classes: {_name(first)} has {size}, {_name(run)} {other}."
            )
        kept = run.history.reference.get(data)
        if kept is not None and kept.num_classes != size:
            raise ValueError(
                f"the reference kept in {_name(run)} must have its {size} classes, got "
                f"{kept.num_classes}."
            )
    named = [(run, names) for run in runs if (names := run.history.names_of(data)) is not None]
    for run, names in named:
        for k, (expected, found) in enumerate(zip(named[0][1], names, strict=True)):
            if expected != found:
                raise ValueError(
                    f"all runs must have the same class names: class {k} is {expected!r} in "
                    f"{_name(named[0][0])} and {found!r} in {_name(run)}."
                )
    return named[0][1] if named else None


def same_support(run: Run, reference: ClassCounts, what: str, data: str) -> None:
    """Raises a ValueError unless a run and its reference were evaluated on the same data."""
    counts = run.history.last(data).counts
    k = counts.first_other_support(reference)
    if k is not None:
        name = (run.history.names_of(data) or range(counts.num_classes))[k]
        raise ValueError(
            f"{_name(run)} and {what} must have been evaluated on the same data, but class {name} has "
            f"{int(counts.support[k])} and {int(reference.support[k])} samples in {data!r}."
        )


def quotas_fit(record: PruningRecord, data: str, num_classes: int) -> bool:
    """Whether the quotas are of the evaluated classes, or of the evaluated groups."""
    return record.by_group == is_of_groups(data) and len(record.selection.sizes) <= num_classes


def oddities(label: str, runs: Sequence[Run], data: str, num_classes: int) -> list[str]:
    """Returns notes on the runs of one setting: equal or unknown seeds, other groups."""
    notes = []
    seeds = Counter(run.seed for run in runs if run.seed is not None)
    twice = [str(seed) for seed, times in seeds.items() if times > 1]
    if twice:
        notes.append(
            f"{label} has several runs with seed {', '.join(twice)}; each counts as a model."
        )
    notes += [
        f"{_name(run)} has records of {len(run.trainings)} trainings, which do not belong together: "
        f"{' and '.join(f'{what} of {name}' for name, what in run.trainings.items())}."
        for run in runs
        if len(run.trainings) > 1
    ]
    unknown = [run for run in runs if run.seed is None]
    if unknown and len(runs) > 1:
        notes.append(f"Of {len(unknown)} of the {len(runs)} runs of {label} the seed is not known.")
    if any(r.record is not None and not quotas_fit(r.record, data, num_classes) for r in runs):
        kind, other = ("groups", "class") if not is_of_groups(data) else ("classes", "group")
        notes.append(f"{label} was pruned by {kind}; what was kept of each {other} is not known.")
    for run in runs:
        hidden = {} if run.record is None else discovered(run.record, run.history.class_names)
        if hidden:
            notes.append(f"Groups that {_name(run)} discovered: {'; '.join(hidden.values())}.")
    return notes


def _name(run: Run) -> str:
    return repr(str(run.path))
