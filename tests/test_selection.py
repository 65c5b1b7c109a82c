from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import oracles_quotas as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lightning_fairprune._files import write_tensors
from lightning_fairprune.cli import main
from lightning_fairprune.selection import Keep, Selection, _order, _record, select

KEEPS = get_args(Keep)
every_keep = pytest.mark.parametrize("keep", KEEPS)


@dataclasses.dataclass
class Problem:
    target: Tensor
    score: Tensor
    sizes: Tensor
    quota: Tensor

    def select(self, quota: Tensor | int, keep: Keep, **options: Any) -> Selection:
        score = None if keep == "random" else self.score
        return select(self.target, quota, score=score, keep=keep, **options)


KINDS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "double": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64) * 1e300,
    "half": lambda n, g: torch.randn(n, generator=g).half(),
    "counts": lambda n, g: torch.randint(-3, 4, (n,), generator=g),
    "huge counts": lambda n, g: torch.randint(-(2**62), 2**62, (n,), generator=g) * 2,
    "bytes": lambda n, g: torch.randint(0, 4, (n,), generator=g).byte(),
    "signed zeros": lambda n, g: torch.tensor([-1, -0.0, 0.0, 1])[
        torch.randint(4, (n,), generator=g)
    ],
    "constant": lambda n, g: torch.full((n,), 0.1),
}


def problem(seed: int, n: int, k: int, kind: str, lowest: int = -1) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(lowest, k, (n,), generator=generator)
    sizes = torch.bincount(target + 1, minlength=k + 1)[1:]
    share = torch.rand(k, generator=generator) * 1.2 - 0.1
    quota = (sizes * share.clamp(0, 1)).round().long()
    return Problem(target, KINDS[kind](n, generator), sizes, quota)


problems = st.builds(
    problem,
    st.integers(0, 2**32),
    st.integers(0, 120),
    st.integers(1, 6),
    st.sampled_from(list(KINDS)),
    st.sampled_from([-1, 0]),
)


@pytest.fixture(params=[_order.CHUNK, 7], ids=["one chunk", "chunks of 7"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_order, "CHUNK", request.param)


def test_infinite_scores_are_the_hardest_and_the_easiest() -> None:
    target, score = torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, math.inf, -math.inf, 2.0])
    assert select(target, [1], score=score, keep="hard").indices.tolist() == [1]
    assert select(target, [1], score=score, keep="easy").indices.tolist() == [2]


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_selection_by_score_equals_sorting_each_class(keep: Keep) -> None:
    @given(problems, st.floats(0, 1))
    @settings(max_examples=120, deadline=None)
    def check(p: Problem, share: float) -> None:
        target, score, quota = p.target.tolist(), p.score.tolist(), p.quota.tolist()
        kept = p.select(p.quota, keep)
        assert kept.indices.tolist() == oracle.by_score(target, score, quota, keep == "hard")
        budget = round(share * int(p.sizes.sum()))
        one_class = [min(label, 0) for label in target]
        expected = oracle.by_score(one_class, score, [budget], keep == "hard")
        assert p.select(budget, keep).indices.tolist() == expected

    check()


def test_selection_by_score_equals_sorting_where_digits_and_chunks_matter() -> None:
    p = problem(0, 600_000, 300, "normal")
    order = torch.argsort(p.score, descending=True, stable=True)
    order = order[torch.argsort(p.target[order], stable=True)]
    start = torch.cat([torch.zeros(1, dtype=torch.int64), (p.sizes.cumsum(0))])
    start += int((p.target < 0).sum())
    expected = torch.cat([order[s : s + q] for s, q in zip(start, p.quota, strict=False)])
    assert torch.equal(p.select(p.quota, "hard").indices, expected.sort().values)


@pytest.mark.usefixtures("_chunks")
@every_keep
def test_quotas_are_met_exactly_and_subsets_nest(keep: Keep) -> None:
    @given(problems, st.integers(0, 2**40))
    @settings(max_examples=60, deadline=None)
    def check(p: Problem, seed: int) -> None:
        before = p.target.clone(), p.score.clone(), p.quota.clone()
        kept = p.select(p.quota, keep, seed=seed)
        assert all(map(torch.equal, before, (p.target, p.score, p.quota)))
        assert torch.equal(kept.quota, p.quota)
        assert torch.equal(kept.sizes, p.sizes)
        counted = torch.bincount(p.target[kept.indices], minlength=len(p.quota))
        assert torch.equal(counted, p.quota)
        smaller = p.select(p.quota * 2 // 3, keep, seed=seed)
        assert set(smaller.indices.tolist()) <= set(kept.indices.tolist())
        total = int(p.sizes.sum())
        for budget in (0, total // 2, total):
            one = p.select(budget, keep, seed=seed)
            assert len(one) == budget
            assert int(one.quota.sum()) == budget
            assert set(p.select(budget // 2, keep, seed=seed).indices.tolist()) <= set(
                one.indices.tolist()
            )

    check()


@every_keep
def test_a_class_does_not_depend_on_the_quotas_of_others(keep: Keep) -> None:
    p = problem(1, 500, 3, "normal")
    one, other = p.quota.clone(), p.quota.clone()
    other[0], other[2] = 0, p.sizes[2]
    of_class_1 = [
        set(kept.indices[p.target[kept.indices] == 1].tolist())
        for kept in (p.select(one, keep), p.select(other, keep))
    ]
    assert of_class_1[0] == of_class_1[1]


@every_keep
def test_the_global_generator_is_neither_used_nor_moved(keep: Keep) -> None:
    p = problem(2, 200, 3, "normal")
    before = torch.get_rng_state()
    first = p.select(p.quota, keep)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(p.select(p.quota, keep).indices, first.indices)


def test_random_is_pinned_so_that_every_machine_and_release_agrees() -> None:
    target = torch.arange(20) % 2
    pinned = [0, 1, 4, 6, 9, 15]
    assert select(target, [3, 3], seed=0).indices.tolist() == pinned
    assert select(target, [3, 3], seed=1).indices.tolist() != pinned


def test_random_keeps_every_sample_equally_often() -> None:
    target = torch.arange(40) % 2
    times = torch.stack([select(target, [5, 10], seed=s).mask() for s in range(2000)]).double()
    # 2000 draws with chance 1/4 and 1/2: standard errors 0.0097 and 0.0112; 4.5 of them for 40 tests
    expected = torch.where(target == 0, 0.25, 0.5).double()
    torch.testing.assert_close(times.mean(0), expected, atol=0.05, rtol=0)


def test_strata_share_equally_and_small_ones_give_what_they_have() -> None:
    # Strata of width 1/50: 0.0 has 6 samples, 0.5 has 2, 1.0 has 4. Nine samples: 4, 2, 3.
    score = torch.tensor([0.0] * 6 + [0.5] * 2 + [1.0] * 4)
    kept = select(torch.zeros(12, dtype=torch.int64), [9], score=score, keep="stratified")
    values = score[kept.indices].tolist()
    assert [values.count(v) for v in (0.0, 0.5, 1.0)] == [4, 2, 3]


@given(problems.filter(lambda p: bool(p.score.double().isfinite().all())))
@settings(max_examples=80, deadline=None)
def test_strata_get_what_sample_by_sample_levelling_gives(p: Problem) -> None:
    kept = p.select(p.quota, "stratified")
    for k in range(len(p.quota)):
        values = p.score[p.target == k].double()
        if not len(values):
            continue
        low, width = values.min(), values.max() / 2 - values.min() / 2
        own = p.score[kept.indices[p.target[kept.indices] == k]].double()
        place = [
            ((v / 2 - low / 2) / width * 50).nan_to_num(0.0).clamp(0, 49).long()
            for v in (values, own)
        ]
        sizes, taken = (torch.bincount(s, minlength=50).tolist() for s in place)
        assert taken == oracle.level(sizes, int(p.quota[k]))


def test_strata_of_extreme_scores_do_not_overflow() -> None:
    score = torch.tensor([-1.7e308, 1.7e308, 0.0, 1.0], dtype=torch.float64)
    kept = select(torch.zeros(4, dtype=torch.int64), [3], score=score, keep="stratified")
    assert {0, 1} < set(kept.indices.tolist())


TARGET = torch.tensor([0, 0, 1, -1])
SCORE = torch.tensor([0.1, 0.2, 0.3, 0.4])
HOLES = torch.tensor([0.1, math.nan, math.nan, math.nan])


INFINITE = SCORE / torch.tensor([0, 1, 1, 1])


@pytest.mark.parametrize(
    ("quota", "options", "match"),
    [
        ([0, 0, 1], {}, "asks for 1 samples of class 2, which has 0"),
        ([1], {}, "`quota` has 1 classes, but .* holds the label 1"),
        ([-1, 1], {}, "`quota` must be >= 0, got -1 for class 0"),
        (torch.ones(1, 2).long(), {}, r"`quota` must be .* \(1, 2\)"),
        (4, {}, "`quota` must be between 0 and the 3 samples .* got 4"),
        (-1, {}, "`quota` must be between 0 and the 3 samples"),
        (1, {"target": [0, 1]}, r"`target` must be a tensor of shape \[N\]"),
        (1, {"target": TARGET - 1}, "`target` must be >= -1, got -2"),
        (1, {"score": SCORE}, "`score` has no effect with keep='random'"),
        (1, {"score": SCORE[1:], "keep": "easy"}, r"`score` .* \[4\]"),
        (
            1,
            {"score": HOLES, "keep": "easy"},
            r"2 of 4 samples have no score \(NaN\), first at index 1: observe",
        ),
        (
            1,
            {"score": INFINITE, "keep": "stratified"},
            "1 of 4 samples have no finite score, first at index 0",
        ),
    ],
)
def test_values_that_cannot_be(quota: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        select(**{"target": TARGET, "quota": quota} | options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"quota": 1.5}, r"`quota` must be an int or int64 \[K\], got 1.5"),
        ({"score": SCORE * 1j, "keep": "easy"}, "`score` must be real"),
        ({"seed": 0.5}, "`seed` must be an int, got 0.5"),
    ],
)
def test_types_that_cannot_be(options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        select(**{"target": TARGET, "quota": 1} | options)


@pytest.mark.parametrize("keep", ["hard", "easy", "stratified"])
def test_samples_left_out_need_no_score(keep: Keep) -> None:
    score = torch.tensor([0.1, 0.2, 0.3, math.nan])
    assert select(TARGET, [2, 1], score=score, keep=keep).indices.tolist() == [0, 1, 2]
    assert select(TARGET, 3, score=score, keep=keep).indices.tolist() == [0, 1, 2]


def example() -> Selection:
    target = torch.tensor([0, 1, 1, 1, -1, 0])
    return select(target, torch.tensor([1, 2, 0]), score=torch.arange(6.0), keep="hard", seed=3)


def test_a_selection_tells_what_was_kept() -> None:
    kept = example()
    assert kept.indices.tolist() == [2, 3, 5]
    assert len(kept) == kept.budget == 3
    assert kept.density == 0.5
    assert kept.sizes.tolist() == [2, 3, 0]
    assert kept.class_density[:2].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert bool(kept.class_density[2].isnan())
    assert kept.mask().tolist() == [False, False, True, True, False, True]
    assert repr(kept) == "Selection(3 of 6, density 0.500, keep='hard', seed=3)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        kept.seed = 4  # type: ignore[misc]


def test_the_summary_is_a_table_of_classes() -> None:
    assert example().summary(["cat", "a long name", "none"]).splitlines() == [
        "class        size  kept  density",
        "cat             2     1    0.500",
        "a long name     3     2    0.667",
        "none            0     0      nan",
        "all             5     3    0.600",
    ]
    with pytest.raises(ValueError, match="`class_names` must have 3 entries, got 1"):
        example().summary(["cat"])


def same(one: Selection, other: Selection) -> bool:
    names = [field.name for field in dataclasses.fields(Selection)]
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def test_saving_and_loading_and_pickling_give_the_same(tmp_path: Path) -> None:
    example().save(tmp_path / "kept.safetensors")
    assert same(Selection.load(str(tmp_path / "kept.safetensors")), example())
    assert same(pickle.loads(pickle.dumps(example())), example())
    assert os.listdir(tmp_path) == ["kept.safetensors"]


def test_files_that_miss_a_part_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    example().save(path)
    tensors = load_file(path)
    good = {"selection": json.dumps({"num_samples": 6, "keep": "hard", "seed": 3})}
    write_tensors(path, _record.FORMAT, tensors, good)
    assert same(Selection.load(path), example())
    for missing, match in (("{}", "'num_samples'"), ("{", "")):
        write_tensors(path, _record.FORMAT, tensors, {"selection": missing})
        with pytest.raises(ValueError, match=f"it is damaged .*{match}"):
            Selection.load(path)
    del tensors["quota"]
    write_tensors(path, _record.FORMAT, tensors, good)
    with pytest.raises(ValueError, match=r"it is damaged .*'quota'"):
        Selection.load(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"indices": torch.tensor([3, 2, 5])}, "`indices` must be sorted"),
        ({"indices": torch.tensor([2, 2, 5])}, "`indices` must be sorted, each sample once"),
        ({"indices": torch.tensor([2, 3, 6])}, r"`indices` must lie in \[0, 6\), got 2 to 6"),
        ({"indices": torch.tensor([-1, 3, 5])}, r"`indices` must lie in \[0, 6\), got -1 to 5"),
        ({"indices": torch.tensor([2.0, 3, 5])}, "`indices` must be .* int64 .* got torch.float32"),
        ({"quota": torch.tensor([1, 1, 0])}, "sum to the 3 indices, got 3 entries .* sum 2"),
        ({"quota": torch.tensor([1, 2])}, "got 2 entries for 3 classes"),
        ({"quota": torch.tensor([0, 2, 1])}, r"`quota` must be in \[0, sizes\]"),
        ({"sizes": torch.tensor([20, 30, 0])}, "`sizes` sum to at most num_samples"),
    ],
)
def test_a_selection_that_contradicts_itself_is_refused(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(example(), **change)
    example().save(tmp_path / "bad.safetensors")
    record = {"num_samples": 6, "keep": "hard", "seed": 3}
    tensors = load_file(tmp_path / "bad.safetensors") | change
    metadata = {"selection": json.dumps(record)}
    write_tensors(tmp_path / "bad.safetensors", _record.FORMAT, tensors, metadata)
    damaged = r"bad\.safetensors' cannot be loaded: it is damaged .*"
    with pytest.raises(ValueError, match=damaged + match):
        Selection.load(tmp_path / "bad.safetensors")


@pytest.fixture
def parquet() -> Any:
    return pytest.importorskip("pyarrow.parquet")


def test_parquet_has_the_indices(parquet: Any, tmp_path: Path) -> None:
    example().to_parquet(tmp_path / "kept.parquet")
    assert parquet.read_table(tmp_path / "kept.parquet").to_pydict() == {"index": [2, 3, 5]}


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-fairprune\[parquet\]'"):
        example().to_parquet(tmp_path / "kept.parquet")
    with pytest.raises(ImportError, match=r"from_parquet needs pyarrow: pip install 'lightning-f"):
        Selection.from_parquet(tmp_path / "kept.parquet", TARGET)


@pytest.mark.usefixtures("parquet")
def test_parquet_there_and_back(tmp_path: Path) -> None:
    target, none = torch.tensor([0, 2, 1, -1, 0, 2, 2, 0]), torch.zeros(0, dtype=torch.int64)
    every = [(none, select(none, 0))]
    for quota in ([2, 0, 1, 0], [0, 0, 0, 0], [3, 1, 3, 0]):  # class 3 has no sample
        chosen = select(target, torch.tensor(quota), score=torch.arange(8.0), keep="hard", seed=5)
        every.append((target, chosen))
    for labels, chosen in every:
        chosen.to_parquet(tmp_path / "kept.parquet")
        assert same(Selection.from_parquet(tmp_path / "kept.parquet", labels), chosen)


@pytest.mark.parametrize("kind", ["int16", "uint64", "int64"])
def test_parquet_of_another_tool(parquet: Any, tmp_path: Path, kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    # a folder that looks like a partition adds no column
    path = tmp_path / "part=1" / "rows.parquet"
    path.parent.mkdir()
    parquet.write_table(pa.table({"row": pa.array([4, 0, 2], getattr(pa, kind)())}), path)
    chosen = Selection.from_parquet(path, torch.tensor([1, 0, 0, 0, 1], dtype=torch.int32))
    assert chosen.indices.tolist() == [0, 2, 4]
    assert (chosen.quota.tolist(), chosen.sizes.tolist()) == ([1, 2], [3, 2])
    assert (chosen.keep, chosen.seed, chosen.num_samples) == ("given", 0, 5)


def test_parquet_of_the_table_command(parquet: Any, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    pa = pytest.importorskip("pyarrow")
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(-1, 4, (500,), generator=generator)
    score = torch.rand(500, generator=generator)
    columns = {"id": torch.arange(500), "label": target, "score": score}
    table, out = tmp_path / "train.parquet", tmp_path / "kept.parquet"
    parquet.write_table(pa.table({name: v.numpy() for name, v in columns.items()}), table)
    options = "--density 0.3 --quota balanced --keep hard --out"
    assert main(["select", str(table), *options.split(), str(out)]) == 0
    chosen = Selection.from_parquet(out, target)
    expected = select(target, chosen.quota, score=score, keep="hard")
    assert torch.equal(chosen.indices, expected.indices)
    assert torch.equal(chosen.sizes, expected.sizes)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"index": [0, 5]}, r"must hold indices in \[0, 5\), .* got 0 to 5"),
        ({"index": [-1, 2]}, r"must hold indices in \[0, 5\), .* got -1 to 2"),
        ({"index": [2, 0, 2]}, "must hold each index once, but 2 occurs twice"),
        ({"index": [0, 3]}, "keeps sample 3, which is in no class: its `target` is -1"),
        ({"index": [0, None]}, "must hold an index in every row, 1 are null"),
        ({"index": np.array([2**63], np.uint64)}, "holds an index that is not int64"),
        ({"id": ["a", "b"]}, r"must have one column of integers, .* got id \(string\)"),
        ({"id": [0.0]}, r"must have one column of integers, .* got id \(double\)"),
        ({"id": [0], "x": [1]}, r"got id \(int64\), x \(int64\)"),
        ({}, "got no column"),
    ],
)
def test_parquet_files_that_do_not_fit_are_refused(
    parquet: Any, tmp_path: Path, columns: dict[str, Any], match: str
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet.write_table(pa.table(columns), tmp_path / "kept.parquet")
    with pytest.raises(ValueError, match=r"kept\.parquet' .*" + match):
        Selection.from_parquet(tmp_path / "kept.parquet", torch.tensor([0, 1, 1, -1, 0]))


@pytest.mark.usefixtures("parquet")
def test_parquet_of_other_samples_damaged_or_missing(tmp_path: Path) -> None:
    path, target = tmp_path / "kept.parquet", torch.zeros(9, dtype=torch.int64)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*kept\.parquet"):
        Selection.from_parquet(path, target)
    example().to_parquet(path)
    with pytest.raises(ValueError, match=r"was made from 6 samples, `target` has 9: pass the lab"):
        Selection.from_parquet(path, target)
    with pytest.raises(TypeError, match=r"`target` must hold integers, got torch\.float32"):
        Selection.from_parquet(path, target.float())
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=r"kept\.parquet' is not a Parquet file, or it is truncated"
        ):
            Selection.from_parquet(path, target[:6])


def test_hardest_of_gumbel_keys_is_sampling_without_replacement_by_softmax() -> None:
    # Drawn one after the other with probability p: first i, then j of what is left, or the reverse.
    logit = torch.tensor([0.0, 1.0, 2.0])
    p = logit.softmax(0).tolist()
    pairs = list(itertools.combinations(range(3), 2))
    exact = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs]
    copies = 20_000  # each a class of its own
    target = torch.arange(copies).repeat_interleave(3)
    generator = torch.Generator().manual_seed(0)
    gumbel = -torch.empty(3 * copies).exponential_(generator=generator).log()
    quota = torch.full((copies,), 2)
    kept = select(target, quota, score=logit.repeat(copies) + gumbel, keep="hard").mask()
    missing = (~kept.view(copies, 3)).long().argmax(1)
    found = [(missing == 3 - i - j).double().mean().item() for i, j in pairs]
    assert found == pytest.approx(exact, abs=4 * 0.5 / copies**0.5)
