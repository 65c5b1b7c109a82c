"""Whether quotas did better than other runs on the same samples: `fairprune check`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_fairprune import cli
from lightning_fairprune.counts import Answers, ClassCounts
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.report import Check, Difference, check, check_main
from lightning_fairprune.statistics import worst_recall_interval


def write(
    folder: Path, shares: list[float], seed: int | None = 0, *, known: bool = True, n: int = 400
) -> Path:
    """A run of which the first part of each class is right."""
    label = torch.arange(3).repeat_interleave(n)
    answers = torch.cat([torch.arange(n) < round(n * share) for share in shares])
    tp, support = label[answers].bincount(minlength=3), label.bincount(minlength=3)
    counts = ClassCounts(tp, support, Answers.of(label, answers) if known else None)
    last = Evaluation("test", 3, 30, True, counts)
    RecallHistory((last,), seed=seed).save(folder / "fairprune")
    return folder


def seeds(folder: Path, worst: list[float], first: int = 0) -> Path:
    for i, share in enumerate(worst):
        write(folder / str(i), [share, 0.8, 0.9], first + i)
    return folder


@pytest.mark.parametrize(
    ("run", "verdict", "status"),
    [
        ([0.8, 0.8, 0.8], "better", 0),
        ([0.3, 0.8, 0.9], "worse", 1),
        ([0.75, 0.75, 0.6], "traded", 0),
        ([0.61, 0.79, 0.9], "not told apart", 0),
    ],
)
def test_verdicts(tmp_path: Path, run: list[float], verdict: str, status: int) -> None:
    reference = [0.3, 0.95, 0.99] if verdict == "traded" else [0.6, 0.8, 0.9]
    ours = write(tmp_path / "run", run)
    others = write(tmp_path / "random", reference, n=400)
    found = check(ours, others)
    assert found.verdict == verdict
    assert found.over == "samples"
    assert check_main([str(ours), "--against", str(others)]) == status


def test_over_samples_the_worst_is_exact_and_the_average_paired(tmp_path: Path) -> None:
    ours = write(tmp_path / "run", [0.7, 0.8, 0.9])
    found = check(ours, write(tmp_path / "random", [0.6, 0.8, 0.9]))
    n = [400] * 3
    low, high = worst_recall_interval([280, 320, 360], n, 0.975)
    low_of, high_of = worst_recall_interval([240, 320, 360], n, 0.975)
    expected = Difference(pytest.approx(0.1), low - high_of, high - low_of)
    assert found.worst == expected
    # 40 samples of one class changed, none of the others.
    variance = ((40.5 / 400 - 0.1**2) / 400 + 2 * (0.5 / 400) / 400) / 9
    reach = 1.96 * math.sqrt(variance)
    assert found.average.high - found.average.difference == pytest.approx(reach, rel=1e-3)
    alone = check(
        write(tmp_path / "a", [0.7, 0.8, 0.9], known=False),
        write(tmp_path / "b", [0.6, 0.8, 0.9], known=False),
    )
    assert alone.worst == found.worst
    assert alone.average.high > found.average.high


@pytest.mark.parametrize("first", [0, 7])
def test_over_seeds_intervals_are_those_of_t_tests(tmp_path: Path, first: int) -> None:
    ours, others = [0.70, 0.73, 0.71], [0.60, 0.61, 0.65]
    seeds(tmp_path / "run", ours)
    seeds(tmp_path / "random", others, first)
    found = check(tmp_path / "run", tmp_path / "random")
    assert found.over == "seeds"
    if first == 0:
        ends = stats.ttest_rel(ours, others).confidence_interval(0.95)
    else:
        ends = stats.ttest_ind(ours, others, equal_var=False).confidence_interval(0.95)
    assert (found.worst.low, found.worst.high) == pytest.approx((ends.low, ends.high))
    assert found.runs == (3, 3)


def test_seeds_that_are_all_alike_have_no_spread(tmp_path: Path) -> None:
    found = check(seeds(tmp_path / "run", [0.7, 0.7]), seeds(tmp_path / "o", [0.6, 0.6], 5))
    assert found.worst == Difference(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))


def test_the_command_says_a_sentence_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write(tmp_path / "run", [0.8, 0.8, 0.9])
    arguments = ["check", str(ours), "--against", str(write(tmp_path / "o", [0.6, 0.8, 0.9]))]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out.strip()
    assert said.startswith("The quotas did better: worst class +20.0 points (")
    assert said.endswith("95 % intervals over samples, two models.")
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sentence"] == said
    assert found["verdict"] == "better"
    assert found["worst"]["difference"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("same", "must differ from those of `against`"),
        ("one side", "one run on either side, or two or more, got 1 and 2"),
        ("other data", "must have been evaluated on the same data"),
        ("level", "`level` must be between 0 and 1"),
        ("missing", "There is no folder"),
    ],
)
def test_what_cannot_be_compared_is_named(
    tmp_path: Path, case: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, more = write(tmp_path / "run", [0.8, 0.8, 0.9]), []
    others: Any = {
        "same": lambda: ours,
        "one side": lambda: seeds(tmp_path / "o", [0.6, 0.7]),
        "other data": lambda: write(tmp_path / "o", [0.6, 0.7, 0.8], n=200),
        "level": lambda: write(tmp_path / "o", [0.6, 0.7, 0.8]),
        "missing": lambda: tmp_path / "nothing",
    }[case]()
    if case == "level":
        more = ["--level", "1"]
    with pytest.raises(SystemExit) as stopped:
        check_main([str(ours), "--against", str(others), *more])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_models_that_are_alike_are_rarely_told_apart() -> None:
    """Two draws of the same recalls: at most one in twenty, whichever class is worst."""
    from lightning_fairprune.report._gate import _over_samples

    generator = torch.Generator().manual_seed(0)
    n = torch.full((10,), 200)

    def drawn(recall: Tensor) -> ClassCounts:
        return ClassCounts(torch.binomial(n.double(), recall, generator=generator).long(), n)

    wrong = {"worst": 0, "average": 0}
    for i in range(400):
        recall = torch.full((10,), 0.7, dtype=torch.float64)
        recall[: i % 10] = 0.8
        for name, found in zip(
            wrong, _over_samples(drawn(recall), drawn(recall), 0.95), strict=True
        ):
            wrong[name] += found.side != 0
    assert wrong["worst"] <= 8
    assert wrong["average"] <= 32


def test_a_verdict_takes_both_recalls() -> None:
    up, down, none = Difference(0.1, 0.05, 0.2), Difference(-0.1, -0.2, -0.05), Difference(0, -1, 1)
    cases = {
        (up, none): "better",
        (none, down): "worse",
        (up, down): "traded",
        (none, none): "not told apart",
        (down, down): "worse",
    }
    for (worst, average), verdict in cases.items():
        assert Check("test", "seeds", (2, 2), 0.95, worst, average).verdict == verdict
