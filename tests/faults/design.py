"""Settings of a Trainer, few enough to run and such that each two levels of two factors occur together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

Setting = dict[str, str]

FACTORS: dict[str, tuple[str, ...]] = {
    "length": ("epochs", "epochs, steps", "steps", "time", "min epochs", "min steps"),
    "train limit": ("all", "7", "0.6"),
    "val limit": ("all", "1", "0.5"),
    "val every": ("epoch", "2 epochs", "half", "3", "5 across", "clock", "clock across"),
    "sanity": ("0", "2", "-1"),
    "accumulate": ("1", "3", "scheduler"),
    "clip": ("none", "norm", "value"),
    "precision": ("32-true", "bf16-mixed", "64-true", "bf16-true"),
    "strategy": ("one", "ddp"),
    "reload": ("0", "1", "2"),
    "weights": ("as trained", "ema", "average", "swa", "finetuning"),
    "tuner": ("none", "rate", "batch size"),
    "callback": ("none", "early stopping", "best", "every step", "by the clock"),
    "logger": ("none", "csv", "tensorboard", "two and rates"),
    "optimisation": ("planned", "epoch", "plateau", "lbfgs", "two by hand", "accumulated by hand"),
    "after": ("continue", "restart"),
    "data": ("datamodule", "module", "loaders", "wrapper"),
    "others": ("none", "recalls", "weights of classes", "pruned weights"),
    "prune": ("drop", "random", "hard", "fraction"),
    "place": ("first", "last"),
}

# What Lightning does not do, with pruning or without: a level, and those of other factors that it excludes.
EXCLUDED: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    # It has no clipping, accumulation or search for a rate with optimisation by hand.
    ("optimisation", "two by hand"): {
        "accumulate": ("3", "scheduler"),
        "clip": ("norm", "value"),
        "tuner": ("rate",),
        "weights": ("swa", "finetuning"),
    },
    ("optimisation", "accumulated by hand"): {
        "accumulate": ("3", "scheduler"),
        "clip": ("norm", "value"),
        "tuner": ("rate",),
        "weights": ("swa", "finetuning"),
    },
    ("optimisation", "lbfgs"): {
        "accumulate": ("3", "scheduler"),
        "precision": ("bf16-mixed", "bf16-true"),
        "weights": ("swa", "finetuning"),
    },
    # A schedule of two groups was made for one.
    ("optimisation", "planned"): {"weights": ("finetuning",)},
    ("optimisation", "epoch"): {"weights": ("finetuning",)},
    # Batches of loaders that are given are as they are.
    ("tuner", "batch size"): {"data": ("loaders",), "strategy": ("ddp",)},
    ("tuner", "rate"): {"strategy": ("ddp",)},
    # After the last epoch SWA counts batches anew without gradients, which cannot be clipped by value.
    ("weights", "swa"): {"length": ("steps",), "strategy": ("ddp",), "clip": ("value",)},
    ("weights", "finetuning"): {"strategy": ("ddp",)},
    ("length", "steps"): {"prune": ("fraction",)},
}


def excluded(a: tuple[str, str], b: tuple[str, str]) -> bool:
    """Whether two levels cannot come together."""
    return b[1] in EXCLUDED.get(a, {}).get(b[0], ()) or a[1] in EXCLUDED.get(b, {}).get(a[0], ())


def settings(count: int, seed: int = 0) -> list[Setting]:
    """Returns so many settings; the first cover all pairs of levels, the others as many triples as they can.

    Greedy: of some random settings the one that adds most. `ddp`, which takes long, is in those for pairs only.
    """
    draw, found = random.Random(seed), []
    pairs = {pair for pair in itertools.combinations(_levels(), 2) if _possible(pair)}
    triples: set[tuple[tuple[str, str], ...]] = set()
    while len(found) < count:
        start = draw.choice(sorted(pairs)) if pairs else (("strategy", "one"),)
        offered = [_completed(start, draw) for _ in range(20 if pairs else 10)]
        if pairs:
            best = max(offered, key=lambda it: len(pairs.intersection(_subsets(it, 2))))
        else:
            best = max(offered, key=lambda it: sum(t not in triples for t in _subsets(it, 3)))
        pairs.difference_update(_subsets(best, 2))
        triples.update(_subsets(best, 3))
        found.append(best)
    assert not pairs, f"{count} settings do not cover {len(pairs)} pairs"
    return found


def _levels() -> list[tuple[str, str]]:
    return [(factor, level) for factor, levels in FACTORS.items() for level in levels]


def _possible(pair: tuple[tuple[str, str], ...]) -> bool:
    a, b = pair
    return a[0] != b[0] and not excluded(a, b)


def _subsets(setting: Setting, size: int) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.combinations([(factor, setting[factor]) for factor in FACTORS], size)


def _completed(start: tuple[tuple[str, str], ...], draw: random.Random) -> Setting:
    """Returns a random setting with these levels."""
    while True:
        setting = dict(start)
        others = [factor for factor in FACTORS if factor not in setting]
        for factor in draw.sample(others, len(others)):
            fitting = [
                level
                for level in FACTORS[factor]
                if not any(excluded((factor, level), one) for one in setting.items())
            ]
            if not fitting:
                break
            # One process in most: the other takes seconds.
            rare = factor == "strategy" and draw.random() < 0.9
            setting[factor] = fitting[0] if rare else draw.choice(fitting)
        else:
            return setting
