"""How often the bounds of `statistics` hold: 10,000 simulations each, nominal 95 %, also when stopped at the worst moment.

    python benchmarks/coverage.py [--simulations 10000] [--seed 0] [--json coverage.json]

A bound of :func:`~lightning_fairprune.statistics.loss_bounds` rises with the order of the outcomes, so it holds for all
outcomes from one on: that one is looked for, in place of a bound for each simulation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fairprune import statistics

LEVEL = 0.95
Ints = NDArray[np.int64]


class Coverage(NamedTuple):
    """How often a bound held."""

    name: str
    held: float
    note: str = ""


def order(lost: Ints, gained: Ints, alpha: float) -> NDArray[np.float64]:
    """Returns what `loss_bounds` orders outcomes by: equal orders have equal bounds."""
    z = -torch.special.ndtri(torch.tensor(alpha, dtype=torch.float64)).item()
    return np.asarray(lost - gained + z * np.sqrt(lost + gained + z * z / 4))


def holds(lost: Ints, gained: Ints, n: int, loss: float, alpha: float) -> NDArray[np.bool_]:
    """Whether the bound of each outcome is at least `loss`."""
    orders = order(lost, gained, alpha)
    found, where = np.unique(orders, return_index=True)
    low, high = 0, len(found)  # all from `high` on hold, none before `low`
    while low < high:
        middle = (low + high) // 2
        i = where[middle]
        pair = ([int(lost.flat[i])], [int(gained.flat[i])], [n])
        if statistics.loss_bounds(*pair, level=1 - alpha).worst >= loss:
            high = middle
        else:
            low = middle + 1
    return orders >= (found[high] if high < len(found) else np.inf)


def changes(
    generator: np.random.Generator, n: int, shares: tuple[float, float], size: tuple[int, ...]
) -> tuple[Ints, Ints]:
    """Returns lost and gained samples of n."""
    found = generator.multinomial(n, [*shares, 1 - sum(shares)], size)
    return found[..., 0], found[..., 1]


def of_pairs(generator: np.random.Generator, simulations: int) -> Iterator[Coverage]:
    """One class, both answers known."""
    for n, lost, gained in (
        (50, 0.1, 0.06),
        (200, 0.05, 0.03),
        (500, 0.05, 0.02),
        (500, 0.12, 0.1),
        (500, 0.02, 0.0),
        (1000, 0.3, 0.25),
        (5000, 0.03, 0.03),
    ):
        b, c = changes(generator, n, (lost, gained), (simulations,))
        held = holds(b, c, n, lost - gained, 1 - LEVEL).mean()
        wald = b - c + 1.645 * np.sqrt(np.maximum(b + c - (b - c) ** 2 / n, 0))
        usual = (wald / n >= lost - gained).mean()
        name = f"paired, {n} samples, {lost:g} lost, {gained:g} gained"
        yield Coverage(name, held, f"normal approximation {usual:.4f}")


def of_classes(generator: np.random.Generator, simulations: int) -> Iterator[Coverage]:
    """Ten classes of 500: all bounds at once, and the one of the sentence."""
    n, k, same = 500, 10, (0.05, 0.02)
    b, c = changes(generator, n, same, (simulations, k))
    loss, alpha = same[0] - same[1], 1 - LEVEL
    yield Coverage("paired, 10 classes, all at once", holds(b, c, n, loss, alpha / k).all(1).mean())
    worst = holds(b, c, n, loss, alpha).any(1).mean()
    yield Coverage("paired, the worst, 10 classes that lost alike", worst, "may hold more often")
    b[:, 1:], c[:, 1:] = changes(generator, n, (0.005, 0.02), (simulations, k - 1))
    yield Coverage("paired, the worst, one class lost", holds(b, c, n, loss, alpha).any(1).mean())


def of_counts(generator: np.random.Generator, simulations: int) -> Iterator[Coverage]:
    """One class, its counts alone known: the least agreement that is possible, and one that is usual."""
    n = 500
    for name, lost, gained, right in (("least", 0.45, 0.4, 0.0), ("usual", 0.05, 0.03, 0.8)):
        found = generator.multinomial(
            n, [lost, gained, right, 1 - lost - gained - right], simulations
        )
        before, now = found[:, 0] + found[:, 2], found[:, 1] + found[:, 2]
        most = np.minimum(before, n - now)
        held = holds(most, most - before + now, n, lost - gained, 1 - LEVEL).mean()
        note = "" if name == "least" else "holds more often: which samples changed is unknown"
        yield Coverage(f"from counts, {name} agreement", held, note)


def of_shares(generator: np.random.Generator, simulations: int) -> Iterator[Coverage]:
    """Clopper-Pearson, ten classes at once."""
    for n, p in ((50, 0.9), (500, 0.9), (500, 0.99), (5000, 0.6)):
        s = torch.from_numpy(generator.binomial(n, p, (simulations, 10)))
        trials = torch.full_like(s, n)
        low, high = statistics.clopper_pearson(s, trials, 1 - (1 - LEVEL) / 10)
        held = ((low <= p) & (p <= high)).all(1).double().mean().item()
        yield Coverage(f"Clopper-Pearson, 10 classes, {n} samples, recall {p:g}", held)


def of_sequences(generator: np.random.Generator, simulations: int) -> Iterator[Coverage]:
    """New samples; stopped at the first moment at which the interval is wrong."""
    for n, p in ((500, 0.5), (1000, 0.5), (1000, 0.9), (1000, 0.99)):
        trials = torch.arange(1, n + 1)
        held = naive = 0.0
        for part in np.array_split(np.arange(simulations), math.ceil(simulations * n / 2_000_000)):
            s = torch.from_numpy((generator.random((len(part), n)) < p).cumsum(1))
            # A share is outside exactly where 1 / alpha is exceeded; the ends are the table of all counts.
            low, high = _table(n)
            at = (trials - 1).expand_as(s), s
            held += float(((low[at] <= p) & (p <= high[at])).all(1).sum())
            reach = 1.96 * (s * (trials - s)).double().sqrt() / trials**1.5
            looked = ((s / trials - p).abs() <= reach) | (trials < 30)
            naive += float(looked.all(1).sum())
        name = f"confidence sequence, {n} moments, recall {p:g}, worst moment"
        yield Coverage(name, held / simulations, f"usual interval {naive / simulations:.4f}")


_TABLES: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def _table(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the ends for every number of trials up to n and of successes, [n, n + 1]."""
    if n not in _TABLES:
        trials = torch.arange(1, n + 1)[:, None].expand(n, n + 1)
        right = torch.minimum(torch.arange(n + 1).expand(n, n + 1), trials)
        _TABLES[n] = statistics.confidence_sequence(right, trials, LEVEL)
    return _TABLES[n]


def of_epochs(generator: np.random.Generator, simulations: int) -> Iterator[Coverage]:
    """One validation set of 500, evaluated after each of 30 epochs of a model that changes; the worst epoch."""
    n, epochs = 500, 30
    counts = torch.arange(n + 1)
    ends = [
        statistics.clopper_pearson(
            counts, torch.full_like(counts, n), statistics.level_at_epoch(LEVEL, t)
        )
        for t in range(1, epochs + 1)
    ]
    usual = statistics.clopper_pearson(counts, torch.full_like(counts, n), LEVEL)
    for name, kept in (("no memory", 0.0), ("nine of ten answers stay", 0.9)):
        held, plain = np.ones(simulations, bool), np.ones(simulations, bool)
        hardness = generator.random((simulations, n), dtype=np.float32)
        for t in range(1, epochs + 1):
            fresh = generator.random((simulations, n), dtype=np.float32)
            new = generator.random((simulations, n), dtype=np.float32) >= kept
            hardness = np.where(new, fresh, hardness)
            recall = 0.9 - 0.4 / t
            s = (hardness < recall).sum(1)
            for (low, high), still in ((ends[t - 1], held), (usual, plain)):
                still &= (low.numpy()[s] <= recall) & (recall <= high.numpy()[s])
        note = f"without the union {plain.mean():.4f}"
        yield Coverage(f"30 epochs of one validation set, {name}, worst epoch", held.mean(), note)


PARTS: tuple[Callable[[np.random.Generator, int], Iterator[Coverage]], ...] = (
    of_pairs,
    of_classes,
    of_counts,
    of_shares,
    of_sequences,
    of_epochs,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: list[Coverage] = []
    for part in PARTS:
        start = time.perf_counter()
        for one in part(np.random.default_rng(given.seed), given.simulations):
            found.append(one)
            print(f"{one.held:.4f}  {one.name}{f'  ({one.note})' if one.note else ''}", flush=True)
        print(f"        {time.perf_counter() - start:.1f} s")
    if given.json is not None:
        given.json.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
