"""The result of a selection, and its files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_fairprune._files import read_tensors, understanding, whole_number, write_tensors
from lightning_fairprune.selection._labels import checked_repeat, class_sizes, labels
from lightning_fairprune.selection._parquet import read_indices, write_indices

FORMAT = "lightning_fairprune.Selection"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Selection:
    """Which samples of a training set are kept, and how they were chosen.

    The indices are what an epoch draws. With ``repeat`` above 1 a class whose quota exceeds its size is kept as
    a whole, and some of its samples occur several times.

    Args:
        indices: int64 [n] on the CPU, sorted, in [0, num_samples), each at most `repeat` times.
        num_samples: N, the size of the training set.
        quota: int64 [K], samples of each class in an epoch.
        sizes: int64 [K], samples available per class.
        keep: the order inside a class, see `select`, such as "hard, cutoff 0.1"; "given" if unknown.
        seed: the seed of the random order.
        repeat: how often an epoch may draw the same sample, >= 1.

    Raises:
        ValueError: the fields contradict each other.

    Example:
        >>> from lightning_fairprune import select
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
    repeat: int = 1

    def __post_init__(self) -> None:
        for name in ("indices", "quota", "sizes"):
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.dim() != 1 or value.device.type != "cpu":
                raise ValueError(
                    f"`{name}` must be a one-dimensional int64 tensor on the CPU, got "
                    f"{value.dtype} of shape {tuple(value.shape)} on {value.device}."
                )
        index, n, repeat = self.indices, self.num_samples, checked_repeat(self.repeat)
        is_sorted = bool((index[1:] >= index[:-1]).all())
        if not is_sorted or not bool((index[repeat:] > index[:-repeat]).all()):
            often = "once" if repeat == 1 else f"at most {repeat} times"
            raise ValueError(f"`indices` must be sorted, each sample {often}.")
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
        most = self.sizes * repeat
        if bool(((self.quota < 0) | (self.quota > most)).any()) or int(self.sizes.sum()) > n:
            sizes = "sizes" if repeat == 1 else f"{repeat} sizes"
            raise ValueError(
                f"`quota` must be in [0, {sizes}] and `sizes` sum to at most num_samples."
            )
        if repeat > 1 and self.distinct != int(self.class_distinct.sum()):
            raise ValueError(
                "`indices` must repeat no sample of a class before all of it are drawn, which are "
                f"{int(self.class_distinct.sum())} samples by `quota` and `sizes`, got {self.distinct}."
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        repeats = "" if self.repeat == 1 else f", repeat={self.repeat}"
        distinct = "" if self.repeat == 1 else f"{self.distinct} distinct, "
        return (
            f"Selection({len(self)} of {self.num_samples}, {distinct}density {self.density:.3f}, "
            f"keep={self.keep!r}, seed={self.seed}{repeats})"
        )

    @property
    def budget(self) -> int:
        """Number of samples in an epoch."""
        return len(self)

    @property
    def distinct(self) -> int:
        """Number of different samples in an epoch: less than the budget if some are repeated."""
        index = self.indices
        return len(index) - int((index[1:] == index[:-1]).sum())

    @property
    def class_distinct(self) -> Tensor:
        """Number of different samples of each class in an epoch, int64 [K]: all of it, or its quota."""
        return self.quota.minimum(self.sizes)

    @property
    def density(self) -> float:
        """Samples in an epoch as a fraction of all samples, above 1 if repeats exceed them; NaN for an empty set."""
        return len(self) / self.num_samples if self.num_samples else float("nan")

    @property
    def class_density(self) -> Tensor:
        """The same of each class, float64 [K]; NaN for a class without samples."""
        return self.quota.double() / self.sizes

    def mask(self) -> Tensor:
        """Return bool [N], True where a sample is kept."""
        mask = torch.zeros(self.num_samples, dtype=torch.bool)
        mask[self.indices] = True
        return mask

    @property
    def _settings(self) -> dict[str, str | int]:
        """How the samples were chosen, for a file; files without repeats can be read by older releases."""
        repeats = {} if self.repeat == 1 else {"repeat": self.repeat}
        return {"keep": self.keep, "seed": self.seed, **repeats}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to a safetensors file, whole or not at all."""
        record = {"num_samples": self.num_samples, **self._settings}
        tensors = {"indices": self.indices, "quota": self.quota, "sizes": self.sizes}
        write_tensors(path, FORMAT, tensors, {"selection": json.dumps(record)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read and check what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of another kind or version, or contradicts itself.
        """
        tensors, metadata = read_tensors(path, FORMAT)
        with understanding(path):
            record = json.loads(metadata["selection"])
            return cls(
                indices=tensors["indices"],
                num_samples=whole_number("num_samples", record["num_samples"]),
                quota=tensors["quota"],
                sizes=tensors["sizes"],
                keep=str(record["keep"]),
                seed=whole_number("seed", record["seed"]),
                repeat=whole_number("repeat", record.get("repeat", 1)),
            )

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the kept indices as the column ``index`` of a Parquet file (needs pyarrow).

        A sample that an epoch draws several times has as many rows.
        """
        settings = {"num_samples": self.num_samples, "num_classes": len(self.sizes)}
        write_indices(path, self.indices, {**settings, **self._settings})

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str], target: Tensor) -> Selection:
        """Read kept indices from a Parquet file of one integer column (needs pyarrow).

        `to_parquet`, ``fairprune select`` on a table whose ids are the indices of the samples in the
        training set, or another tool may have written it, in any order.

        Args:
            path: the file.
            target: int64 [N], the class (or group) of each sample of the training set, or -1.

        Returns:
            The `Selection`: what `to_parquet` wrote, given the same labels; otherwise ``keep`` is
            "given".

        Raises:
            ImportError: pyarrow is not installed.
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else, or indices that do not fit ``target``.
            TypeError: ``target`` does not hold integers.
        """
        target, excluded = labels(target)
        indices, settings = read_indices(path)
        n, name = len(target), os.fspath(path)
        if settings.get("num_samples", n) != n:
            raise ValueError(
                f"{name!r} was made from {settings['num_samples']} samples, `target` has {n}: pass "
                "the labels of the same training set."
            )
        if len(indices) and not 0 <= int(indices[0]) <= int(indices[-1]) < n:
            raise ValueError(
                f"{name!r} must hold indices in [0, {n}), the places of samples in `target`, got "
                f"{int(indices[0])} to {int(indices[-1])}."
            )
        repeat = settings.get("repeat", 1)
        more = indices[repeat:][indices[repeat:] == indices[:-repeat]]
        if len(more):
            often = ("once", "twice") if repeat == 1 else (f"at most {repeat} times", "more often")
            raise ValueError(
                f"{name!r} must hold each index {often[0]}, but {int(more[0])} occurs {often[1]}."
            )
        kept = target[indices]
        if bool((kept < 0).any()):
            outside = int(indices[kept < 0][0])
            raise ValueError(
                f"{name!r} keeps sample {outside}, which is in no class: its `target` is -1."
            )
        sizes = class_sizes(target, excluded, settings.get("num_classes", 0))
        quota = torch.bincount(kept, minlength=len(sizes))
        keep, seed = settings.get("keep", "given"), settings.get("seed", 0)
        return cls(indices, n, quota, sizes, keep, seed, repeat)

    def summary(self, class_names: Sequence[str] | None = None) -> str:
        """Return a plain-text table: size, samples kept and density of every class.

        With repeats, also how many of those kept are different samples.

        Example:
            >>> from lightning_fairprune import select
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
        sizes, kept = [*self.sizes.tolist(), total], [*self.quota.tolist(), len(self)]
        columns = {
            "class": [*names, "all"],
            "size": list(map(str, sizes)),
            "kept": list(map(str, kept)),
            "density": [f"{share:.3f}" for share in density],
        }
        if self.distinct < len(self):
            columns["distinct"] = list(map(str, [*self.class_distinct.tolist(), self.distinct]))
        cells = [tuple(columns), *zip(*columns.values(), strict=True)]
        width = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(width[0]), *map(str.rjust, row[1:], width[1:])])
            for row in cells
        )
