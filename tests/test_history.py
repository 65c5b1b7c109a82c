"""Recalls of a run, written and read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.history import Evaluation, RecallHistory


def counts(*tp: int, support: int = 10) -> ClassCounts:
    return ClassCounts(torch.tensor(tp), torch.full((len(tp),), support))


def history(**changes: Any) -> RecallHistory:
    evaluations = (
        Evaluation("val", 1, 10, False, counts(1, 2)),
        Evaluation("val/1", 1, 10, False, counts(3, 4)),
        Evaluation("val", 2, 20, True, counts(5, 6)),
        Evaluation("val/1", 2, 20, True, counts(7, 8)),
        Evaluation("test", 2, 20, True, counts(9, 10)),
    )
    options = {"class_names": ("cat", "dog"), "reference": {"val": counts(8, 9)}, "seed": 3}
    return RecallHistory(evaluations, **options | changes)


def alike(one: ClassCounts, other: ClassCounts) -> bool:
    return torch.equal(one.tp, other.tp) and torch.equal(one.support, other.support)


def same(one: RecallHistory, other: RecallHistory) -> bool:
    pairs = zip(one.evaluations, other.evaluations, strict=True)
    return (
        all(a[:4] == b[:4] and alike(a.counts, b.counts) for a, b in pairs)
        and one.class_names == other.class_names
        and one.seed == other.seed
        and one.reference.keys() == other.reference.keys()
        and all(alike(one.reference[name], other.reference[name]) for name in one.reference)
    )


@pytest.mark.parametrize("where", [".", "fairprune", "fairprune/recalls.safetensors"])
def test_what_is_saved_is_loaded(tmp_path: Path, where: str) -> None:
    history().save(tmp_path / "fairprune")
    assert same(RecallHistory.load(tmp_path / where), history())


@pytest.mark.parametrize(
    "one",
    [
        RecallHistory(),
        history(class_names=None, seed=None, reference={}),
        RecallHistory((Evaluation("val", 0, 0, False, counts(3 * 10**9, support=4 * 10**9)),)),
        RecallHistory((Evaluation("val", 0, 0, False, counts(0, support=0)),)),
    ],
    ids=["empty", "bare", "large", "no support"],
)
def test_corner_cases_survive(tmp_path: Path, one: RecallHistory) -> None:
    one.save(tmp_path)
    assert same(RecallHistory.load(tmp_path), one)


def test_the_json_file_holds_the_last_evaluations_and_the_reference(tmp_path: Path) -> None:
    history().save(tmp_path)
    content = json.loads((tmp_path / "recalls.json").read_text())
    assert content["last"]["val"]["tp"] == [5, 6]
    assert content["last"]["val"]["worst"] == 0.5
    assert content["class_names"] == ["cat", "dog"]
    read = RecallHistory.load(tmp_path / "recalls.json")
    assert [e.name for e in read.evaluations] == ["val", "val/1", "test"]
    assert alike(read.last("val").counts, counts(5, 6))
    assert alike(read.reference["val"], counts(8, 9))
    (tmp_path / "recalls.safetensors").unlink()
    assert same(RecallHistory.load(tmp_path), read)


def test_no_support_is_null_in_json(tmp_path: Path) -> None:
    RecallHistory((Evaluation("val", 0, 0, False, counts(0, support=0)),)).save(tmp_path)
    last = json.loads((tmp_path / "recalls.json").read_text(), parse_constant=pytest.fail)["last"]
    assert last["val"]["worst"] is None
    assert math.isnan(RecallHistory.load(tmp_path / "recalls.json").last("val").counts.worst)


def test_evaluations_by_name() -> None:
    assert history().names == ("val", "val/1", "test")
    assert [e.epoch for e in history().of("val")] == [1, 2]
    assert history().last("val").pruned
    with pytest.raises(ValueError, match="no evaluation of 'other', only of val, val/1, test"):
        history().last("other")


def test_groups_have_names_of_their_own(tmp_path: Path) -> None:
    three = ClassCounts(torch.tensor([1, 2, 3]), torch.tensor([4, 4, 4]))
    evaluations = (
        Evaluation("val", 1, 1, False, counts(1, 2)),
        Evaluation("val/groups", 1, 1, False, three),
    )
    one = RecallHistory(evaluations, ("cat", "dog"), group_names=("a", "b", "c"))
    assert one.names_of("val") == ("cat", "dog")
    assert one.names_of("val/groups") == ("a", "b", "c")
    one.save(tmp_path)
    for path in (tmp_path, tmp_path / "recalls.json"):
        assert RecallHistory.load(path).group_names == ("a", "b", "c")
    assert RecallHistory.from_state_dict(one.state_dict()).group_names == ("a", "b", "c")
    with pytest.raises(ValueError, match="each of the 3 groups of 'val/groups', got 2"):
        RecallHistory(evaluations, ("cat", "dog"), group_names=("a", "b"))


def test_room_for_a_group_that_was_not_met() -> None:
    two = counts(1, 2)
    one = RecallHistory(
        (Evaluation("val", 1, 1, False, two), Evaluation("val/groups", 1, 1, False, two)),
        reference={"val/groups": two},
    ).padded("val/groups", 3)
    assert one.last("val").counts.num_classes == 2
    assert one.last("val/groups").counts.support.tolist() == [10, 10, 0]
    assert one.reference["val/groups"].tp.tolist() == [1, 2, 0]


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name each of the 2 classes of 'val', got 3"):
        history(class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="same classes, got 3 and 2"):
        history(class_names=None, reference={"val": counts(1, 2, 3)})


@pytest.mark.parametrize("change", [{"last": {"val": {}}}, {"last": 3}])
def test_a_part_that_is_missing_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    history().save(tmp_path)
    text = json.loads((tmp_path / "recalls.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(text | change))
    with pytest.raises(ValueError, match="it is damaged"):
        RecallHistory.load(tmp_path / "bad.json")
