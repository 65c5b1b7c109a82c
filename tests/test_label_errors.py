"""Wrong labels per class: values by hand, a slow loop, and what all estimates must keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_fairprune import Dynamics, label_errors, signals
from lightning_fairprune.label_errors import (
    LabelErrors,
    confident_joint,
    estimate,
    suspects,
    wrong_labels,
)


def slow_joint(probabilities: list[list[float]], target: list[int]) -> list[list[int]]:
    """Equations 1 and 2 of the paper, one sample at a time."""
    classes = range(len(probabilities[0]))
    thresholds = []
    for j in classes:
        own = [p[j] for p, y in zip(probabilities, target, strict=True) if y == j]
        thresholds.append(max(math.fsum(own) / len(own), 2e-6) if own else math.inf)
    joint = [[0 for _ in classes] for _ in classes]
    for p, y in zip(probabilities, target, strict=True):
        reached = [j for j in classes if p[j] >= thresholds[j] - 1e-6]
        if y >= 0 and reached:
            joint[y][max(reached, key=lambda j: p[j])] += 1
    return joint


def draw(n: int, k: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(-1, k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64)
    logits[torch.arange(n), target.clamp(min=0)] += 1.5
    return logits.softmax(1).to(dtype), target


@pytest.mark.parametrize("seed", range(20))
def test_it_counts_as_the_slow_loop(seed: int) -> None:
    probabilities, target = draw(1 + 7 * seed, 1 + seed % 6, seed)
    found = confident_joint(probabilities, target)
    assert found.tolist() == slow_joint(probabilities.tolist(), target.tolist())
    errors = estimate(probabilities, target)
    assert errors.confident.tolist() == found.sum(1).tolist()
    assert errors.wrong.tolist() == (found.sum(1) - found.diag()).tolist()
    assert errors.sizes.tolist() == target[target >= 0].bincount(minlength=len(found)).tolist()


def test_chunks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, target = draw(100, 4, seed=0)
    whole, ranked = confident_joint(probabilities, target), suspects(probabilities, target)
    monkeypatch.setattr(label_errors, "_MOST_AT_ONCE", 12)
    assert torch.equal(confident_joint(probabilities, target), whole)
    assert torch.equal(suspects(probabilities, target), ranked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_count_as_their_own_values(dtype: torch.dtype) -> None:
    probabilities, target = draw(300, 5, seed=1, dtype=dtype)
    found = confident_joint(probabilities, target)
    assert torch.equal(found, confident_joint(probabilities.double(), target))


def test_a_class_reached_alone_counts_though_another_is_likelier() -> None:
    """The argmax is over the classes that reach their thresholds, .8 .15 .4: the last sample is of class 1."""
    probabilities = torch.tensor(
        [[0.8, 0.1, 0.1], [0.85, 0.15, 0.0], [0.4, 0.2, 0.4], [0.75, 0.2, 0.05]]
    )
    target = torch.tensor([0, 1, 2, 0])
    # Thresholds .775, .15 and .4.
    assert confident_joint(probabilities, target).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_rank_by_hand() -> None:
    probabilities = torch.tensor(
        [[0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]]
    )
    target = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    # Thresholds .42 and .6.
    assert suspects(probabilities, target).tolist() == [0, 2, 1]
    assert suspects(probabilities, target, by="confidence").tolist() == [0, 2, 1]
    errors = estimate(probabilities, target)
    assert errors.likely.tolist() == [1, 1, 1]
    assert errors.share.tolist() == [0.6, 0.0]
    assert errors.count.tolist() == [3.0, 0.0]


def test_margin_and_confidence_rank_differently() -> None:
    probabilities = torch.tensor([[0.3, 0.7, 0.0], [0.2, 0.4, 0.4], [0.9, 0.05, 0.05]])
    more = torch.tensor([[0.3, 0.4, 0.3], [0.3, 0.3, 0.4]])
    probabilities, target = torch.cat([probabilities, more]), torch.tensor([0, 0, 0, 1, 2])
    assert suspects(probabilities, target).tolist() == [0, 1]
    assert suspects(probabilities, target, by="confidence").tolist() == [1, 0]


def test_a_class_without_samples_is_in_no_column() -> None:
    """Zero-size classes broke other implementations; a probability for them is no evidence."""
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]])
    errors = estimate(probabilities, torch.tensor([0, 0, 0]))
    assert confident_joint(probabilities, torch.tensor([0, 0, 0])).tolist() == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert errors.sizes.tolist() == [3, 0, 0]
    assert errors.share.isnan().tolist() == [False, True, True]
    low, high = errors.interval()
    assert (low[1:].tolist(), high[1:].tolist()) == ([0, 0], [1, 1])
    assert errors.about(1) == ""


def test_a_class_that_the_model_never_predicts_attracts_no_sample() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])
    assert confident_joint(probabilities[:3], torch.tensor([0, 0, 1])).tolist() == [[2, 0], [1, 0]]
    # All reach the same mean in spite of rounding.
    same = torch.full((7, 3), 1 / 3)
    assert confident_joint(same, torch.tensor([0, 0, 0, 1, 1, 2, 2])).sum() == 7


def test_no_samples() -> None:
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert confident_joint(*nothing).tolist() == [[0] * 3] * 3
    assert suspects(*nothing).tolist() == []
    assert suspects(*nothing, by="confidence").tolist() == []
    unlabelled = torch.full((4, 2), 0.5), torch.full((4,), -1)
    assert confident_joint(*unlabelled).sum() == 0
    assert estimate(*unlabelled).share.isnan().all()


def test_samples_without_a_label_change_nothing() -> None:
    probabilities, target = draw(200, 4, seed=2)
    labelled = (target >= 0).nonzero().squeeze(1)
    assert len(labelled) < 200
    found = confident_joint(probabilities, target)
    assert torch.equal(found, confident_joint(probabilities[labelled], target[labelled]))
    ranked = suspects(probabilities[labelled], target[labelled])
    assert torch.equal(suspects(probabilities, target), labelled[ranked])


def test_wrong_labels_are_counted_and_found() -> None:
    """Probabilities that know the truth but for noise: 30 of the 100 samples labelled 0 are of class 1 or 2."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3).repeat_interleave(100)
    target = truth.clone()
    target[100:115] = target[200:215] = 0
    logits = torch.randn(300, 3, generator=generator)
    logits[torch.arange(300), truth] += 4
    errors = estimate(logits.softmax(1), target)
    low, high = errors.interval()
    assert low[0] < 30 / 130 < high[0]
    assert errors.share[1:].max() < 0.03
    assert (target != truth)[errors.suspects].double().mean() > 0.9
    right = truth[errors.suspects] == errors.likely
    assert right.double().mean() > 0.9


def test_wilson_by_hand() -> None:
    """4 of 10 at z = 1.959964: (.4 + .19207 -+ 1.959964 sqrt(.024 + .0096036)) / 1.384146."""
    ids = torch.arange(4)
    errors = LabelErrors(torch.tensor([12, 4]), torch.tensor([10, 4]), ids, ids * 0, ids * 0 + 1)
    low, high = errors.interval()
    assert float(low[0]) == pytest.approx(0.168180, abs=1e-6)
    assert float(high[0]) == pytest.approx(0.687326, abs=1e-6)
    assert float(low[1]) == 0
    narrow = errors.interval(0.5)
    assert narrow[0][0] > low[0]
    assert narrow[1][0] < high[0]
    assert errors.about(0) == (
        "about 40 % of its labels look wrong (17 to 69 %), most of these like class 1"
    )
    assert errors.about(0, ["cat", "dog"]).endswith("most of these like dog")
    assert errors.about(1) == "about 0 % of its labels look wrong (0 to 49 %)"


@pytest.mark.parametrize(
    ("probabilities", "target", "error", "message"),
    [
        (torch.rand(3), torch.zeros(3).long(), ValueError, r"must be \[N, K\]"),
        (torch.rand(3, 0), torch.zeros(3).long(), ValueError, "K at least 1"),
        (torch.rand(3, 2), torch.zeros(2).long(), ValueError, r"\[3, 2\] and \[2\]"),
        (torch.ones(3, 2).long(), torch.zeros(3).long(), TypeError, "must be floating"),
        (torch.rand(3, 2), torch.zeros(3), TypeError, "must be int64"),
        (torch.rand(3, 2), torch.tensor([0, 1, 2]), ValueError, "below the 2 classes"),
        (torch.tensor([[1.5, -0.5]]), torch.tensor([0]), ValueError, "softmax"),
        (torch.tensor([[math.nan, 1]]), torch.tensor([0]), ValueError, "softmax"),
    ],
)
def test_wrong_arguments(
    probabilities: Tensor, target: Tensor, error: type[Exception], message: str
) -> None:
    for function in (confident_joint, suspects, estimate):
        with pytest.raises(error, match=message):
            function(probabilities, target)


def test_an_unknown_rank_is_an_error() -> None:
    with pytest.raises(ValueError, match="'margin' or 'confidence'"):
        suspects(torch.rand(2, 2), torch.tensor([0, 1]), by="loss")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sizes": torch.tensor([5.0, 5.0])}, TypeError, "`sizes` must be int64"),
        ({"sizes": torch.tensor([5])}, ValueError, r"\[K\]"),
        ({"likely": torch.tensor([1, 1, 1])}, ValueError, r"\[S\]"),
        ({"likely": torch.tensor([1, 2])}, ValueError, r"\[0, 2\)"),
        ({"given": torch.tensor([0, -1])}, ValueError, r"\[0, 2\)"),
        ({"confident": torch.tensor([1, 3])}, ValueError, "at least as many"),
        ({"confident": torch.tensor([6, 3])}, ValueError, "at least as many"),
    ],
)
def test_a_record_that_contradicts_itself(
    change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    values = {
        "sizes": torch.tensor([5, 5]),
        "confident": torch.tensor([3, 3]),
        "suspects": torch.tensor([1, 2]),
        "given": torch.tensor([0, 0]),
        "likely": torch.tensor([1, 1]),
    }
    LabelErrors(**values)
    with pytest.raises(error, match=message):
        LabelErrors(**values | change)


def test_the_level_of_an_interval() -> None:
    errors = estimate(*draw(50, 3, seed=3))
    with pytest.raises(ValueError, match="`level`"):
        errors.interval(1.0)


# ------------------------------------------------------------------------------------- from dynamics


def observe(logits: Tensor, target: Tensor, observed: Tensor | None = None) -> Dynamics:
    """The record of logits [E, N, K]."""
    names = ("loss", "margin", "rival")
    rows = [signals.compute(names, of_epoch, target.clamp(min=0)) for of_epoch in logits]
    return Dynamics(
        target=target,
        signals={name: torch.stack([row[name] for row in rows]) for name in names},
        observed=observed,
    )


def means(logits: Tensor, target: Tensor, observed: Tensor) -> Tensor:
    """Mean probabilities of label and rivals, [N, K], the slow way; NaN for a sample that was never observed."""
    mean = torch.zeros(logits.shape[1:], dtype=torch.float64)
    for i, y in enumerate(target.clamp(min=0).tolist()):
        for p in logits[observed[:, i], i].double().softmax(1):
            rival = max((j for j in range(len(p)) if j != y), key=lambda j: float(p[j]))
            mean[i, y] += p[y]
            mean[i, rival] += p[rival]
    return mean / observed.sum(0).unsqueeze(1)


@pytest.mark.parametrize("seed", range(8))
def test_recorded_signals_give_the_estimate_of_mean_probabilities(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    epochs, n, k = 1 + seed, 120, 2 + seed % 4
    target = torch.randint(-1, k, (n,), generator=generator)
    logits = 2 * torch.randn(epochs, n, k, generator=generator)
    logits[:, torch.arange(n), target.clamp(min=0)] += 1.5
    observed = torch.rand(epochs, n, generator=generator) < 0.8
    found = wrong_labels(observe(logits, target, observed), k)
    p = means(logits, target, observed)
    expected = estimate(p.nan_to_num(0), target.where(observed.any(0), -1))
    assert len(found.suspects)
    for name in ("sizes", "confident", "suspects", "given", "likely"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_two_classes_are_known_in_full() -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, 2, (200,), generator=generator)
    logits = torch.randn(4, 200, 2, generator=generator)
    found = wrong_labels(observe(logits, target))
    expected = estimate(logits.double().softmax(2).mean(0), target)
    assert torch.equal(found.suspects, expected.suspects)
    assert torch.equal(found.confident, expected.confident)


def test_dynamics_of_nothing() -> None:
    target = torch.full((3,), -1)
    found = wrong_labels(observe(torch.randn(2, 3, 2), target, torch.zeros(2, 3).bool()))
    assert found.sizes.sum() == 0
    assert wrong_labels(observe(torch.randn(2, 3, 2), target), 2).sizes.tolist() == [0, 0]


def test_dynamics_without_the_signals_or_with_more_classes() -> None:
    target = torch.tensor([0, 1, 2])
    seen = observe(torch.randn(2, 3, 3), target)
    assert len(wrong_labels(seen, 5).sizes) == 5
    with pytest.raises(ValueError, match="a label or a rival is 2"):
        wrong_labels(seen, 2)
    with pytest.raises(ValueError, match="'loss' was not recorded"):
        wrong_labels(Dynamics(target=target, signals={}))


# ----------------------------------------------------------------------------------- doubtful classes


def shares(wrong: list[int], confident: int = 100) -> LabelErrors:
    given = torch.arange(len(wrong)).repeat_interleave(torch.tensor(wrong))
    n = torch.full((len(wrong),), confident)
    return LabelErrors(n, n, torch.arange(len(given)), given, (given + 1) % len(wrong))


@pytest.mark.parametrize(
    ("wrong", "doubtful"),
    [
        ([0, 0, 0, 0], []),
        ([1, 8, 0, 0], []),  # 4 to 15 %
        ([1, 15, 0, 30], [3, 1]),
        ([30, 32, 28, 31], []),  # all alike
        ([20, 22, 80, 21], [2]),
        ([30, 30, 30, 0], []),
        ([30, 30, 0, 0], [0, 1]),  # of two medians the lower one counts
    ],
)
def test_doubtful_classes_stand_out(wrong: list[int], doubtful: list[int]) -> None:
    assert shares(wrong).doubtful.tolist() == doubtful


def test_few_samples_are_not_doubtful() -> None:
    assert shares([2, 0, 0], confident=5).doubtful.tolist() == [0]
    assert shares([1, 0, 0], confident=5).doubtful.tolist() == []
    assert shares([0], confident=0).doubtful.tolist() == []
