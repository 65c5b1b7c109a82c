"""The recalls of one run: class counts of every evaluation, and those of the reference."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_fairprune._files import (
    pack_bits,
    read_json,
    read_tensors,
    run_file,
    text_or_none,
    texts,
    understanding,
    unpack_bits,
    whole_number,
    whole_numbers,
    write_json,
    write_tensors,
)
from lightning_fairprune.counts import Answers, ClassCounts

_KIND = "RecallHistory"
FILES = ("recalls.safetensors", "recalls.json")
GROUPS = "/groups"


def is_of_groups(name: str) -> bool:
    """Whether an evaluation of this name is of groups."""
    return name.endswith(GROUPS)


def printable(name: str) -> str:
    r"""Returns a name with control characters escaped, which could change a terminal or the direction of text.

    Example:
        >>> print(printable("cat\u202egod\x1b[2J"))
        cat\u202egod\x1b[2J
    """
    joiners = "\u200c\u200d"  # of scripts and emoji
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in joiners
        else c
        for c in name
    )


def shortened(name: str, most: int = 60) -> str:
    """Returns a name of at most `most` characters, its middle left out if it is longer.

    Example:
        >>> shortened("a" * 100, 9)
        'aaaa…aaaa'
    """
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[: most - 1 - half]}…{name[len(name) - half :]}"


class Evaluation(NamedTuple):
    """One validation or test.

    Attributes:
        name: of the data: ``"val"``, ``"test"``, ``"val/1"``, the prefix of the logged names; followed by
            ``/groups`` if groups were counted instead of classes.
        epoch: training epoch of the weights, counted from 1; 0 before any.
        step: optimiser steps done before it.
        pruned: whether data or weights were pruned before it.
        counts: the class counts.
    """

    name: str
    epoch: int
    step: int
    pruned: bool
    counts: ClassCounts


@dataclass(frozen=True, slots=True, eq=False)
class RecallHistory:
    """Class counts of every evaluation of a run.

    Args:
        evaluations: in order. Only the last of each name keeps which samples were right.
        class_names: names of the classes, in order; None for their numbers.
        reference: the counts that distortion is relative to, by the name of the data.
        seed: of the run; None if unknown.
        group_names: names of the groups.
        training: the name of the training; None if unknown.

    Raises:
        ValueError: If evaluations of the same data, their reference and the names differ in the number of
            classes.

    Example:
        >>> counts = ClassCounts(torch.tensor([9, 3]), torch.tensor([10, 5]))
        >>> history = RecallHistory((Evaluation("val", 1, 100, False, counts),), ("cat", "dog"))
        >>> history.names
        ('val',)
        >>> history.last("val").counts.recall
        tensor([0.9000, 0.6000], dtype=torch.float64)
    """

    evaluations: tuple[Evaluation, ...] = ()
    class_names: tuple[str, ...] | None = None
    reference: Mapping[str, ClassCounts] = field(default_factory=dict)
    seed: int | None = None
    group_names: tuple[str, ...] | None = None
    training: str | None = None

    def __post_init__(self) -> None:
        last = {e.name: i for i, e in enumerate(self.evaluations)}
        kept = tuple(
            e
            if e.counts.answers is None or last[e.name] == i
            else e._replace(counts=_bare(e.counts))
            for i, e in enumerate(self.evaluations)
        )
        object.__setattr__(self, "evaluations", kept)
        known = dict(self.reference)
        for evaluation in self.evaluations:
            first = known.setdefault(evaluation.name, evaluation.counts)
            if first.num_classes != evaluation.counts.num_classes:
                raise ValueError(
                    f"all evaluations of {evaluation.name!r} must have the same classes, got "
                    f"{first.num_classes} and {evaluation.counts.num_classes}."
                )
        for name, counts in known.items():
            names, what = self.names_of(name), "group" if is_of_groups(name) else "class"
            if names is not None and len(names) != counts.num_classes:
                raise ValueError(
                    f"`{what}_names` must name each of the {counts.num_classes} "
                    f"{what}{'es' if what == 'class' else 's'} of {name!r}, got {len(names)}."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the evaluated data, in order of appearance."""
        return tuple(dict.fromkeys(evaluation.name for evaluation in self.evaluations))

    def names_of(self, name: str) -> tuple[str, ...] | None:
        """Returns the names of the classes of an evaluation, or of its groups."""
        return self.group_names if is_of_groups(name) else self.class_names

    def of(self, name: str) -> tuple[Evaluation, ...]:
        """Returns the evaluations of this name."""
        return tuple(evaluation for evaluation in self.evaluations if evaluation.name == name)

    def last(self, name: str) -> Evaluation:
        """Returns the last evaluation of this name, or raises a ValueError."""
        found = self.of(name)
        if not found:
            raise ValueError(
                f"there is no evaluation of {name!r}, only of {', '.join(self.names) or 'nothing'}."
            )
        return found[-1]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `recalls.safetensors`, the whole history, and a readable `recalls.json`; makes the folder.

        The JSON file holds the last evaluation of each name and the reference, and can be loaded, too.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"reference/{name}": _stacked([c]) for name, c in self.reference.items()}
        for name in self.names:
            found = self.of(name)
            tensors[f"counts/{name}"] = _stacked([e.counts for e in found])
            when = [[e.epoch, e.step, int(e.pruned)] for e in found]
            tensors[f"when/{name}"] = torch.tensor(when)
        order = torch.tensor([self.names.index(e.name) for e in self.evaluations])
        tensors["order"] = order.to(torch.int32)
        answers = self._answers()
        tensors |= {f"answers/{key}": pack_bits(known.right) for key, known in answers.items()}
        called = {"class_names": self.class_names, "group_names": self.group_names}
        about = {**called, "seed": self.seed, "names": self.names, "training": self.training}
        digests = {key: known.digest for key, known in answers.items()}
        metadata = {"history": json.dumps(about), "answers": json.dumps(digests)}
        write_tensors(folder / FILES[0], _KIND, tensors, metadata)
        last = {name: _readable(self.last(name)) for name in self.names}
        reference = {name: _numbers(c) for name, c in self.reference.items()}
        write_json(folder / FILES[1], _KIND, {**about, "last": last, "reference": reference})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RecallHistory:
        """Reads what `save` wrote.

        Args:
            path: the folder of a run, the `folder` of `save`, or one of its two files; the JSON file holds
                the last evaluations only.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, of another kind or version, or contradicts itself.
        """
        path = _find(Path(path))
        if path.suffix == ".json":
            content = read_json(path, _KIND)
            with understanding(path):
                return cls._from_json(content)
        tensors, metadata = read_tensors(path, _KIND)
        with understanding(path):
            found = cls._from_tensors(tensors, json.loads(metadata["history"]))
            digests = json.loads(metadata.get("answers", "{}"))  # earlier releases have none
            return found._with_answers(
                {k: (tensors[f"answers/{k}"], d) for k, d in digests.items()}
            )

    def padded(self, name: str, num_groups: int) -> RecallHistory:
        """Returns the history with empty groups added to the evaluations of `name`."""
        evaluations = tuple(
            e._replace(counts=e.counts.padded(num_groups)) if e.name == name else e
            for e in self.evaluations
        )
        reference = dict(self.reference)
        if name in reference:
            reference[name] = reference[name].padded(num_groups)
        return replace(self, evaluations=evaluations, reference=reference)

    def state_dict(self) -> dict[str, Any]:
        """Returns all but the seed as CPU tensors and primitives, for checkpoints."""
        return {
            "evaluations": [(*e[:4], _stacked([e.counts])[0]) for e in self.evaluations],
            "class_names": None if self.class_names is None else list(self.class_names),
            "group_names": None if self.group_names is None else list(self.group_names),
            "reference": {name: _stacked([c])[0] for name, c in self.reference.items()},
            "answers": {k: (pack_bits(a.right), a.digest) for k, a in self._answers().items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RecallHistory:
        """Returns the history that `state_dict` came from."""
        evaluations = [
            Evaluation(name, epoch, step, pruned, _unstacked(stacked[None])[0])
            for name, epoch, step, pruned, stacked in state["evaluations"]
        ]
        reference = {name: _unstacked(pair[None])[0] for name, pair in state["reference"].items()}
        classes, groups = _called(state)
        found = cls(tuple(evaluations), classes, reference, group_names=groups)
        return found._with_answers(state.get("answers", {}))

    def _answers(self) -> dict[str, Answers]:
        """Returns what is known of single samples, by ``last/NAME`` and ``reference/NAME``."""
        counts = {f"last/{name}": self.last(name).counts for name in self.names}
        counts |= {f"reference/{name}": c for name, c in self.reference.items()}
        return {key: c.answers for key, c in counts.items() if c.answers is not None}

    def _with_answers(self, answers: Mapping[str, tuple[Tensor, str]]) -> RecallHistory:
        """Returns the history with what `_answers` returned, packed."""

        def known(key: str, counts: ClassCounts) -> ClassCounts:
            if key not in answers:
                return counts
            packed, digest = answers[key]
            right = unpack_bits(packed, int(counts.support.sum()))
            return replace(counts, answers=Answers(right, digest))

        last = {name: self.last(name) for name in self.names}
        evaluations = tuple(
            e._replace(counts=known(f"last/{e.name}", e.counts)) if e is last[e.name] else e
            for e in self.evaluations
        )
        reference = {name: known(f"reference/{name}", c) for name, c in self.reference.items()}
        return replace(self, evaluations=evaluations, reference=reference)

    @classmethod
    def _from_tensors(cls, tensors: dict[str, Tensor], about: dict[str, Any]) -> RecallHistory:
        queues = {}
        for name in (names := texts("names", about["names"])):
            counts, when = _unstacked(tensors[f"counts/{name}"]), tensors[f"when/{name}"].tolist()
            pairs = zip(when, counts, strict=True)
            found = [_evaluation(name, epoch, step, p, c) for (epoch, step, p), c in pairs]
            queues[name] = iter(found)
        order = [names[i] for i in tensors["order"].tolist()]
        reference = {
            key.removeprefix("reference/"): _unstacked(tensor)[0]
            for key, tensor in tensors.items()
            if key.startswith("reference/")
        }
        evaluations = tuple(next(queues[name]) for name in order)
        classes, groups = _called(about)
        training = text_or_none(about, "training")
        return cls(evaluations, classes, reference, _seed(about), groups, training)

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> RecallHistory:
        evaluations = [
            _evaluation(name, last["epoch"], last["step"], last["pruned"], _counts(last))
            for name, last in content["last"].items()
        ]
        reference = {name: _counts(numbers) for name, numbers in content["reference"].items()}
        classes, groups = _called(content)
        training = text_or_none(content, "training")
        return cls(tuple(evaluations), classes, reference, _seed(content), groups, training)


def _find(path: Path) -> Path:
    if path.is_dir():
        if file := run_file(path, FILES):
            return file
        raise FileNotFoundError(
            f"There are no recalls in {str(path)!r}: train or test with RecallMonitor and a logger."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {str(path)!r}: give the folder of a run with RecallMonitor and a logger, "
            "or its file of recalls."
        )
    return path


def _bare(counts: ClassCounts) -> ClassCounts:
    """Returns counts that do not say which samples were right."""
    return ClassCounts(counts.tp, counts.support)


def _stacked(counts: list[ClassCounts]) -> Tensor:
    """Returns int32 [E, 2, K], or int64 if the counts need it."""
    stacked = torch.stack([torch.stack([c.tp, c.support]) for c in counts])
    fits = not stacked.numel() or int(stacked.max()) <= torch.iinfo(torch.int32).max
    return stacked.to(torch.int32) if fits else stacked


def _unstacked(stacked: Tensor) -> list[ClassCounts]:
    whole = whole_numbers("counts", stacked)
    return [ClassCounts(tp, support) for tp, support in whole.unbind(0)]


def _numbers(counts: ClassCounts) -> dict[str, Any]:
    return {"tp": counts.tp.tolist(), "support": counts.support.tolist()}


def _readable(evaluation: Evaluation) -> dict[str, Any]:
    counts = evaluation.counts
    summary = {name: getattr(counts, name) for name in ("accuracy", "mean", "worst", "gap", "std")}
    # JSON has no NaN.
    summary = {name: None if value != value else value for name, value in summary.items()}
    when = {name: getattr(evaluation, name) for name in ("epoch", "step", "pruned")}
    return {**when, **summary, **_numbers(counts)}


def _counts(numbers: dict[str, Any]) -> ClassCounts:
    tp, support = (torch.tensor(numbers[k], dtype=torch.int64) for k in ("tp", "support"))
    return ClassCounts(tp, support)


def _called(names: Mapping[str, Any]) -> list[tuple[str, ...] | None]:
    found = [(key, names.get(key)) for key in ("class_names", "group_names")]
    return [None if value is None else texts(key, value) for key, value in found]


def _evaluation(
    name: str, epoch: object, step: object, pruned: object, counts: ClassCounts
) -> Evaluation:
    when = whole_number("epoch", epoch), whole_number("step", step)
    return Evaluation(name, *when, bool(pruned), counts)


def _seed(about: Mapping[str, Any]) -> int | None:
    return None if about["seed"] is None else whole_number("seed", about["seed"])
