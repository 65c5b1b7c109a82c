from __future__ import annotations

import functools
import math

import oracles_scores
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fairprune import Dynamics, scores, signals
from lightning_fairprune._observe.needs import required_signals
from lightning_fairprune._observe.recorder import EpochRecorder

NAN = math.nan
EPOCHS = 12

every_score = pytest.mark.parametrize("name", scores.__all__)

# Wrong throughout and sure of it is neither changing nor undecided: these do not rank by error.
NOT_BY_ERROR = {"dynamic_uncertainty", "entropy", "tdds", "variability"}


def from_logits(logits: torch.Tensor, target: torch.Tensor, *, half: bool = False) -> Dynamics:
    """The record of logits [E, N, C]."""
    e, n, c = logits.shape
    values = signals.compute(signals.__all__, logits.reshape(-1, c), target.repeat(e))
    p = [[oracles_scores.softmax(z) for z in row] for row in logits.tolist()]
    pairs = [(p[max(k - 1, 0)], p[k]) for k in range(e)]
    moves = [[*map(oracles_scores.move, before, after)] for before, after in pairs]
    values["move"] = torch.tensor(moves, dtype=values["loss"].dtype).flatten()
    if half:
        values = {k: v.half() if v.is_floating_point() else v for k, v in values.items()}
    return Dynamics(target=target, signals={k: v.view(e, n) for k, v in values.items()})


def random_record(n: int = 37, *, half: bool = False) -> Dynamics:
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(EPOCHS, n, 4, generator=generator)
    return from_logits(logits, torch.randint(4, (n,), generator=generator), half=half)


def one_signal(name: str, rows: list[list[float | None]]) -> Dynamics:
    """The record of one signal, given per sample [N][E], None where it was not observed."""
    observed = torch.tensor([[v is not None for v in row] for row in rows]).T
    values = torch.tensor([[0.0 if v is None else float(v) for v in row] for row in rows]).T
    return Dynamics(
        target=torch.zeros(len(rows), dtype=torch.int64),
        signals={name: values.bool() if name == "correct" else values},
        observed=observed,
    )


@every_score
def test_one_finite_number_per_sample_and_in_half_precision_nearly_the_same(name):
    got, half = (getattr(scores, name)(random_record(half=half)) for half in (False, True))
    assert got.shape == (37,)
    assert got.dtype == half.dtype == torch.float32
    assert got.isfinite().all()
    # 11 bits of mantissa on values of at most about 16
    torch.testing.assert_close(half, got, rtol=1e-3, atol=1e-3)


@every_score
def test_samples_that_change_places_take_their_scores_along(name):
    seen = random_record(n=4099)  # more than are computed at a time
    order = torch.randperm(seen.num_samples, generator=torch.Generator().manual_seed(1))
    moved = Dynamics(
        target=seen.target[order],
        signals={name: values[:, order] for name, values in seen.signals.items()},
    )
    got = getattr(scores, name)(moved)
    assert torch.equal(got, getattr(scores, name)(seen)[order])


@every_score
def test_equal_samples_tie_wherever_they_stand(name):
    seen = random_record(n=1)
    many = Dynamics(
        target=seen.target.repeat(1001),
        signals={name: values.repeat(1, 1001) for name, values in seen.signals.items()},
    )
    assert len(getattr(scores, name)(many).unique()) == 1


@every_score
def test_the_names_of_the_classes_do_not_matter(name):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(EPOCHS, 20, 3, generator=generator)
    target = torch.randint(3, (20,), generator=generator)
    renamed = from_logits(logits[:, :, [1, 2, 0]], torch.tensor([2, 0, 1])[target])
    score = getattr(scores, name)
    torch.testing.assert_close(score(renamed), score(from_logits(logits, target)))


@pytest.mark.parametrize("name", sorted(set(scores.__all__) - NOT_BY_ERROR))
def test_always_wrong_is_harder_than_always_right(name):
    noise = torch.rand(EPOCHS, 2, 3, generator=torch.Generator().manual_seed(3))
    target = torch.tensor([0, 1])
    noise[:, :, 0] += 4  # class 0 is predicted throughout
    right, wrong = getattr(scores, name)(from_logits(noise, target)).tolist()
    assert wrong > right


@every_score
def test_a_sample_never_observed_is_nan_and_the_others_do_not_notice(name):
    seen = random_record(n=6)
    observed = torch.ones(EPOCHS, 6, dtype=torch.bool)
    observed[:, 4] = False
    holes = Dynamics(target=seen.target, signals=seen.signals, observed=observed)
    expected = getattr(scores, name)(seen)
    expected[4] = NAN
    got = getattr(scores, name)(holes)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@every_score
def test_no_samples_no_scores_and_no_signal_an_error(name):
    assert getattr(scores, name)(random_record(n=0)).shape == (0,)
    signal, _ = oracles_scores.SCORES[name]
    empty = one_signal("mine", [[0.0] * EPOCHS])
    with pytest.raises(ValueError, match=f"'{signal}' was not recorded: there is 'mine'"):
        getattr(scores, name)(empty)


def rows(value: st.SearchStrategy[float], epochs: int) -> st.SearchStrategy[list]:
    row = st.lists(st.none() | value, min_size=epochs, max_size=epochs)
    return st.lists(row, min_size=1, max_size=4)


def value_of(signal: str) -> st.SearchStrategy[float]:
    if signal == "correct":
        return st.sampled_from([0.0, 1.0])
    return st.floats(0, 1, width=32)


@every_score
@given(data=st.data())
@settings(max_examples=20, deadline=None, database=None)
def test_equals_the_slow_loop(name, data):
    signal, oracle = oracles_scores.SCORES[name]
    observations = data.draw(rows(value_of(signal), EPOCHS))
    got = getattr(scores, name)(one_signal(signal, observations))
    expected = [oracle(row) for row in observations]
    assert got.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)


@given(data=st.data())
@settings(max_examples=20, deadline=None, database=None)
def test_windows_equal_the_slow_loop(data):
    epochs = data.draw(st.integers(2, 7))
    window = data.draw(st.integers(2, epochs))
    observations = data.draw(rows(st.floats(0, 1, width=32), epochs))
    got = scores.dynamic_uncertainty(one_signal("p_true", observations), window).tolist()
    expected = [oracles_scores.dynamic_uncertainty(row, window) for row in observations]
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)
    if epochs > 2:
        window, decay = max(window, 3), data.draw(st.floats(0.01, 1))
        got = scores.tdds(one_signal("move", observations), window, decay).tolist()
        expected = [oracles_scores.tdds(row, window, decay) for row in observations]
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-7, nan_ok=True)
    got = scores.el2n(one_signal("el2n", observations), window=window).tolist()
    expected = [oracles_scores.mean_of_last(row, window) for row in observations]
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)


def test_forgetting_by_hand():
    seen = one_signal(
        "correct",
        [
            [1, 0, 1, 0, 1],  # forgotten twice
            [0, 0, 0, 0, 1],  # learned at the end, never forgotten
            [0, 0, 0, 0, 0],  # never learned: the number of epochs
            [1, None, 0, 1, 1],  # forgotten while nobody looked
            [1, None, 1, None, 1],  # never seen to be wrong
            [None, None, 0, None, None],  # seen once, wrong
            [None, None, None, None, 1],  # seen once, right
            [None, None, None, None, None],
        ],
    )
    assert scores.forgetting(seen).tolist() == pytest.approx(
        [2, 0, 5, 1, 0, 5, 0, NAN], nan_ok=True
    )


def test_forgetting_ignores_what_stands_at_unobserved_places():
    correct = torch.tensor([[False], [True], [False]])
    observed = torch.tensor([[True], [False], [True]])
    seen = Dynamics(target=torch.tensor([0]), signals={"correct": correct}, observed=observed)
    assert scores.forgetting(seen).tolist() == [3]


def test_dynamic_uncertainty_by_hand():
    seen = one_signal(
        "p_true",
        [
            [0.0, 1.0, 1.0, 0.0],  # sqrt(1/2), 0, sqrt(1/2)
            [0.0, 1.0, None, 0.0],  # sqrt(1/2); the other windows hold one value
            [0.0, None, 1.0, None],  # no window holds two values
            [0.1, 0.1, 0.1, 0.1],
        ],
    )
    root = math.sqrt(0.5)
    got = scores.dynamic_uncertainty(seen, window=2).tolist()
    assert got == pytest.approx([2 * root / 3, root, NAN, 0.0], nan_ok=True)
    # windows of three: (0, 1, 1) and (1, 1, 0) have variance 1/3; (0, 1), (1, 0) and (0, 1), (1) a half
    got = scores.dynamic_uncertainty(seen, window=3).tolist()
    assert got == pytest.approx([math.sqrt(1 / 3), root, root, 0.0], nan_ok=True)


def test_one_window_of_all_epochs_counts():
    seen = one_signal("p_true", [[0.0, 0.5, 1.0]])
    assert scores.dynamic_uncertainty(seen, window=3).tolist() == [0.5]


def test_tdds_by_hand():
    move = 0.25 * math.log(2) + 0.75 * math.log(1.5)  # from (.5, .5) to (.25, .75)
    seen = one_signal(
        "move",
        [
            [0.0, 0.0, move, 0.0],  # windows (0, m) and (m, 0)
            [
                9.0,
                0.0,
                0.0,
                move,
            ],  # windows (0, 0) and (0, m): nothing comes before the first epoch
            [0.0, 0.0, move, None],  # the second window has one move
            [0.0, None, 0.0, move],  # no window has two
        ],
    )
    deviation = move / math.sqrt(2)
    got = scores.tdds(seen, window=3, decay=0.75).tolist()
    expected = [deviation, 0.75 / (0.75 + 0.25 * 0.75) * deviation, deviation, NAN]
    assert got == pytest.approx(expected, nan_ok=True)
    # one window: the moves 0, m, 0 have the variance m^2 / 3, and 0, m the one of above
    got = scores.tdds(seen, window=4).tolist()
    assert got == pytest.approx([move / math.sqrt(3)] * 2 + [deviation, NAN], nan_ok=True)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize(("window", "decay"), [(10, 0.9), (4, 0.3), (EPOCHS, 0.5)])
def test_tdds_is_the_published_one_up_to_a_common_factor(classes, window, decay):
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(EPOCHS, 9, classes, generator=generator, dtype=torch.float64)
    seen = from_logits(logits, torch.randint(classes, (9,), generator=generator))
    published = oracles_scores.published_tdds(logits.tolist(), window, decay)
    factor = math.sqrt(window - 2) * (1 - (1 - decay) ** (EPOCHS - window + 1))
    got = (factor * scores.tdds(seen, window, decay).double()).tolist()
    assert got == pytest.approx(published, rel=1e-5)


def training(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [E, N, C] of softmax regression, one step on one batch after the other, and labels."""
    generator = torch.Generator().manual_seed(6)
    target = torch.randint(classes, (200,), generator=generator)
    centre = torch.randn(classes, 8, generator=generator)
    x = centre[target] + torch.randn(200, 8, generator=generator)
    weight, logits = torch.zeros(8, classes), torch.zeros(EPOCHS, 200, classes)
    for epoch in logits:
        for batch in torch.randperm(200, generator=generator).split(20):
            epoch[batch] = x[batch] @ weight
            error = epoch[batch].softmax(1) - torch.nn.functional.one_hot(target[batch], classes)
            weight -= 0.1 * x[batch].T @ error / 20
    return logits, target


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_tdds_of_a_recorded_training_ranks_as_the_published_one(classes):
    logits, target = training(classes)
    recorder = EpochRecorder(200, ("move",))
    for epoch, rows in enumerate(logits):
        for batch in torch.randperm(200).split(30):
            recorder.update(batch, rows[batch], target[batch])
        recorder.finish_epoch(epoch)
    published = torch.tensor(oracles_scores.published_tdds(logits.tolist(), 10, 0.9))
    ours = scores.tdds(recorder.dynamics()).double()
    ranks = torch.stack([published, ours]).argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.999  # with two classes for 5 it was .86


def test_tdds_of_a_record_that_lacks_the_moves():
    seen = one_signal("loss", [[0.5] * 12])
    told = r"'move' was not recorded: there is 'loss'. `tdds` needs .*: record it with"
    with pytest.raises(ValueError, match=told):
        scores.tdds(seen)


def test_a_sample_that_is_quite_sure_moves_a_finite_way():
    logits = torch.tensor([[0.0, 300.0], [300.0, 0.0]] * 3).unsqueeze(1)
    assert scores.tdds(from_logits(logits, torch.tensor([0])), window=6).isfinite().all()


@pytest.mark.parametrize("name", ["dynamic_uncertainty", "variability"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.9999999])
def test_equal_values_have_no_deviation(name, value):
    seen = one_signal("p_true", [[value] * 30])
    assert getattr(scores, name)(seen).tolist() == [0.0]


def test_el2n_window_counts_the_observed_epochs_of_each_sample():
    seen = one_signal("el2n", [[1.0, 0.5, 0.25], [1.0, 0.5, None], [1.0, None, None]])
    assert scores.el2n(seen, window=2).tolist() == [0.375, 0.75, 1.0]
    assert scores.el2n(seen, window=1).tolist() == [0.25, 0.5, 1.0]


def test_means_leave_out_what_was_not_observed():
    seen = one_signal("margin", [[4.0, None, -1.0], [None, 2.0, None]])
    assert scores.aum(seen).tolist() == [-1.5, -2.0]
    assert scores.margin(seen).tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("name", "signal", "lowest"),
    [("el2n", "el2n", 1), ("dynamic_uncertainty", "p_true", 2), ("tdds", "move", 3)],
)
def test_window_out_of_range(name, signal, lowest):
    seen = one_signal(signal, [[0.0] * 4])
    for window in (lowest - 1, -1, 5):
        match = f"`window` must be between {lowest} and the 4 recorded epochs, got {window}"
        with pytest.raises(ValueError, match=match):
            getattr(scores, name)(seen, window=window)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, NAN])
def test_tdds_decay_out_of_range(decay):
    seen = one_signal("move", [[0.0] * 4])
    with pytest.raises(ValueError, match=f"`decay` must be above 0 and at most 1, got {decay}"):
        scores.tdds(seen, window=3, decay=decay)


@every_score
def test_required_signals_of_every_score(name):
    needed = required_signals(getattr(scores, name), num_epochs=EPOCHS)
    assert needed == (oracles_scores.SCORES[name][0],)


def test_required_signals_in_the_order_of_reading():
    def mine(seen: Dynamics) -> torch.Tensor:
        return scores.loss(seen) + scores.el2n(seen) + scores.loss(seen)

    assert required_signals(mine, num_epochs=1) == ("loss", "el2n")


@pytest.mark.parametrize(
    ("score", "needed"),
    [
        (functools.partial(scores.dynamic_uncertainty, window=3), ("p_true",)),
        (lambda seen: seen.signals["margin"].amax(0), ("margin",)),
        (lambda seen: torch.stack(list(seen.signals.values())).sum((0, 1)), tuple(signals.__all__)),
        (lambda seen: seen.target + seen.group, ()),
        (lambda seen: seen.target * len(seen.signals) * ("loss" in seen.signals), ()),
        (lambda seen: seen.observed.sum(0), ()),
    ],
)
def test_required_signals_of_other_callables(score, needed):
    assert required_signals(score, num_epochs=5) == needed


def test_required_signals_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    required_signals(scores.loss, num_epochs=2)
    assert torch.equal(torch.get_rng_state(), before)


def too_flat(seen: Dynamics) -> torch.Tensor:
    return seen.signal("loss").mean()


@pytest.mark.parametrize(
    ("score", "match"),
    [
        (too_flat, r"`score` too_flat must return .*, got torch\.float32 of shape \[\] for 16"),
        (functools.partial(too_flat), "`score` too_flat must return"),
        (lambda seen: seen.signal("correct")[0], r"got torch\.bool of shape \[16\]"),
        (lambda seen: seen.target.tolist(), "got list for 16 samples"),
        (
            scores.dynamic_uncertainty,
            "`score` dynamic_uncertainty fails on 4 made-up epochs of 16 samples: "
            "ValueError: `window` must be between 2 and the 4 recorded epochs, got 10",
        ),
        (lambda seen: seen.signal("mine"), "'mine' was not recorded: there is 'correct', 'el2n'"),
    ],
)
def test_scores_that_cannot_work(score, match):
    with pytest.raises(ValueError, match=match):
        required_signals(score, num_epochs=4)


def test_required_signals_needs_an_epoch():
    with pytest.raises(ValueError, match="`num_epochs` must be at least 1, got 0"):
        required_signals(scores.loss, num_epochs=0)
