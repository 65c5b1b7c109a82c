"""The numbers of a report: settings, relative to each other and to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.records.recall_history import GROUPS, is_of_groups, printable
from lightning_fairprune.report import _check
from lightning_fairprune.report._certificate import MOST, Certificate, certificates
from lightning_fairprune.report._read import Run
from lightning_fairprune.report._settings import configuration, differences, grouped
from lightning_fairprune.statistics import (
    ClassChange,
    Summary,
    class_change_test,
    intensification_ratio,
    summarise,
)

LABEL_LEVEL = 0.99  # of the interval that the paper labels
RATE = 0.05  # false discovery rate of the tests per class

Pairing = Literal["seed", "mean", "saved"]


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceModels:
    """The recalls, float64 [R, K], that distortion is relative to, and their runs, if they are known."""

    recall: Tensor
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The runs of one setting.

    Args:
        label: name of the setting.
        runs: its M runs.
        recall: in the last evaluation of each, float64 [M, K].
        support: samples of each class in it, int64 [M, K].
        before: recalls of the reference of each run, float64 [M, K]; None without one.
        pairing: the reference is the run of equal seed, the mean of all, or saved in the run.
        test: change of each class relative to the model; None below two runs on either side.
        values: the `measures` of each run, float64 [M], by name.
        summaries: their means and t intervals.
        alpha_label: the side of 1 of the interval of alpha at the paper's level.
        sizes: training samples of each class, float64 [M, K]; NaN for a run that kept all.
        kept: training samples of each class kept last, likewise.
    """

    label: str
    runs: tuple[Run, ...]
    recall: Tensor
    support: Tensor
    before: Tensor | None
    pairing: Pairing | None
    test: ClassChange | None
    values: Mapping[str, Tensor]
    summaries: Mapping[str, Summary]
    alpha_label: str
    sizes: Tensor
    kept: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean recall of each class over the runs, [K]."""
        return self.recall.nanmean(0)

    @property
    def mean_before(self) -> Tensor:
        """Mean recall of the references, [K]; NaN without one."""
        return self.mean * torch.nan if self.before is None else self.before.nanmean(0)

    @property
    def change(self) -> Tensor:
        """Recall minus that of the reference, [M, K]; NaN without one."""
        before = self.recall * torch.nan if self.before is None else self.before
        return recalls.change(self.recall, before)

    @property
    def density(self) -> Tensor:
        """Mean density of each class over the runs, [K]."""
        return (self.kept / self.sizes).nanmean(0)

    @property
    def repeat(self) -> int:
        """How often an epoch of these runs may draw the same sample."""
        return max(
            (r.record.selection.repeat for r in self.runs if r.record is not None), default=1
        )

    @property
    def weakest(self) -> int:
        """The class with the lowest mean recall."""
        return int(self.mean.nan_to_num(torch.inf).argmin())

    @property
    def order(self) -> Tensor:
        """Classes by change, the largest loss first; without a reference by recall, int64 [K]."""
        by = self.mean if self.before is None else self.change.nanmean(0)
        return by.nan_to_num(torch.inf).argsort(stable=True)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Several settings, evaluated on the same data.

    Args:
        data: the name of the evaluation.
        curves: the name of an evaluation that was repeated in training; None if there is none.
        names: of the classes; None for their numbers.
        settings: the settings.
        reference: the reference models.
        level: of the intervals.
        notes: sentences for the reader.
        certificates: of the first pairs of a run and a reference.
    """

    data: str
    curves: str | None
    names: tuple[str, ...] | None
    settings: tuple[Setting, ...]
    reference: ReferenceModels | None
    level: float
    notes: tuple[str, ...] = ()
    certificates: tuple[Certificate, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class."""
        return self.names or tuple(str(k) for k in range(self.settings[0].recall.shape[1]))

    @property
    def runs(self) -> list[Run]:
        """The runs of all settings."""
        return [run for setting in self.settings for run in setting.runs]

    @property
    def all_runs(self) -> list[tuple[str, tuple[Run, ...]]]:
        """The runs of the reference and of each setting, by label."""
        first = () if self.reference is None else self.reference.runs
        return [("reference", first), *((s.label, s.runs) for s in self.settings)]


def compare(
    runs: Sequence[Run],
    reference: Sequence[Run] = (),
    *,
    data: str | None = None,
    level: float = 0.95,
) -> Comparison:
    """Compares settings with each other and with a reference, or raises a ValueError.

    Runs of the reference are left out of the settings. Without one, the references saved in the runs are used.
    `data` is by default the test, the validation, or the first evaluation that all runs have.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level:g}.")
    homes = {run.path.resolve() for run in reference}
    compared = [run for run in runs if run.path.resolve() not in homes]
    if not compared:
        raise ValueError("the runs must differ from those of the reference, got the same.")
    everything = [*reference, *compared]
    data = _check.common_data(everything, data)
    names = _check.class_names(everything, data)
    num_classes = compared[0].history.last(data).counts.num_classes
    notes = []
    if len(compared) < len(runs):
        notes.append("Runs of the reference are not shown among the settings.")
    base = _reference(reference, compared, data)
    settings: list[Setting] = []
    certified: list[Certificate] = []
    for given, members in grouped(compared).items():
        label = printable(given)
        settings.append(_setting(label, members, base, data, level))
        others = _partners(members, () if base is None else base.runs)[0]
        certified += certificates(label, members, others, data, level, MOST - len(certified))
        notes += _check.oddities(label, members, data, num_classes)
        differing = differences([configuration(run) for run in members])
        if differing:
            notes.append(f"The runs of {label} differ in {', '.join(differing)}.")
    names = None if names is None else tuple(map(printable, names))
    return Comparison(
        data,
        _curves(compared, data),
        names,
        tuple(settings),
        base,
        level,
        tuple(notes),
        tuple(certified),
    )


def measures(recall: Tensor, before: Tensor | None) -> dict[str, Tensor]:
    """Returns numbers per run, float64 [M], by name; alpha and disparity are NaN without a reference."""
    unknown = recall.new_full((len(recall),), torch.nan)
    return {
        "average": recall.nanmean(-1),
        "worst": recalls.worst(recall),
        "gap": recalls.gap(recall),
        "std": recalls.std(recall),
        "zero_recall": recalls.zero_recall(recall).double(),
        "alpha": unknown if before is None else intensification_ratio(before, recall),
        "disparity": unknown if before is None else recalls.disparity(recall, before),
    }


def _stacked(runs: Sequence[Run], data: str) -> Tensor:
    return torch.stack([run.history.last(data).counts.recall for run in runs])


def _reference(reference: Sequence[Run], runs: Sequence[Run], data: str) -> ReferenceModels | None:
    """Returns the models of the reference runs, or those saved in the runs, each once."""
    if reference:
        return ReferenceModels(_stacked(reference, data), tuple(reference))
    found = {
        tuple(counts.recall.nan_to_num(-1).tolist()): counts.recall
        for run in runs
        if (counts := run.history.reference.get(data)) is not None
    }
    return ReferenceModels(torch.stack(list(found.values()))) if found else None


def _setting(
    label: str, runs: Sequence[Run], reference: ReferenceModels | None, data: str, level: float
) -> Setting:
    recall = _stacked(runs, data)
    before, pairing = _before(runs, reference, data)
    values = measures(recall, before)
    share = [torch.nan if r.record is None else r.record.selection.density for r in runs]
    removed = [
        torch.nan if r.sparsity is None else r.sparsity.at(r.history.last(data).step) for r in runs
    ]
    values["density"], values["sparsity"] = torch.tensor([share, removed], dtype=torch.float64)
    test = None
    if before is not None and reference is not None and min(len(runs), len(reference.recall)) > 1:
        test = class_change_test(reference.recall, recall)
    support = torch.stack([run.history.last(data).counts.support for run in runs])
    summaries = {name: summarise(value, level) for name, value in values.items()}
    side = summarise(values["alpha"], LABEL_LEVEL).label
    sizes, kept = _kept(runs, data, recall.shape[1])
    members = tuple(runs)
    return Setting(
        label, members, recall, support, before, pairing, test, values, summaries, side, sizes, kept
    )


def _before(
    runs: Sequence[Run], reference: ReferenceModels | None, data: str
) -> tuple[Tensor | None, Pairing | None]:
    """Returns the reference of each run, [M, K], and its kind."""
    if reference is None:
        return None, None
    if not reference.runs:
        saved = [run.history.reference.get(data) for run in runs]
        for run, counts in zip(runs, saved, strict=True):
            if counts is not None:
                _check.same_support(run, counts, "the reference that it has kept", data)
        kept = [counts.recall for counts in saved if counts is not None]
        return (torch.stack(kept), "saved") if len(kept) == len(runs) else (None, None)
    partners, paired = _partners(runs, reference.runs)
    for run, others in zip(runs, partners, strict=True):
        for other in others:
            counts = other.history.last(data).counts
            _check.same_support(run, counts, f"the reference {str(other.path)!r}", data)
    before = torch.stack([_stacked(others, data).nanmean(0) for others in partners])
    return before, "seed" if paired else "mean"


def _partners(runs: Sequence[Run], references: Sequence[Run]) -> tuple[list[Sequence[Run]], bool]:
    """Returns the references of each run, and whether they are those of equal seed, else all."""
    partners: list[Sequence[Run]] = [
        [r for r in references if run.seed is not None and r.seed == run.seed] for run in runs
    ]
    paired = all(partners)
    return partners if paired else [references] * len(runs), paired


def _kept(runs: Sequence[Run], data: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns class sizes and quotas, [M, K]; NaN for runs that kept all or have quotas of groups."""
    sizes = torch.full((len(runs), num_classes), torch.nan, dtype=torch.float64)
    kept = sizes.clone()
    for m, run in enumerate(runs):
        if run.record is not None and _check.quotas_fit(run.record, data, num_classes):
            chosen = run.record.selection
            have = len(chosen.sizes)
            sizes[m, :have], kept[m, :have] = chosen.sizes.double(), chosen.quota.double()
            sizes[m, have:] = kept[m, have:] = 0
    return sizes, kept


def _curves(runs: Sequence[Run], data: str) -> str | None:
    """Returns the name of an evaluation that was repeated in training."""
    several = {name for run in runs for name in run.history.names if len(run.history.of(name)) > 1}
    if not several:
        return None
    validation = "val" + GROUPS if is_of_groups(data) else "val"
    return next((name for name in (data, validation) if name in several), min(several))
