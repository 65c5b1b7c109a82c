"""Which samples of an evaluation were right, so that two models can be compared sample by sample."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# More are not kept: images with a label at each pixel, whose pixels are no independent samples.
MOST = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Which samples were right, and in which order their labels came.

    Args:
        right: of the samples of class 0 in the order of the evaluation, then of class 1, and so on, bool [N].
        digest: of all labels in the order of the evaluation. Where it is equal, samples are taken to be the same.

    Example:
        >>> Answers.of(torch.tensor([1, 0, 0]), torch.tensor([True, False, True])).right
        tensor([False,  True,  True])
    """

    right: Tensor
    digest: str

    @classmethod
    def of(cls, label: Tensor, right: Tensor) -> Answers:
        """Returns the answers to samples in the order of the evaluation: labels, int64 [N], and bool [N]."""
        label = label.cpu()
        digest = hashlib.blake2b(label.to(torch.int32).numpy().tobytes(), digest_size=16)
        return cls(right.cpu()[label.argsort(stable=True)], digest.hexdigest())

    def changes(self, before: Answers, support: Tensor) -> tuple[Tensor, Tensor]:
        """Returns lost and gained samples of each class, int64 [K], since `before`, of the same samples."""
        label = torch.arange(len(support)).repeat_interleave(support.cpu())
        lost, gained = before.right & ~self.right, self.right & ~before.right
        most = len(support)
        return label[lost].bincount(minlength=most), label[gained].bincount(minlength=most)
