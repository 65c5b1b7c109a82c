"""Strata: score ranges of a class, and their shares of its quota."""

from __future__ import annotations

import torch
from torch import Tensor

STRATA = 50  # equal-width score ranges per class, the number used by Zheng et al. (2023)


def shared(sizes: Tensor, quota: Tensor) -> Tensor:
    """Split quota [G] over strata of the given sizes [G, S] equally: n_s = min(size_s, level).

    A remainder below one sample per open stratum goes to the largest strata. Seat j of every stratum
    comes before seat j + 1 of any, so the shares never shrink when the quota grows.
    """
    low = torch.zeros_like(quota)
    high = quota.clone()
    while bool((low < high).any()):  # the highest level that does not exceed the quota
        middle = (low + high + 1) // 2
        fits = sizes.minimum(middle[:, None]).sum(1) <= quota
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle - 1)
    share = sizes.minimum(low[:, None])
    rank = sizes.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return share.add_((rank < (quota - share.sum(1))[:, None]).long())
