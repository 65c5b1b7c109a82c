"""How much of the gap is the threshold, and how much the representation: of runs with `RecallOffsets`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fairprune.records.offsets_record import OffsetsRecord
from lightning_fairprune.report._compare import Comparison


class OffsetsGain(NamedTuple):
    """The M runs of one setting that have fitted offsets, of `total` runs.

    Attributes:
        label: of the setting.
        total: its number of runs.
        worst: lowest recall without and with offsets, float64 [M, 2].
        average: average recall of the classes without and with offsets, float64 [M, 2].
        of_groups: whether the lowest recall is that of a group.
    """

    label: str
    total: int
    worst: Tensor
    average: Tensor
    of_groups: bool

    @property
    def values(self) -> Tensor:
        """Worst, worst with offsets, average, average with offsets, threshold and representation, [M, 6]."""
        threshold = self.worst[:, 1] - self.worst[:, 0]
        representation = self.average[:, 1] - self.worst[:, 1]
        return torch.stack([*self.worst.T, *self.average.T, threshold, representation], 1)

    @property
    def sentence(self) -> str:
        """What the table says of this setting."""
        before, now = (self.average - self.worst).mean(0).tolist()
        what = "group" if self.of_groups else "class"
        worst, average = (
            100 * (v[:, 1] - v[:, 0]).mean().item() for v in (self.worst, self.average)
        )
        return (
            f"{self.label}: one number for each class, added to the logits, moves the worst {what} by {worst:+.1f} points "
            f"and the average by {average:+.1f}; of {100 * before:.1f} points between them {100 * now:.1f} remain, "
            "which a threshold cannot change."
        )


def gains(comparison: Comparison) -> list[OffsetsGain]:
    """Returns the settings with offsets."""
    found = []
    for setting in comparison.settings:
        records = [run.offsets for run in setting.runs if run.offsets is not None]
        if records:
            found.append(_gain(setting.label, len(setting.runs), records))
    return found


def _gain(label: str, total: int, records: list[OffsetsRecord]) -> OffsetsGain:
    worst = torch.tensor([record.worst for record in records], dtype=torch.float64)
    average = torch.tensor([(r.plain.mean, r.fitted.mean) for r in records], dtype=torch.float64)
    of_groups = any(record.plain_groups is not None for record in records)
    return OffsetsGain(label, total, worst, average, of_groups)
