"""Counting predictions batch after batch, sixteen batches at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_fairprune.counts._answers import MOST, Answers
from lightning_fairprune.counts._class_counts import ClassCounts
from lightning_fairprune.counts._counting import (
    FAULTS,
    LEFT_OUT,
    NOT_FINITE,
    Counting,
    counted,
    regrouped,
    slots_of,
)

_MOST_BATCHES, _MOST_LOGITS = 16, 1 << 22  # that wait to be counted
_MOST_SLOTS = 1 << 22  # kept before they are counted: images have one for each pixel

Reduce = Callable[[Tensor], Tensor]


class Tally:
    """Collects the predictions of one evaluation, and counts them at its end by class and by `groupings` groupings, G.

    Samples with the label `ignore_index` are left out.

    Batches are kept and counted sixteen at a time, because the fixed price of a dozen tensor functions outweighs the
    arithmetic of a small batch. Nothing is copied to the host before `compute`.
    """

    def __init__(self, groupings: int = 0, ignore_index: int | None = None) -> None:
        self.groupings, self.num_classes, self.ignore_index = groupings, 0, ignore_index
        self._slots: list[Tensor] = []  # [1 + G, n] each
        self._folded: Tensor | None = None  # the count of earlier slots
        self._waiting: list[tuple[Tensor, ...]] = []
        self._waiting_logits = 0

    def __len__(self) -> int:
        waiting = sum(len(target) for _, target, *_ in self._waiting)
        folded = 0 if self._folded is None else int(self._folded.sum())
        return waiting + folded + sum(slots.shape[1] for slots in self._slots)

    def update(self, logits: Tensor, target: Tensor, *groups: Tensor) -> None:
        """Adds a batch: logits [B, C] (-inf for a closed class), target int64 [B] and G groups, int64 [B] each."""
        if len(groups) != self.groupings:
            raise ValueError(
                f"`groups` must be {self.groupings} tensors, as `groupings` says, got {len(groups)}."
            )
        if self._waiting and logits.shape[1:] != self._waiting[0][0].shape[1:]:
            self._look()
        self.num_classes = max(self.num_classes, logits.shape[1])
        # Copies: a compiled step may use the same memory again for the next batch.
        self._waiting.append(tuple(tensor.clone() for tensor in (logits, target, *groups)))
        self._waiting_logits += logits.numel()
        if len(self._waiting) >= _MOST_BATCHES or self._waiting_logits >= _MOST_LOGITS:
            self._look()

    def _look(self) -> None:
        if self._waiting:
            logits, target, *groups = map(torch.cat, zip(*self._waiting, strict=True))
            self._waiting, self._waiting_logits = [], 0
            slots = slots_of(logits, target.long(), logits.shape[1])
            if self.ignore_index is not None:
                slots.masked_fill_(target == self.ignore_index, LEFT_OUT)
            self._keep(torch.stack([slots, *(regrouped(slots, g) for g in groups)]))

    def _keep(self, slots: Tensor) -> None:
        self._slots.append(slots)
        # How many groups there are is not known before the end, how many classes is.
        if self.groupings or sum(s.shape[1] for s in self._slots) < _MOST_SLOTS:
            return
        count = counted(torch.cat(self._slots, 1)[0], self.num_classes)
        self._folded = (
            count if self._folded is None else _widened(self._folded, self.num_classes) + count
        )
        self._slots = []

    def folded(self, size: int) -> Tensor | int:
        """Returns the count of `size` classes of the samples that have no slot any more, int64 [2 size + 4]."""
        return 0 if self._folded is None else _widened(self._folded, size)

    def update_labels(self, logits: Tensor, target: Tensor, *groups: Tensor) -> None:
        """Adds a batch with any number of labels a sample: logits and whether each label holds, both [B, L].

        A label counts where it holds, as right where its logit is above 0. Groups are those of the samples.
        """
        self._look()
        self.num_classes = max(self.num_classes, logits.shape[1])
        holds, label = target > 0, torch.arange(logits.shape[1], device=logits.device)
        slots = torch.add(logits > 0, label, alpha=2).masked_fill_(~holds, LEFT_OUT)
        slots.masked_fill_(holds & ~logits.isfinite(), NOT_FINITE)
        rows = [regrouped(slots, group.unsqueeze(1)) for group in groups]
        self._keep(torch.stack([slots, *rows]).flatten(1))

    @property
    def is_listed(self) -> bool:
        """Whether each sample still has its slot."""
        return self._folded is None

    def slots(self, device: torch.device | str) -> Tensor:
        """Returns the slots of all samples by class and by each grouping, int64 [1 + G, N]."""
        self._look()
        nothing = torch.zeros(1 + self.groupings, 0, dtype=torch.int64, device=device)
        return torch.cat(self._slots or [nothing], 1)

    def compute(
        self,
        *,
        grouped: bool = False,
        reduce_sum: Reduce = torch.clone,
        reduce_max: Reduce = torch.clone,
        device: torch.device | str = "cpu",
    ) -> ClassCounts:
        """Returns the counts over all ranks by class, or by the first grouping: see `counts_of`."""
        return counts_of([self], reduce_sum, reduce_max, device)[0][grouped]


def _widened(count: Tensor, size: int) -> Tensor:
    """Returns a count of more classes, none of which was seen; the faults stay at the end."""
    classes, faults = count[: FAULTS[0]], count[FAULTS[0] :]
    return torch.cat([classes, count.new_zeros(2 * size - len(classes)), faults])


def counts_of(
    tallies: Sequence[Tally],
    reduce_sum: Reduce = torch.clone,
    reduce_max: Reduce = torch.clone,
    device: torch.device | str = "cpu",
    gather: Reduce | None = None,
) -> list[tuple[ClassCounts, ...]]:
    """Returns the counts of several tallies over all ranks, on the host, with one sum for all of them.

    Args:
        tallies: One or more, with the same G and as many on every rank; a rank may have seen nothing.
        reduce_sum: Sums a tensor over the ranks.
        reduce_max: Takes the maximum over the ranks.
        device: Where to count when this rank saw nothing.
        gather: Returns the tensors [n] of all W ranks as [W, n], if which samples were right is wanted; sample i of rank
            r is taken to be i W + r of all, as a distributed sampler deals them out.

    Returns:
        For each tally the counts by class and by each grouping, whose last group is the highest that was seen.

    Raises:
        ValueError: If the highest logit of a sample was not finite, a label not in [0, C) or a group negative.
    """
    rows = 1 + tallies[0].groupings
    slots = [row for tally in tallies for row in tally.slots(device)]
    last = [row.max() // 2 if len(row) else row.new_tensor(-1) for row in slots]
    # By class there are as many as there are logits.
    last[::rows] = [slots[0].new_tensor(tally.num_classes - 1) for tally in tallies]
    # Samples that were folded are too many, whatever their number.
    listed = [tally.is_listed for tally in tallies for _ in range(rows)]
    lengths = [
        row.new_tensor(len(row) if has else MOST) for row, has in zip(slots, listed, strict=True)
    ]
    most = reduce_max(torch.stack([*last, *lengths]))
    sizes = (most[: len(slots)].clamp(min=-1) + 1).tolist()
    local = [counted(row, size) for row, size in zip(slots, sizes, strict=True)]
    # Without groupings each tally has one row.
    if rows == 1:
        local = [
            count + t.folded(size) for count, t, size in zip(local, tallies, sizes, strict=True)
        ]
    total = reduce_sum(torch.cat(local)).cpu()
    parts = torch.split_with_sizes(total, [len(count) for count in local])
    found = [_read(count, i % rows > 0) for i, count in enumerate(parts)]
    if gather is not None:
        each = zip(found, slots, most[len(slots) :].tolist(), strict=True)
        found = [_with_answers(counts, row, length, gather) for counts, row, length in each]
    return [tuple(found[i : i + rows]) for i in range(0, len(found), rows)]


def _with_answers(counts: ClassCounts, slots: Tensor, length: int, gather: Reduce) -> ClassCounts:
    """Returns the counts with the answers of all ranks; `length`: the most samples that a rank has seen."""
    if length >= MOST:
        return counts
    padded = slots.new_full((length,), LEFT_OUT)
    padded[: len(slots)] = slots
    every = gather(padded).T.flatten().cpu()
    every = every[every >= 0]
    answers = Answers.of(every // 2, every % 2 > 0)
    return ClassCounts(counts.tp, counts.support, answers)


def _read(count: Tensor, grouped: bool) -> ClassCounts:
    outside, not_finite, *_ = count[FAULTS[0] :].tolist()
    if not_finite:
        raise ValueError(
            f"the logits of {not_finite} validation samples are not finite: the training "
            "has diverged; lower the learning rate."
        )
    if outside:
        raise ValueError(
            f"{outside} validation samples have a {'group' if grouped else 'label'} outside "
            f"[0, {len(count) // 2 - 2}): number them from 0"
            f"{'' if grouped else ', as the logits are'}."
        )
    return ClassCounts(*Counting.parts(count))
