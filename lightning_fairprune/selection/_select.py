"""From labels, quota and scores to a `Selection`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_fairprune.selection._labels import checked_repeat, class_sizes, labels
from lightning_fairprune.selection._order import lowest, score_key, strata
from lightning_fairprune.selection._record import Selection
from lightning_fairprune.selection.candidates import (
    candidates,
    check_candidates,
    order_in_words,
)

Keep = Literal["random", "hard", "easy", "stratified"]


def select(
    target: Tensor,
    quota: Tensor | Sequence[int] | int,
    *,
    score: Tensor | None = None,
    keep: Keep = "random",
    seed: int = 0,
    cutoff: float = 0.0,
    pool: float = 1.0,
    repeat: int = 1,
) -> Selection:
    r"""Return the samples to keep: ``quota[k]`` of every class k, or ``quota`` of all samples.

    With ``repeat`` above 1 a quota n may exceed the N samples of its class. Then an epoch draws each of them
    floor(n / N) times, and the n mod N that the order of the class puts first once more.

    Args:
        target: int64 [N], the class of each sample; -1 marks a sample that must not be selected.
        quota: int64 [K], samples to keep per class; an int keeps that many of all samples, regardless
            of class.
        score: float or integer [N], higher = harder. Needed by every ``keep`` but "random".
        keep: which samples of a class to keep. "random": uniformly chosen; "hard": highest score;
            "easy": lowest score (both: lower index first among equal scores, infinite scores
            allowed); "stratified": 50 strata of equal width over the score range of the class share
            the quota as equally as their sizes allow, with random samples inside a stratum.
        seed: seed of the random order. It draws one 31-bit key per sample in index order, so that the
            order depends on N and seed alone: it is the same on every rank, for every quota and with
            or without classes.
        cutoff: fraction of each class's samples (of all samples, without classes), the hardest by score,
            that is cut off before "hard" or "stratified" choose, rounded to whole samples, in [0, 1).
            With "hard" this keeps a window of difficulty below the hardest. Where fewer samples than the
            quota are left, the cut-off gives way, the easiest of its samples first.
        pool: fraction of the other samples of each class, drawn at random, that "hard", "easy" or
            "stratified" choose from, rounded, at least the quota, in (0, 1].
        repeat: how often an epoch may draw the same sample, >= 1: ``quota[k]`` is at most ``repeat`` times
            the samples of class k.

    Returns:
        The `Selection`. With the same target, score and other arguments, a quota that is nowhere larger
        selects a subset, and draws no sample more often.

    Raises:
        ValueError: a shape, label, quota or score that does not fit; the message says which.
        TypeError: labels, quota, seed or repeat that are not integer.

    Example:
        >>> target = torch.tensor([0, 1, 0, 1, 0])
        >>> score = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.5])
        >>> select(target, torch.tensor([2, 1]), score=score, keep="hard").indices
        tensor([1, 2, 4])
        >>> select(target, 2, score=score, keep="easy").indices
        tensor([0, 3])
        >>> select(
        ...     target, [1, 1], score=score, keep="hard", cutoff=0.4
        ... ).indices  # 1 sample of each class is cut
        tensor([3, 4])
        >>> select(target, [1, 5], score=score, keep="hard", repeat=3).indices
        tensor([1, 1, 1, 2, 3, 3])

    "stratified" is Algorithm 1 of Zheng, Liu, Lai and Prakash, "Coverage-centric Coreset Selection for
    High Pruning Rates", ICLR 2023 (arXiv 2210.15809), applied to each class; `cutoff` is their hard cut-off
    :math:`\beta`. The windows of NUCS (Zhang et al., arXiv 2504.13234) begin below the hardest samples, too; they
    learn where, here it is an argument. A new seed for every epoch with ``pool`` is the rule of OrderDP (Jin et al.,
    ICLR 2026, arXiv 2606.08574): the top q of a random subset. The paper shows that its gradients are unbiased for
    a surrogate loss, not for the mean loss, when the scores are the losses of that epoch.
    """
    target, excluded = labels(target)
    n = len(target)
    _check_keep(keep, score)
    check_candidates(keep, cutoff, pool)
    seed = _integer("seed", "an int", seed)
    repeat = checked_repeat(_integer("repeat", "an int", repeat))
    if (isinstance(quota, Tensor) and quota.dim() > 0) or isinstance(quota, Sequence):
        wanted = _class_quota(quota)
        sizes = class_sizes(target, excluded, len(wanted))
        if len(sizes) > len(wanted):
            raise ValueError(
                f"`quota` has {len(wanted)} classes, but `target` holds the label {len(sizes) - 1}."
            )
        _check_room(wanted, sizes, repeat)
        members = sizes
        group = torch.where(target < 0, len(wanted), target) if excluded else target
    else:
        budget = _integer("quota", "an int or int64 [K]", quota)
        sizes = class_sizes(target, excluded, 0)
        available = int(sizes.sum())
        if not 0 <= budget <= available * repeat:
            often = "" if repeat == 1 else f" up to {repeat} times each"
            raise ValueError(
                f"`quota` must be between 0 and the {available} samples that can be "
                f"selected{often}, got {budget}."
            )
        wanted, members = torch.tensor([budget]), torch.tensor([available])
        group = (target < 0).long() if excluded else torch.zeros(1, dtype=torch.int64).expand(n)
    rounds, of = None, group
    if bool((wanted > members).any()):  # whole rounds over a class, and the rest of its quota
        rounds = wanted // members.clamp(min=1)
        wanted = wanted - rounds * members
    key: Callable[[slice], Tensor]
    if keep in ("random", "stratified") or pool < 1:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.empty(n, dtype=torch.int32).random_(generator=generator)
        key, bits = draw.__getitem__, 31
    if score is not None:
        score = _checked_score(score, target, excluded, finite=keep == "stratified")
        if cutoff or pool < 1:
            hardest = score_key(score, group if excluded else None, len(wanted), True)
            draws = (lambda part: draw[part], 31)
            group = candidates(group, wanted, hardest, draws, cutoff, pool)
        if keep == "stratified":
            group, wanted = strata(group, score, wanted)
        else:
            key, bits = score_key(score, group if excluded else None, len(wanted), keep == "hard")
    mask = lowest(group, key, bits, wanted)
    indices = mask.nonzero().flatten() if rounds is None else _drawn(mask, of, rounds)
    kept = torch.bincount(target.index_select(0, indices), minlength=len(sizes))
    words = order_in_words(keep, cutoff, pool)
    return Selection(indices, n, kept, sizes, words, seed, repeat)


def _check_room(quota: Tensor, sizes: Tensor, repeat: int) -> None:
    short = quota > sizes * repeat
    if bool(short.any()):
        k = int(short.nonzero()[0])
        often = "" if repeat == 1 else f", up to {repeat} times each"
        raise ValueError(
            f"`quota` asks for {int(quota[k])} samples of class {k}, which has {int(sizes[k])}{often}."
        )


def _drawn(mask: Tensor, group: Tensor, rounds: Tensor) -> Tensor:
    """Return each sample as often as the rounds over its group say, and those in the mask once more."""
    rounds = torch.cat([rounds, rounds.new_zeros(1)])  # the last group is left out
    often = rounds.index_select(0, group) + mask
    return torch.arange(len(mask)).repeat_interleave(often)


def _class_quota(quota: Tensor | Sequence[int]) -> Tensor:
    wanted = torch.as_tensor(quota).detach().cpu()
    if wanted.numel() and (wanted.is_floating_point() or wanted.dtype == torch.bool):
        raise TypeError(f"`quota` must hold integers, got {wanted.dtype}.")
    if wanted.dim() != 1:
        raise ValueError(f"`quota` must be an int or of shape [K], got {tuple(wanted.shape)}.")
    if bool((wanted < 0).any()):
        k = int((wanted < 0).nonzero()[0])
        raise ValueError(f"`quota` must be >= 0, got {int(wanted[k])} for class {k}.")
    return wanted.long()


def _integer(name: str, wanted: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"`{name}` must be {wanted}, got {value!r}.") from None


def _check_keep(keep: str, score: Tensor | None) -> None:
    if keep not in get_args(Keep):
        raise ValueError(f"`keep` must be one of {', '.join(get_args(Keep))}, got {keep!r}.")
    if keep == "random" and score is not None:
        raise ValueError(
            "`score` has no effect with keep='random'; pass keep='hard', 'easy' or 'stratified'."
        )
    if keep != "random" and score is None:
        raise ValueError(f"keep={keep!r} needs `score`, one number per sample, higher = harder.")


def _checked_score(score: Tensor, target: Tensor, excluded: bool, *, finite: bool) -> Tensor:
    """Return the scores on the CPU as float32, float64 or int64; no sample to select from has NaN."""
    if not isinstance(score, Tensor) or score.shape != target.shape:
        raise ValueError(
            f"`score` must be a tensor of shape [{len(target)}], one number per sample, got "
            f"{tuple(getattr(score, 'shape', ()))}."
        )
    if score.is_complex():
        raise TypeError(f"`score` must be real, got {score.dtype}.")
    score = score.detach().cpu()
    if not score.is_floating_point():
        return score.long()
    if score.dtype not in (torch.float32, torch.float64):
        score = score.float()
    bad = score.isfinite().logical_not_() if finite else score.isnan()
    if excluded:
        bad &= target >= 0
    if bool(bad.any()):
        what = "finite score" if finite and not bool(score[bad].isnan().any()) else "score (NaN)"
        raise ValueError(
            f"{int(bad.sum())} of {len(score)} samples have no {what}, first at index "
            f"{int(bad.nonzero()[0])}: observe every sample at least once, or set the target of "
            "samples to leave out to -1."
        )
    return score
