"""The grid of an experiment: its cells, each one training or one pass, and their order."""

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
    """One training or pass, finished as a whole or not at all.

    Args:
        kind: ``"query"`` trains a query model, ``"score"`` computes a score with it in a pass over the
            training set; the others train a model of the table.
        seed: of the row.
        name: of the method, baseline or score.
        density: fraction of the samples that is kept.
        member: number of the query model of this seed.
        at: ``"early"`` or ``"end"``, of a score.
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
        member = "" if self.in_table else f"model{self.member}"
        return "-".join(filter(None, [self.kind, self.name, self.at, *self._row(""), member]))

    @property
    def in_table(self) -> bool:
        """Whether it gives a row of the results."""
        return self.kind not in ("query", "score")

    @property
    def label(self) -> str:
        """Its name for people."""
        what = {"query": "query model", "score": f"score {self.name} {self.at}"}
        member = f"model {self.member}" if self.member else ""
        return ", ".join(filter(None, [what.get(self.kind, self.name), *self._row(" "), member]))

    def _row(self, space: str) -> list[str]:
        density = f"density{space}{self.density:g}" if self.density < 1 else ""
        sparsity = f"sparsity{space}{self.sparsity:g}" if self.sparsity else ""
        return [density, sparsity, f"seed{space}{self.seed}"]


def cells_of(experiment: Experiment) -> list[Cell]:
    """Returns the cells in the order of their start: seed by seed, so that a table exists early.

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
        passes = [_passes(m, experiment, seed) for m in experiment.methods.values()]
        scores = dict.fromkeys(itertools.chain.from_iterable(passes))
        found += sorted(scores, key=lambda cell: cell.member)
        for density in experiment.densities:
            found += [Cell("final", seed, name, density) for name in experiment.methods]
            found += [Cell("one_fit", seed, name, density) for name in experiment.one_fit]
        for sparsity in experiment.sparsities:
            found += [Cell("weights", seed, n, sparsity=sparsity) for n in experiment.weights]
    return found


def _passes(method: Method, experiment: Experiment, seed: int) -> list[Cell]:
    """Returns the passes that compute the score of a method."""
    if method.score is None or method.score_on != "pass":
        return []
    name = score_name(method.score)
    count = method.models_of_score or experiment.query.models
    return [Cell("score", seed, name, member=m, at=method.at) for m in range(count)]


def needs(cell: Cell, experiment: Experiment) -> list[Cell]:
    """Returns the cells whose results this one reads."""
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
    """Returns the cells that can be started now, in order."""
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
    """Returns the keys of cells that cannot be started, each with that of a failed cell it needs."""
    found: dict[str, str] = {}
    for cell in cells:  # a cell comes after what it needs
        for need in needs(cell, experiment):
            if need.key in failed or need.key in found:
                found[cell.key] = found.get(need.key, need.key)
                break
    return found
