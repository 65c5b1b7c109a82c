"""The result: the rows kept per class, and the file of their ids."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_fairprune._files import json_text, write_whole

FORMAT = "lightning_fairprune.TableSelection"

# A class as the table names it: (label,), or (label, group).
Cell = tuple[int | str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TableSelection:
    """Which rows of a table are kept, and how they were chosen.

    Args:
        classes: the classes in the table, in order: ``(label,)`` or ``(label, group)`` each.
        sizes: int64 [K], rows per class.
        quota: int64 [K], rows kept per class; None in a dry run without quotas, where the order
            decides across classes.
        num_samples: rows of the table, including those of label -1.
        budget: rows kept.
        rule: name of the quota rule, or ``"given"``.
        recall: float64 [K] that the quotas follow, or None.
        keep: the order inside a class, see `select_table`.
        seed: the seed of the random order.
        tables: the files.
        sql: the selection as one query for any database.
        path: the file of the ids, or None after a dry run.

    Example:
        >>> import torch
        >>> kept = TableSelection(
        ...     (("cat",), ("dog",)), torch.tensor([3, 1]), torch.tensor([1, 1]), 4, 2, "balanced"
        ... )
        >>> kept.density
        0.5
        >>> kept.rows()
        [('cat', 3, None, 1), ('dog', 1, None, 1)]
    """

    classes: tuple[Cell, ...]
    sizes: Tensor
    quota: Tensor | None
    num_samples: int
    budget: int
    rule: str
    recall: Tensor | None = None
    keep: str = "random"
    seed: int = 0
    tables: tuple[str, ...] = ()
    sql: str = ""
    path: Path | None = None

    def __len__(self) -> int:
        return self.budget

    @property
    def density(self) -> float:
        """Fraction of all rows that is kept."""
        return self.budget / self.num_samples

    def rows(self) -> list[tuple[str, int, float | None, int | None]]:
        """Return name, size, recall and rows kept of every class; None for unknown values."""
        unknown: list[Any] = [None] * len(self.classes)
        recall = unknown if self.recall is None else self.recall.tolist()
        quota = unknown if self.quota is None else self.quota.tolist()
        names = [" / ".join(map(str, cell)) for cell in self.classes]
        return list(zip(names, self.sizes.tolist(), recall, quota, strict=True))

    def to_json(self) -> str:
        """Return all but the SQL as JSON."""
        keys = ("label", "group")
        classes: list[dict[str, Any]] = []
        for cell, (_, size, recall, kept) in zip(self.classes, self.rows(), strict=True):
            known = None if recall is None or recall != recall else recall  # JSON has no NaN
            own = {"size": size, "recall": known, "kept": kept}
            classes.append({**dict(zip(keys, cell, strict=False)), **own})
        record = {
            "tables": list(self.tables),
            "num_samples": self.num_samples,
            "kept": self.budget,
            "density": self.density,
            "quota": self.rule,
            "keep": self.keep,
            "seed": self.seed,
            "ids": None if self.path is None else self.path.name,
            "classes": classes,
        }
        return json_text(FORMAT, record)

    def save_summary(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, whole or not at all."""
        write_whole(path, lambda name: name.write_text(self.to_json(), encoding="utf-8"))
