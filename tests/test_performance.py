"""The arithmetic of benchmarks/performance.py, and promises about cost that need no clock."""

from __future__ import annotations

import importlib
import math
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_fairprune import signals
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.counts import Tally

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of the archive", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_recording_reads_no_value_of_the_device() -> None:
    # Tensors of the meta device have no values: whatever asks for one, as a host that waits does, raises.
    recorder = EpochRecorder(1000, tuple(signals.__all__), grouped=True, device="meta")
    batch = torch.empty(128, dtype=torch.int64, device="meta")
    for _ in range(40):  # twice through the batches that wait, and some more
        recorder.update(batch, torch.empty(128, 10, device="meta"), batch, batch)


def test_counting_a_validation_batch_reads_no_value_of_the_device() -> None:
    tally = Tally()
    target = torch.empty(128, dtype=torch.int64, device="meta")
    tally.update(torch.empty(128, 10, device="meta"), target)
    assert len(tally) == 128


def test_that_reading_a_value_would_be_noticed() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(3, device="meta").sum().item()


@pytest.mark.parametrize(
    ("names", "grouped", "most"),
    [((), False, 5), (("el2n",), False, 7), (tuple(signals.__all__), True, 28)],
    ids=["default", "el2n", "everything"],
)
def test_device_bytes_do_not_grow_with_epochs(
    names: tuple[str, ...], grouped: bool, most: int
) -> None:
    held = module("_memory").device_bytes(names, grouped=grouped, epochs=3, samples=(1000, 17_000))
    assert [round(slope, 3) for slope, _ in held] == [most] * 3


def test_paired_ratio_does_not_see_what_slows_both() -> None:
    rounds = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0])  # how slow the machine was
    found = module("_paired").paired((1.02 * rounds).tolist(), rounds.tolist())
    assert found.value == pytest.approx(1.02)
    assert (found.low, found.high) == pytest.approx((1.02, 1.02))


def test_slices_count_with_what_they_always_take() -> None:
    # The end of an epoch is dear in every round.
    base = torch.tensor([1.0, 1.0, 1.0, 4.0]).repeat(8, 1)
    costs = base * 1.02
    base[torch.arange(4), torch.arange(4)] += 50.0  # something else came in between, once a slice
    found = module("_paired").by_position(costs, base)
    assert found.value == pytest.approx(1.02)
    assert found.low <= found.value <= found.high


def test_noise_is_how_far_from_one_the_interval_reaches() -> None:
    assert module("_paired").Ratio(1.0, 0.97, 1.02).noise == pytest.approx(0.03)


def test_interval_holds_the_median_and_narrows_with_rounds() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() + 10
    few, many = (module("_paired").spread(values[:n]) for n in (16, 400))
    assert few.low <= few.value <= few.high
    # Normal values: the median's standard deviation is sqrt(pi / 2 / n), the interval 3.92 of them.
    assert many.high - many.low == pytest.approx(3.92 * math.sqrt(math.pi / 2 / 400), rel=0.35)
    assert many.high - many.low < few.high - few.low


def test_only_one_of_a_ring_runs_and_leavers_are_passed_over() -> None:
    ring, order = module("_paired").Ring(3), []

    def run(member: int, turns: int) -> None:
        ring.wait(member)
        for turn in range(turns):
            order.append(member)
            if turn < turns - 1:
                ring.hand_on(member)
                ring.wait(member)
        ring.leave(member)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate((3, 1, 2))]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 0, 2, 0]


def test_fits_side_by_side_are_whole_fits() -> None:
    paired = module("_paired")
    data = paired.Data(paired.Images(300), paired.Images(130))
    found = paired.side_by_side({"one": dict, "two": dict}, data, turn=1)
    for fit in found.values():
        # A slice for each of 3 batches, before the validation, and for the end of the epoch.
        lengths = {key: len(slices) for key, slices in fit.items()}
        assert lengths == {("train", 0): 5, ("val", 0): 3, ("train", 1): 5, ("val", 1): 3}
        assert all(value >= 0 for slices in fit.values() for value in slices)


def test_error_in_a_fit_is_not_lost() -> None:
    paired = module("_paired")
    data = paired.Data(paired.Images(300), paired.Images(130))
    kinds = {"good": dict, "bad": lambda: {"max_epochs": -5}}
    with pytest.raises(Exception, match="max_epochs"):
        paired.side_by_side(kinds, data, turn=0)


@pytest.mark.parametrize(
    ("value", "noise", "verdict"),
    [
        (1.01, 0.0, "kept"),
        (1.03, 0.02, "within the noise"),
        (1.05, 0.02, "MISSED"),
        (None, 0.0, "not measured"),
    ],
)
def test_verdict(value: float | None, noise: float, verdict: str) -> None:
    figure = module("performance").Figure("some", 1.02, value, noise)
    assert figure.verdict.startswith(verdict)


def test_table_names_neither_host_nor_path() -> None:
    performance = module("performance")
    text = performance.markdown([performance.Figure("some", 50, 12.34, 0.5, "ms")])
    assert "| some | 12.3 ms | 0.5 ms | 50.0 ms | kept |" in text
    assert not {platform.node(), "/"} & set(text.split("\n")[0].split(", "))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power_over_a_fixed_cost(power: float) -> None:
    points = (10, 100, 1000, 10_000, 100_000)
    found = module("growth").exponent(points, [0.001 + 3.0 * x**power for x in points])
    assert found == pytest.approx(power, abs=0.01)
