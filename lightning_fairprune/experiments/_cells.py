"""The grid of an experiment: its cells, each one training or one pass, and what each needs."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_fairprune.experiments._parts import Method, score_name
from lightning_fairprune.experiments._records import Experiment

Kind = Literal["query", "score", "baseline", "final", "one_fit", "weights"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of work that is done as a whole or not at all.

    Args:
        kind: ``"query"`` trains a query model, ``"score"`` passes it over the training set; the others
            train a model of the table.
        seed: of the row.
        name: of the method, baseline or score.
        density: fraction of the samples that is kept.
        member: which of the query models of this seed.
        at: when a score is taken.
        sparsity: fraction of the weights that is removed.

    Example:
        >>> Cell("final", 1, "random+drop", 0.3).key
        'final-random+drop-density0.3-seed1'
        >>> Cell("query", 0).key
        'query-seed0-model0'
        >>> Cell("weights", 2, "magnitude", sparsity=0.9).key
        'weights-magnitude-sparsity0.9-seed2'
    """

    kind: Kind
    seed: int
    name: str = ""
    density: float = 1.0
    member: int = 0
    at: str = ""
    sparsity: float = 0.0

    @property
    def key(self) -> str:
        """The name of its folder."""
        parts = [self.kind, self.name, self.at]
        if self.density < 1:
            parts.append(f"density{self.density:g}")
        if self.sparsity:
            parts.append(f"sparsity{self.sparsity:g}")
        parts.append(f"seed{self.seed}")
        if self.kind in ("query", "score"):
            parts.append(f"model{self.member}")
        return "-".join(filter(None, parts))

    @property
    def in_table(self) -> bool:
        """Whether it ends in a row of the results."""
        return self.kind not in ("query", "score")

    @property
    def label(self) -> str:
        """How people call it."""
        what = {"query": "query model", "score": f"score {self.name} {self.at}"}
        parts = [what.get(self.kind, self.name)]
        if self.density < 1:
            parts.append(f"density {self.density:g}")
        if self.sparsity:
            parts.append(f"sparsity {self.sparsity:g}")
        parts.append(f"seed {self.seed}")
        if self.member:
            parts.append(f"model {self.member}")
        return ", ".join(parts)


def cells_of(experiment: Experiment) -> list[Cell]:
    """Returns the cells in the order in which they are begun: seed by seed, so that a table exists early.

    Example:
        >>> from lightning_fairprune.experiments import build, read_config
        >>> cells = cells_of(build(read_config("digits") | {"densities": [0.3], "seeds": [0]}))
        >>> [cell.label for cell in cells[:4]]
        ['query model, seed 0', 'full, seed 0', 'score el2n early, seed 0', 'random, density 0.3, seed 0']
    """
    found: list[Cell] = []
    for seed in experiment.seeds:
        members = range(experiment.query.models) if experiment.methods else ()
        found += [Cell("query", seed, member=m) for m in members]
        found += [Cell("baseline", seed, name) for name in experiment.baselines]
        found += [cell for m in members for cell in _scores(experiment, seed, m)]
        for density in experiment.densities:
            found += [Cell("final", seed, name, density) for name in experiment.methods]
            found += [Cell("one_fit", seed, name, density) for name in experiment.one_fit]
        for sparsity in experiment.sparsities:
            found += [Cell("weights", seed, n, sparsity=sparsity) for n in experiment.weights]
    return found


def _scores(experiment: Experiment, seed: int, member: int) -> list[Cell]:
    every = (_passes(method, experiment, seed) for method in experiment.methods.values())
    cells = itertools.chain.from_iterable(every)
    return list(dict.fromkeys(cell for cell in cells if cell.member == member))


def _passes(method: Method, experiment: Experiment, seed: int) -> list[Cell]:
    """Returns the passes that the score of a method is taken from."""
    if method.score is None or method.score_on != "pass":
        return []
    name = score_name(method.score)
    count = method.models_of_score or experiment.query.models
    return [Cell("score", seed, name, member=m, at=method.at) for m in range(count)]


def needs(cell: Cell, experiment: Experiment) -> list[Cell]:
    """Returns the cells that must be finished before this one."""
    if cell.kind == "score":
        return [Cell("query", cell.seed, member=cell.member)]
    if cell.kind == "weights":
        return [Cell("baseline", cell.seed, experiment.dense)]
    if cell.kind != "final":
        return []
    members = range(experiment.query.models)
    found = [Cell("query", cell.seed, member=m) for m in members]
    return found + _passes(experiment.methods[cell.name], experiment, cell.seed)


def ready(
    cells: Sequence[Cell],
    experiment: Experiment,
    finished: Collection[str],
    failed: Collection[str],
) -> list[Cell]:
    """Returns the cells that could be begun now, in order, by the keys of those that have ended."""
    return [
        cell
        for cell in cells
        if cell.key not in finished
        and cell.key not in failed
        and all(need.key in finished for need in needs(cell, experiment))
    ]


def blocked(
    cells: Sequence[Cell], experiment: Experiment, failed: Collection[str]
) -> dict[str, str]:
    """Returns the cells that cannot be done, each with the key of a failed cell that it needs."""
    found: dict[str, str] = {}
    for cell in cells:  # a cell comes after what it needs
        for need in needs(cell, experiment):
            if need.key in failed or need.key in found:
                found[cell.key] = found.get(need.key, need.key)
                break
    return found
