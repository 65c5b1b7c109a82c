"""Which samples to keep: (target, quota, score) -> Selection.

One integer key per sample, lower = kept first, and the lowest `quota[k]` keys of every class. The
order of the samples does not depend on the quota, so a smaller quota selects a subset.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Selection", "select"]

Keep = Literal["random", "hard", "easy", "stratified"]

STRATA = 50  # equal-width score ranges per class, the number used by Zheng et al. (2023)
# Samples at a time. The temporaries stay in the cache, and below 2**15 elements torch does not start
# threads, which would wait for each other at every step on a machine that is busy.
CHUNK = 32_000
FORMAT = "lightning_fairprune.Selection"
VERSION = 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Selection:
    """Which samples of a training set are kept, and how they were chosen.

    Args:
        indices: int64 [n] on the CPU, strictly increasing, in [0, num_samples).
        num_samples: N, the size of the set that was selected from.
        quota: int64 [K], samples kept per class.
        sizes: int64 [K], samples available per class.
        keep: the order inside a class, see `select`.
        seed: the seed of the random order.

    Raises:
        ValueError: the fields contradict each other.

    Example:
        >>> kept = select(torch.tensor([0, 0, 0, 1]), torch.tensor([2, 1]), seed=1)
        >>> kept
        Selection(3 of 4, density 0.750, keep='random', seed=1)
        >>> kept.quota
        tensor([2, 1])
    """

    indices: Tensor
    num_samples: int
    quota: Tensor
    sizes: Tensor
    keep: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("indices", "quota", "sizes"):
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.dim() != 1 or value.device.type != "cpu":
                raise ValueError(
                    f"`{name}` must be a one-dimensional int64 tensor on the CPU, got "
                    f"{value.dtype} of shape {tuple(value.shape)} on {value.device}."
                )
        index, n = self.indices, self.num_samples
        if not bool((index[1:] > index[:-1]).all()):
            raise ValueError("`indices` must be sorted, each sample once.")
        if len(index) and not 0 <= int(index[0]) <= int(index[-1]) < n:
            raise ValueError(
                f"`indices` must lie in [0, {n}), got {int(index[0])} to {int(index[-1])}."
            )
        if self.quota.shape != self.sizes.shape or int(self.quota.sum()) != len(index):
            raise ValueError(
                f"`quota` must have one entry per entry of `sizes` and sum to the {len(index)} "
                f"indices, got {len(self.quota)} entries for {len(self.sizes)} classes with sum "
                f"{int(self.quota.sum())}."
            )
        if bool(((self.quota < 0) | (self.quota > self.sizes)).any()) or int(self.sizes.sum()) > n:
            raise ValueError(
                "`quota` must be in [0, sizes] and `sizes` sum to at most num_samples."
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return (
            f"Selection({len(self)} of {self.num_samples}, density {self.density:.3f}, "
            f"keep={self.keep!r}, seed={self.seed})"
        )

    @property
    def budget(self) -> int:
        """Number of samples kept."""
        return len(self)

    @property
    def density(self) -> float:
        """Fraction of all samples that is kept; NaN for an empty set."""
        return len(self) / self.num_samples if self.num_samples else float("nan")

    @property
    def class_density(self) -> Tensor:
        """Fraction of each class that is kept, float64 [K]; NaN for a class without samples."""
        return self.quota.double() / self.sizes

    def mask(self) -> Tensor:
        """Return bool [N], True where a sample is kept."""
        mask = torch.zeros(self.num_samples, dtype=torch.bool)
        mask[self.indices] = True
        return mask

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to a safetensors file; an interrupted write leaves no file behind."""
        record = {"num_samples": self.num_samples, "keep": self.keep, "seed": self.seed}
        metadata = {"format": FORMAT, "version": str(VERSION), "selection": json.dumps(record)}
        tensors = {"indices": self.indices, "quota": self.quota, "sizes": self.sizes}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        _replace(Path(path), lambda name: save_file(tensors, name, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read a selection written by `save` and check it.

        Raises:
            ValueError: the file is damaged, of another kind or version, or contradicts itself.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no selection file at {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a complete selection file ({error}); write it again with "
                "Selection.save."
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} must be a file written by Selection.save, got format "
                f"{metadata.get('format')!r}."
            )
        if metadata.get("version") != str(VERSION):
            raise ValueError(
                f"{path} has version {metadata.get('version')}, but this release reads version "
                f"{VERSION}; write the file again."
            )
        try:
            record = json.loads(metadata["selection"])
            return cls(
                indices=tensors["indices"],
                num_samples=int(record["num_samples"]),
                quota=tensors["quota"],
                sizes=tensors["sizes"],
                keep=str(record["keep"]),
                seed=int(record["seed"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a valid selection: {error}") from error

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the kept indices as the column ``index`` of a Parquet file (needs pyarrow)."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(
                "to_parquet needs pyarrow: pip install 'lightning-fairprune[parquet]'."
            ) from error
        table = pa.table({"index": self.indices.numpy()})
        _replace(Path(path), lambda name: pq.write_table(table, name))

    def summary(self, class_names: Sequence[str] | None = None) -> str:
        """Return a plain-text table: size, samples kept and density of every class.

        Example:
            >>> kept = select(torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1]))
            >>> print(kept.summary(["cat", "dog"]))
            class  size  kept  density
            cat       3     1    0.333
            dog       1     1    1.000
            all       4     2    0.500
        """
        count = len(self.sizes)
        names = [str(k) for k in range(count)] if class_names is None else list(class_names)
        if len(names) != count:
            raise ValueError(f"`class_names` must have {count} entries, got {len(names)}.")
        total = int(self.sizes.sum())
        density = [*self.class_density.tolist(), len(self) / total if total else float("nan")]
        cells = [("class", "size", "kept", "density")]
        cells += [
            (name, str(size), str(kept), f"{share:.3f}")
            for name, size, kept, share in zip(
                [*names, "all"],
                [*self.sizes.tolist(), total],
                [*self.quota.tolist(), len(self)],
                density,
                strict=True,
            )
        ]
        width = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(width[0]), *map(str.rjust, row[1:], width[1:])])
            for row in cells
        )


def select(
    target: Tensor,
    quota: Tensor | Sequence[int] | int,
    *,
    score: Tensor | None = None,
    keep: Keep = "random",
    seed: int = 0,
) -> Selection:
    r"""Return the samples to keep: ``quota[k]`` of every class k, or ``quota`` of all samples.

    Args:
        target: int64 [N], the class of each sample; -1 marks a sample that must not be selected.
        quota: int64 [K], samples to keep per class, or an int: that many of all samples, whatever
            their class.
        score: float or integer [N], higher = harder. Needed by every ``keep`` but "random".
        keep: which samples of a class to keep. "random": uniformly chosen; "hard": highest score;
            "easy": lowest score (both: lower index first among equal scores, infinite scores
            allowed); "stratified": coverage-centric, the score range of the class is cut into 50
            strata of equal width, which share the quota as equally as their sizes allow, and
            samples are chosen at random inside a stratum.
        seed: seed of the random order. One 31-bit key per sample is drawn in index order,
            so that the order depends on N and seed alone: it is the same on every rank, for every
            quota and with or without classes.

    Returns:
        The `Selection`. With the same target, score, keep and seed, a quota that is nowhere larger
        selects a subset.

    Raises:
        ValueError: a shape, label, quota or score that does not fit; the sentence says which.
        TypeError: labels, quota or seed that are not integer.

    Example:
        >>> target = torch.tensor([0, 1, 0, 1, 0])
        >>> score = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.5])
        >>> select(target, torch.tensor([2, 1]), score=score, keep="hard").indices
        tensor([1, 2, 4])
        >>> select(target, 2, score=score, keep="easy").indices
        tensor([0, 3])

    Reference for "stratified": Zheng, Liu, Lai, Prakash, "Coverage-centric Coreset Selection for
    High Pruning Rates", ICLR 2023 (arXiv 2210.15809), Algorithm 1, applied to each class, with
    hard cut-off 0.
    """
    target, excluded = _labels(target)
    n = len(target)
    _check_keep(keep, score)
    seed = _integer("seed", "an int", seed)
    if (isinstance(quota, Tensor) and quota.dim() > 0) or isinstance(quota, Sequence):
        wanted = _class_quota(quota)
        sizes = _class_sizes(target, excluded, len(wanted))
        if len(sizes) > len(wanted):
            raise ValueError(
                f"`quota` has {len(wanted)} classes, but `target` holds the label {len(sizes) - 1}."
            )
        short = wanted > sizes
        if bool(short.any()):
            k = int(short.nonzero()[0])
            raise ValueError(
                f"`quota` asks for {int(wanted[k])} samples of class {k}, which has {int(sizes[k])}."
            )
        group = torch.where(target < 0, len(wanted), target) if excluded else target
    else:
        budget = _integer("quota", "an int or int64 [K]", quota)
        sizes = _class_sizes(target, excluded, 0)
        if not 0 <= budget <= int(sizes.sum()):
            raise ValueError(
                f"`quota` must be between 0 and the {int(sizes.sum())} samples that can be "
                f"selected, got {budget}."
            )
        wanted = torch.tensor([budget])
        group = (target < 0).long() if excluded else torch.zeros(1, dtype=torch.int64).expand(n)
    key: Callable[[slice], Tensor]
    if keep in ("random", "stratified"):
        generator = torch.Generator().manual_seed(seed)
        draw = torch.empty(n, dtype=torch.int32).random_(generator=generator)
        key, bits = draw.__getitem__, 31
    if score is not None:
        score = _checked_score(score, target, excluded, finite=keep == "stratified")
        if keep == "stratified":
            group, wanted = _strata(group, score, wanted)
        else:
            key, bits = _score_key(score, group if excluded else None, len(wanted), keep == "hard")
    mask = _lowest(group, key, bits, wanted)
    indices = mask.nonzero().flatten()
    kept = torch.bincount(target.index_select(0, indices), minlength=len(sizes))
    return Selection(indices, n, kept, sizes, keep, seed)


def _lowest(group: Tensor, key: Callable[[slice], Tensor], bits: int, quota: Tensor) -> Tensor:
    """Return bool [n]: the quota[g] members of lowest key of every group g, ties by position.

    Radix selection: count the members by (group, leading digit of the key), which settles all but
    those in the digit at which a group's quota runs out, and repeat with the next digit of these.
    Two sweeps over the samples and no sort. Groups >= len(quota) are left out.
    """
    n, groups = len(group), len(quota) + 1
    mask = torch.zeros(n, dtype=torch.bool)
    if not int(quota.sum()):
        return mask
    if bits == 0:  # equal keys: the position decides
        bits = max(1, n.bit_length())
        return _lowest(group, lambda part: torch.arange(part.start, part.stop), bits, quota)
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
    if len(member) == n:  # nothing settled: go on without a copy
        return _lowest(group, key, shift, rest[:-1])
    if len(member):
        low = (1 << shift) - 1
        left = torch.cat(
            [
                key(part).index_select(0, some - part.start).long() & low
                for part, some in zip(parts, tied, strict=True)
            ]
        )
        mask[member] = _lowest(group.index_select(0, member), left.__getitem__, shift, rest[:-1])
    return mask


def _score_key(
    score: Tensor, group: Tensor | None, num_groups: int, descending: bool
) -> tuple[Callable[[slice], Tensor], int]:
    """Return integer keys >= 0 (as unsigned numbers) in the order of the scores, and their bits."""

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


def _strata(group: Tensor, score: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
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
        share = score[part].double() / 2  # a copy: the scores are the caller's
        share.sub_(half.index_select(0, own)).div_(width.index_select(0, own))
        place = share.mul_(STRATA).nan_to_num_(0.0).clamp_(0, STRATA - 1).long()
        stratum[part] = place.add_(own * STRATA).clamp_(max=len(quota) * STRATA)
    count = torch.bincount(stratum, minlength=len(quota) * STRATA)[: len(quota) * STRATA]
    return stratum, _share(count.view(-1, STRATA), quota).flatten()


def _share(sizes: Tensor, quota: Tensor) -> Tensor:
    """Split quota [G] over strata of the given sizes [G, S] equally: n_s = min(size_s, level).

    What is left below one sample per open stratum goes to the largest strata. Seat j of every
    stratum comes before seat j + 1 of any, so the shares never shrink when the quota grows.
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


def _labels(target: Tensor) -> tuple[Tensor, bool]:
    """Return the labels as int64 on the CPU, and whether any sample is left out (-1)."""
    if not isinstance(target, Tensor) or target.dim() != 1:
        raise ValueError(
            f"`target` must be a tensor of shape [N], got {getattr(target, 'shape', target)!r}."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"`target` must hold integers, got {target.dtype}.")
    target = target.detach().cpu().long()
    least = int(target.min()) if len(target) else 0
    if least < -1:
        raise ValueError(f"`target` must be >= -1, got {least}.")
    return target, least < 0


def _class_sizes(target: Tensor, excluded: bool, num_classes: int) -> Tensor:
    if not excluded:
        return torch.bincount(target, minlength=num_classes)
    return torch.bincount(target + 1, minlength=num_classes + 1)[1:]


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
    """Return the scores on the CPU as float32, float64 or int64, without NaN where it matters."""
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


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write next to ``path`` and rename, so that readers never see half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
