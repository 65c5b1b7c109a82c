from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lightning_fairprune import Dynamics
from lightning_fairprune._files import pack_bits, unpack_bits, write_tensors

NAN = torch.nan


def record(n: int = 11, e: int = 3, *, group: bool = True) -> Dynamics:
    generator = torch.Generator().manual_seed(n)
    values = torch.rand(e, n, generator=generator)
    return Dynamics(
        target=torch.arange(n) % 3 - 1,
        signals={
            "p_true": values.half(),
            "loss": values * 3,
            "mine": values.double(),
            "brain": values.bfloat16(),
            "correct": values > 0.5,
        },
        group=torch.arange(n) % 2 if group else None,
        observed=values < 0.8,
    )


def assert_same(a: Dynamics, b: Dynamics) -> None:
    pairs = [(a.target, b.target), (a.observed, b.observed)]
    pairs += [(a.signals[name], b.signals[name]) for name in a.signals]
    assert list(a.signals) == sorted(b.signals, key=list(a.signals).index)
    assert (a.group is None) == (b.group is None)
    if a.group is not None and b.group is not None:
        pairs.append((a.group, b.group))
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


# ---------------------------------------------------------------------------------- the record


def test_sizes():
    seen = record(11, 3)
    assert (seen.num_samples, seen.num_epochs) == (11, 3)


def test_nan_in_any_float_signal_means_unobserved():
    seen = Dynamics(
        target=torch.tensor([0, 1, 2]),
        signals={
            "loss": torch.tensor([[1.0, NAN, 1.0]]),
            "el2n": torch.tensor([[1.0, 1.0, NAN]]),
            "correct": torch.tensor([[True, True, True]]),
        },
    )
    assert seen.observed.tolist() == [[True, False, False]]
    assert seen.signal("loss").isnan().tolist() == [[False, True, True]]
    assert seen.signal("el2n").isnan().tolist() == [[False, True, True]]


def test_without_a_float_signal_everything_is_observed():
    seen = Dynamics(target=torch.tensor([0]), signals={"correct": torch.tensor([[True], [False]])})
    assert seen.observed.tolist() == [[True], [True]]


def test_unobserved_values_are_blanked_in_a_copy():
    values = torch.tensor([[1.0, 2.0]])
    seen = Dynamics(
        target=torch.tensor([0, 1]),
        signals={"loss": values},
        observed=torch.tensor([[True, False]]),
    )
    assert seen.signal("loss").isnan().tolist() == [[False, True]]
    assert values.tolist() == [[1.0, 2.0]]


def test_observed_values_are_held_not_copied():
    values = torch.ones(2, 3)
    seen = Dynamics(target=torch.arange(3), signals={"loss": values})
    assert seen.signals["loss"].data_ptr() == values.data_ptr()


def test_a_later_change_of_the_callers_dict_changes_nothing():
    signals = {"loss": torch.ones(1, 1)}
    seen = Dynamics(target=torch.tensor([0]), signals=signals)
    signals.clear()
    assert list(seen.signals) == ["loss"]


def test_gradients_are_dropped():
    seen = Dynamics(
        target=torch.tensor([0]), signals={"loss": torch.ones(1, 1, requires_grad=True)}
    )
    assert not seen.signal("loss").requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signal_is_float32_whatever_is_stored(dtype):
    values = torch.tensor([[0.5]], dtype=dtype)
    seen = Dynamics(target=torch.tensor([0]), signals={"loss": values})
    assert seen.signals["loss"].dtype == dtype
    assert seen.signal("loss").dtype == torch.float32


def test_correct_stays_bool():
    assert record().signal("correct").dtype == torch.bool


def test_a_signal_that_was_not_recorded():
    with pytest.raises(ValueError, match=r"'el2n' was not recorded: there is 'p_true', 'loss', "):
        record().signal("el2n")
    with pytest.raises(ValueError, match="'el2n' was not recorded: there is no signal"):
        Dynamics(target=torch.tensor([0]), signals={}).signal("el2n")


def test_nothing_recorded_has_no_epochs():
    seen = Dynamics(target=torch.tensor([-1, -1]), signals={})
    assert (seen.num_samples, seen.num_epochs) == (2, 0)


def test_no_samples():
    seen = Dynamics(target=torch.empty(0, dtype=torch.int64), signals={"loss": torch.empty(4, 0)})
    assert (seen.num_samples, seen.num_epochs) == (0, 4)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda seen: pickle.loads(pickle.dumps(seen))])
def test_can_be_copied(again):
    assert_same(record(), again(record()))


def test_repr_is_short():
    expected = "Dynamics(num_samples=1, num_epochs=2, signals=['loss'])"
    assert repr(Dynamics(target=torch.tensor([0]), signals={"loss": torch.ones(2, 1)})) == expected


@pytest.mark.parametrize(
    ("value", "word"), [(NAN, "NaN"), (torch.inf, "infinite"), (-torch.inf, "infinite")]
)
def test_an_observed_value_must_be_finite(value, word):
    values = torch.ones(5, 20)
    values[3, 17] = values[4, 2] = value
    with pytest.raises(
        ValueError, match=f"`el2n` is {word} for sample 17 in epoch 3, where it was"
    ):
        Dynamics(
            target=torch.zeros(20, dtype=torch.int64),
            signals={"el2n": values},
            observed=torch.ones(5, 20, dtype=torch.bool),
        )


def test_an_infinite_value_is_told_without_observed():
    with pytest.raises(ValueError, match="`loss` is infinite for sample 0 in epoch 1"):
        Dynamics(target=torch.tensor([0]), signals={"loss": torch.tensor([[NAN], [torch.inf]])})


INDEX = torch.tensor([0, 1])
ONES = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"target": ONES[0]}, TypeError, r"`target` must be int64, got torch\.float32"),
        ({"target": INDEX[None]}, ValueError, r"`target` must be \[N\], got shape \[1, 2\]"),
        ({"group": INDEX.int()}, TypeError, r"`group` must be int64, got torch\.int32"),
        ({"group": torch.arange(3)}, ValueError, r"`group` must have shape \[2\], got \[3\]"),
        (
            {"signals": {"loss": ONES, "el2n": torch.ones(3, 2)}},
            ValueError,
            r"`signals\['el2n'\]` must have shape \[2, 2\], got \[3, 2\]",
        ),
        (
            {"signals": {"loss": ONES.to("meta")}},
            ValueError,
            "must be on cpu like `target`, got meta",
        ),
        ({"signals": {"": ONES}}, ValueError, "must be named by identifiers other than .*, got ''"),
        ({"signals": {"target": ONES}}, ValueError, "other than index, target, group, observed"),
        ({"signals": {"correct": ONES}}, TypeError, r"`signals\['correct'\]` must be bool, got"),
        ({"signals": {"loss": ONES.bool()}}, TypeError, r"must be floating, got torch\.bool"),
        ({"signals": {"loss": ONES.int()}}, TypeError, r"must be .*float16.*, got torch\.int32"),
        ({"observed": ONES}, TypeError, r"`observed` must be bool, got torch\.float32"),
        ({"observed": ONES[:, :1].bool()}, ValueError, r"`observed` must have shape \[2, 2\]"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, match):
    fitting = {"target": INDEX, "signals": {"loss": ONES}}
    with pytest.raises(error, match=match):
        Dynamics(**(fitting | arguments))


# ---------------------------------------------------------------------------------------- bits


def test_bits_by_hand():
    values = torch.zeros(10, dtype=torch.bool)
    values[[0, 7, 9]] = True
    assert pack_bits(values).tolist() == [1 + 128, 2]


@given(st.lists(st.lists(st.booleans(), min_size=19, max_size=19), min_size=1), st.integers(0, 19))
@settings(max_examples=50, deadline=None, database=None)
def test_bits_come_back(rows, n):
    values = torch.tensor(rows)[:, :n]
    packed = pack_bits(values)
    assert packed.shape == (len(rows), -(-n // 8))
    assert torch.equal(unpack_bits(packed, n), values)
    slow = [[sum(bit << i for i, bit in enumerate(row[k : k + 8])) for k in range(0, n, 8)]
            for row in values.tolist()]  # fmt: skip
    assert packed.tolist() == slow


def test_bits_that_do_not_fit():
    with pytest.raises(TypeError, match=r"`values` must be bool, got torch\.uint8"):
        pack_bits(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"`packed` must be uint8, got torch\.bool"):
        unpack_bits(torch.zeros(3, dtype=torch.bool), 3)
    for shape in [(2,), ()]:
        with pytest.raises(ValueError, match="`packed` must have 1 bytes a row for 8 bits"):
            unpack_bits(torch.zeros(shape, dtype=torch.uint8), 8)


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("n", [0, 1, 8, 11, 17])
@pytest.mark.parametrize("group", [True, False])
def test_a_saved_record_comes_back(tmp_path, n, group):
    seen = record(n, group=group)
    seen.save(tmp_path / "dynamics.safetensors")
    assert_same(seen, Dynamics.load(tmp_path / "dynamics.safetensors"))
    assert [file.name for file in tmp_path.iterdir()] == ["dynamics.safetensors"]


def test_a_record_without_signals_comes_back(tmp_path):
    seen = Dynamics(target=torch.tensor([2, -1]), signals={})
    seen.save(tmp_path / "x")
    assert_same(seen, Dynamics.load(str(tmp_path / "x")))


def test_booleans_take_one_bit_on_disk(tmp_path):
    record(n=17).save(tmp_path / "x")
    stored = load_file(tmp_path / "x")
    assert stored["signals/correct"].shape == stored["observed"].shape == (3, 3)
    assert stored["signals/p_true"].dtype == torch.float16


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    values = torch.rand(4, 6)
    seen = Dynamics(
        target=torch.arange(3),
        signals={"loss": values[:, :3], "el2n": values[:, 3:], "mine": values[:, :3]},
    )
    seen.save(tmp_path / "x")
    assert_same(seen, Dynamics.load(tmp_path / "x"))


def rewrite(path, change):
    record().save(path)
    tensors = load_file(path)
    change(tensors)
    write_tensors(path, "lightning_fairprune.Dynamics", tensors)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("observed"), r"lacks \['observed'\]"),
        (lambda t: t.update(more=torch.ones(1)), r"also has \['more'\]"),
        (lambda t: t.update(observed=torch.zeros(3, 1, dtype=torch.uint8)), "2 bytes a row for 11"),
        (lambda t: t.update({"signals/loss": torch.ones(3, 12)}), r"must have shape \[3, 11\]"),
        (lambda t: t.update({"signals/correct": torch.ones(3, 11)}), "`packed` must be uint8"),
        (lambda t: t.update({"signals/a b": torch.ones(3, 11)}), "must be named by identifiers"),
    ],
)
def test_a_damaged_file(tmp_path, change, match):
    rewrite(tmp_path / "bad", change)
    with pytest.raises(ValueError, match=rf"bad' cannot be loaded: .*{match}"):
        Dynamics.load(tmp_path / "bad")


# ------------------------------------------------------------------------------------- parquet


@pytest.mark.parametrize(("n", "e"), [(11, 3), (5, 1), (0, 3)])
def test_parquet_has_one_row_per_sample(tmp_path, monkeypatch, n, e):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("lightning_fairprune.records.dynamics._ROWS_PER_GROUP", 4)
    seen = record(n, e)
    seen.to_parquet(tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert list(table) == ["index", "target", "group", *seen.signals]
    assert table["index"] == list(range(n))
    assert table["target"] == seen.target.tolist()
    assert table["group"] == (torch.arange(n) % 2).tolist()
    for name, values in seen.signals.items():
        assert table[name] == [
            [v if o else None for v, o in zip(values[:, i].tolist(), observed, strict=True)]
            for i, observed in enumerate(seen.observed.T.tolist())
        ]
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]


def test_parquet_without_signals_or_groups(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    Dynamics(target=torch.tensor([4, 5]), signals={}).to_parquet(tmp_path / "x")
    assert parquet.read_table(tmp_path / "x").to_pydict() == {"index": [0, 1], "target": [4, 5]}


def test_parquet_without_epochs(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    seen = Dynamics(target=torch.tensor([4, 5]), signals={"loss": torch.empty(0, 2)})
    seen.to_parquet(tmp_path / "x")
    assert parquet.read_table(tmp_path / "x").to_pydict()["loss"] == [[], []]


def test_parquet_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-fairprune\[parquet\]'"):
        record().to_parquet(tmp_path / "x")
