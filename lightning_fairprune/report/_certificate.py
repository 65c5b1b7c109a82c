"""How much recall any class of a run has lost against its reference at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.report._read import Run
from lightning_fairprune.statistics import LossBounds, loss_bounds, loss_bounds_from_counts

MOST = 50  # pairs of a run and a reference
MOST_CLASSES = 100  # of which each gets a bound


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """A run and its reference.

    Args:
        setting: label of the run's setting.
        run: the run.
        reference: the run that it is compared with; None for what it has kept.
        bounds: on the losses of its classes.
    """

    setting: str
    run: Run
    reference: Run | None
    bounds: LossBounds

    @property
    def samples(self) -> tuple[int, int]:
        """The fewest and the most samples of a class that has any."""
        known: Tensor = self.bounds.support[self.bounds.support > 0]
        return int(known.min()), int(known.max())


def certificates(
    label: str,
    runs: Sequence[Run],
    references: Sequence[Sequence[Run]],
    data: str,
    level: float,
    most: int,
) -> list[Certificate]:
    """Returns the first certificates of the runs of one setting.

    `references`: those of each run; none for what the run has kept. At a level of 1/2 or less there are none.
    """
    if level <= 0.5:
        return []
    found: list[Certificate] = []
    for run, others in zip(runs, references, strict=True):
        pairs = [(other, other.history.last(data).counts) for other in others]
        kept = run.history.reference.get(data)
        of: list[tuple[Run | None, ClassCounts]] = [*pairs]
        if not others and kept is not None:
            of = [(None, kept)]
        counts = run.history.last(data).counts
        for other, reference in of[: most - len(found)]:
            found.append(Certificate(label, run, other, _bounds(counts, reference, level)))
    return found


def _bounds(counts: ClassCounts, reference: ClassCounts, level: float) -> LossBounds:
    """Returns the bounds, paired where both know their answers to the same samples."""
    each = counts.num_classes <= MOST_CLASSES
    changed = counts.changes(reference)
    if changed is not None:
        return loss_bounds(*changed, counts.support, level, each=each)
    known = counts.answers is not None and reference.answers is not None
    same = not known and bool((counts.support == reference.support).all())
    support = None if same else reference.support
    return loss_bounds_from_counts(
        counts.tp, counts.support, reference.tp, support, level, each=each
    )
