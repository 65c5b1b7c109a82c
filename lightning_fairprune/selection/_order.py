"""The order inside a class: integer keys, strata, and the lowest keys of every group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_fairprune.selection.strata import STRATA, shared

# Samples at a time. The temporaries stay in the cache, and below 2**15 elements torch starts no threads,
# which would wait for each other on a busy machine.
CHUNK = 32_000


def lowest(group: Tensor, key: Callable[[slice], Tensor], bits: int, quota: Tensor) -> Tensor:
    """Return bool [n]: the quota[g] members of lowest key of every group g, ties by position.

    Radix selection: count the members by (group, leading digit of the key), which decides all but
    those with the digit at which a group's quota runs out; repeat with the next digit of these.
    Takes two sweeps over the samples and no sort. Groups >= len(quota) are left out.
    """
    n, groups = len(group), len(quota) + 1
    mask = torch.zeros(n, dtype=torch.bool)
    if not int(quota.sum()):
        return mask
    if bits == 0:  # equal keys: the position decides
        bits = max(1, n.bit_length())
        return lowest(group, lambda part: torch.arange(part.start, part.stop), bits, quota)
    # Bits of the digit: few enough that the counts, groups * 2**width, take at most 16 MiB.
    width = min(bits, max(1, min(8, 21 - groups.bit_length())))
    shift = bits - width
    parts = [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]

    def bucket(part: slice) -> Tensor:
        digit = (key(part) >> shift).long().bitwise_and_((1 << width) - 1)
        return digit.add_(group[part] << width)

    count = torch.zeros(groups << width, dtype=torch.int64)
    one = torch.ones(1, dtype=torch.int64)
    for part in parts:
        place = bucket(part)
        count.scatter_add_(0, place, one.expand(len(place)))
    quota = torch.cat([quota, quota.new_zeros(1)])
    fits = count.view(groups, -1).cumsum(1)
    full = (fits <= quota[:, None]).sum(1)  # leading digits that fit into the quota entirely
    taken = torch.cat([fits.new_zeros(groups, 1), fits], 1).gather(1, full[:, None]).flatten()
    rest = quota - taken
    edge = (torch.arange(groups) << width) + full
    tied: list[Tensor] = []  # index_select, not [...]: that starts threads even for short tensors
    for part in parts:
        offset = bucket(part).sub_(edge.index_select(0, group[part]))
        mask[part] = offset < 0
        open_ = (offset == 0).nonzero().flatten()
        open_ = open_.masked_select(rest.index_select(0, group[part].index_select(0, open_)) > 0)
        tied.append(open_ + part.start)
    member = torch.cat(tied)
    if len(member) == n:  # nothing decided: no copy needed
        return lowest(group, key, shift, rest[:-1])
    if len(member):
        low = (1 << shift) - 1
        pairs = zip(parts, tied, strict=True)
        left = torch.cat([key(p).index_select(0, at - p.start).long() & low for p, at in pairs])
        mask[member] = lowest(group.index_select(0, member), left.__getitem__, shift, rest[:-1])
    return mask


def score_key(
    score: Tensor, group: Tensor | None, num_groups: int, descending: bool
) -> tuple[Callable[[slice], Tensor], int]:
    """Return integer keys (unsigned) in the order of the scores, and their number of bits."""

    def ordered(value: Tensor) -> Tensor:
        if value.is_floating_point():
            # IEEE numbers are ordered like sign and magnitude; + 0.0 makes -0.0 equal to 0.0
            short = value.dtype == torch.float32
            pattern = (value + 0.0).view(torch.int32 if short else torch.int64)
            magnitude = 0x7FFFFFFF if short else 0x7FFFFFFFFFFFFFFF
            value = pattern ^ ((pattern >> (31 if short else 63)) & magnitude)
        value = value.long()
        return ~value if descending else value

    some = score if group is None else score[group < num_groups]
    if not some.numel():
        return (lambda part: torch.zeros_like(score[part], dtype=torch.int64)), 0
    ends = ordered(torch.stack(some.aminmax())).tolist()
    least = min(ends)
    return (lambda part: ordered(score[part]) - least), (max(ends) - least).bit_length()


def strata(group: Tensor, score: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    """Split every group into strata of equal score width; return stratum ids and their quotas."""
    groups = len(quota) + 1
    low = torch.full((groups,), torch.inf, dtype=torch.float64)
    high = -low
    parts = [slice(start, start + CHUNK) for start in range(0, len(group), CHUNK)]
    for part in parts:
        low.scatter_reduce_(0, group[part], score[part].double(), "amin")
        high.scatter_reduce_(0, group[part], score[part].double(), "amax")
    # Halves: the difference of two finite numbers may overflow, that of their halves does not.
    half, width = low / 2, (high / 2 - low / 2).clamp_(min=torch.finfo(torch.float64).tiny)
    stratum = torch.empty(len(group), dtype=torch.int64)
    for part in parts:
        own = group[part]
        share = score[part].double() / 2  # a copy: never change the caller's scores
        share.sub_(half.index_select(0, own)).div_(width.index_select(0, own))
        place = share.mul_(STRATA).nan_to_num_(0.0).clamp_(0, STRATA - 1).long()
        stratum[part] = place.add_(own * STRATA).clamp_(max=len(quota) * STRATA)
    count = torch.bincount(stratum, minlength=len(quota) * STRATA)[: len(quota) * STRATA]
    return stratum, shared(count.view(-1, STRATA), quota).flatten()
