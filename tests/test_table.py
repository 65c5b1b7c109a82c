from __future__ import annotations

import itertools
import json
import math
import re
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lightning_fairprune import ClassCounts, cli, quotas, select
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.selection import Keep
from lightning_fairprune.table import TableSelection, _select, _sql, random_key, select_table
from lightning_fairprune.table import _random as random_module
from lightning_fairprune.table import _source as source_module
from lightning_fairprune.table._select import RULES

duckdb = pytest.importorskip("duckdb")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N, K = 2000, 7
RECALL = [0.9, 0.5, 0.7, 1.0, float("nan"), 0.2, 0.6]
KEEPS = get_args(Keep)

SCORES = {
    "float": lambda g: torch.randn(N, generator=g),
    "double": lambda g: torch.randn(N, generator=g, dtype=torch.float64) * 1e307,
    "huge": lambda g: torch.randint(-1, 2, (N,), generator=g).double() * 1.7e308,
    "tiny": lambda g: torch.randint(0, 9, (N,), generator=g).double() * 5e-324,
    "outlier": lambda g: torch.rand(N, generator=g).index_fill(0, torch.tensor([4, 9]), 1e30),
    "ties": lambda g: torch.randint(-2, 3, (N,), generator=g),
    "wide": lambda g: torch.randint(-(2**62), 2**62, (N,), generator=g) * 2,
    "neighbours": lambda g: torch.randint(0, 50, (N,), generator=g) + 2**60,
    "constant": lambda g: torch.full((N,), 0.1),
    "zeros": lambda g: torch.randint(-1, 2, (N,), generator=g).float() * -0.0,
    "infinite": lambda g: torch.randn(N, generator=g).masked_fill(torch.rand(N, generator=g) < 0.3, math.inf),
    "all infinite": lambda g: torch.where(torch.rand(N, generator=g) < 0.5, math.inf, -math.inf),
}  # fmt: skip
FINITE = [name for name in SCORES if "infinite" not in name]


def write(path: Path, **columns: Any) -> Path:
    arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}
    pq.write_table(pa.table(arrays), path)
    return path


def labels(seed: int = 0, lowest: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(N, generator=generator) ** 2 * (K - lowest)).long() + lowest


def scores(kind: str) -> Tensor:
    return SCORES[kind](torch.Generator().manual_seed(1))


def kept(selection: TableSelection) -> Tensor:
    assert selection.path is not None
    return torch.from_numpy(pq.read_table(selection.path)["id"].to_numpy().copy())


def run_sql(query: str, path: Path) -> Tensor:
    """What the printed query gives in DuckDB."""
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW my_table AS SELECT * FROM '{path}'")
        return torch.tensor([row[0] for row in connection.execute(query).fetchall()])


def in_memory(target: Tensor, quota: Tensor | int, score: Tensor, keep: str, seed: int) -> Tensor:
    if keep == "random":
        score, keep = random_key(torch.arange(len(target)), seed), "easy"
    return select(target, quota, score=score, keep=keep).indices  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*keep no sample")
@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize("kind", SCORES)
def test_rows_are_those_of_select(tmp_path: Path, kind: str, keep: Keep) -> None:
    target, score = labels(lowest=-1), scores(kind)
    path = write(tmp_path / "t.parquet", id=torch.arange(N), label=target, score=score)
    recall = dict(enumerate(RECALL))
    chosen = select_table(path, 0.3, recall=recall, keep=keep, out=tmp_path / "kept.parquet")
    sizes = torch.bincount(target[target >= 0])
    quota = quotas.drop(sizes, RECALL, round(0.3 * N))
    expected = select(target, quota, score=score, keep=keep)
    assert kept(chosen).equal(expected.indices)
    assert chosen.quota.equal(expected.quota)
    assert chosen.sizes.equal(sizes)
    assert run_sql(chosen.sql, path).equal(expected.indices)


@pytest.mark.filterwarnings("ignore:.*keep no sample")
@pytest.mark.parametrize("keep", ["random", "hard", "easy"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_the_rows_of_its_function(tmp_path: Path, rule: str, keep: Keep) -> None:
    target, score = labels(), scores("float")
    path = write(tmp_path / "t.parquet", id=torch.arange(N), label=target, score=score)
    recalled = rule in ("drop", "drop_reference")
    out, recall = tmp_path / "kept.parquet", dict(enumerate(RECALL)) if recalled else None
    chosen = select_table(path, 0.25, quota=rule, recall=recall, keep=keep, seed=5, out=out)
    budget, sizes = round(0.25 * N), torch.bincount(target)
    given = (sizes, RECALL) if recalled else (sizes,)
    quota = budget if rule == "none" else getattr(quotas, rule)(*given, budget)
    expected = in_memory(target, quota, score, keep, seed=5)
    assert kept(chosen).equal(expected)
    assert chosen.quota.equal(torch.bincount(target[expected], minlength=K))
    assert len(chosen) == budget
    assert run_sql(chosen.sql, path).equal(expected)


@pytest.mark.parametrize("keep", ["random", "hard"])
@pytest.mark.parametrize("rule", ["drop", "balanced", "none"])
def test_groups_are_pairs_of_label_and_group(tmp_path: Path, rule: str, keep: Keep) -> None:
    target, score = labels(lowest=-1), scores("ties")
    group = labels(seed=8, lowest=-1) // 3
    path = write(tmp_path / "t.parquet", id=torch.arange(N), label=target, score=score, group=group)
    cell = torch.where((target >= 0) & (group >= 0), target * 3 + group, -1)
    rate = torch.rand(K * 3, generator=torch.Generator().manual_seed(2)).double()
    recall = {(c // 3, c % 3): float(rate[c]) for c in cell.unique().tolist() if c >= 0}
    options = {"recall": recall} if rule == "drop" else {}
    out = tmp_path / "kept.parquet"
    chosen = select_table(path, 0.4, quota=rule, by="group", keep=keep, out=out, **options)  # type: ignore[arg-type]
    sizes, budget = torch.bincount(cell[cell >= 0], minlength=K * 3), round(0.4 * N)
    quota: Tensor | int = budget
    if rule != "none":
        quota = getattr(quotas, rule)(*((sizes, rate) if rule == "drop" else (sizes,)), budget)
    expected = in_memory(cell, quota, score, keep, seed=0)
    assert kept(chosen).equal(expected)
    assert chosen.classes[1] == (0, 1)
    assert run_sql(chosen.sql, path).equal(expected)


@pytest.mark.parametrize("rule", ["drop", "none"])
@pytest.mark.parametrize("kind", FINITE)
def test_strata_share_as_in_select(tmp_path: Path, kind: str, rule: str) -> None:
    target, score, density = labels(lowest=-1), scores(kind), 0.6
    path = write(tmp_path / "t.parquet", id=torch.arange(N), label=target, score=score)
    recall = dict(enumerate(RECALL)) if rule == "drop" else None
    out = tmp_path / "kept.parquet"
    chosen = select_table(path, density, quota=rule, recall=recall, keep="stratified", out=out)
    # In memory, keys are drawn otherwise: the same number of each stratum, lowest keys of this one.
    budget = round(density * N)
    sizes = torch.bincount(target[target >= 0])
    quota = budget if rule == "none" else quotas.drop(sizes, RECALL, budget)
    one = select(target, quota, score=score, keep="stratified").indices
    home = target if rule != "none" else target.clamp(max=0)
    pile = torch.full((N,), -1)
    for k in range(int(home.max()) + 1):
        own = home == k
        half = score[own].double() / 2
        width = (half.max() - half.min()).clamp(min=torch.finfo(torch.float64).tiny)
        pile[own] = k * 50 + ((half - half.min()) / width * 50).clamp(0, 49).long()
    shares = torch.bincount(pile[one], minlength=int(pile.max()) + 1)
    expected = in_memory(pile, shares, score, "random", seed=0)
    assert kept(chosen).equal(expected)
    assert run_sql(chosen.sql, path).equal(expected)


@pytest.mark.parametrize("keep", KEEPS)
def test_subsets_are_nested(tmp_path: Path, keep: Keep) -> None:
    path = write(tmp_path / "t.parquet", id=torch.arange(N), label=labels(), score=scores("float"))
    found = []
    for density in (0.1, 0.11, 0.5, 1.0):
        out = tmp_path / f"{density}.parquet"
        chosen = select_table(path, density, quota="proportional", keep=keep, out=out)
        found.append(set(kept(chosen).tolist()))
    assert all(small < large for small, large in itertools.pairwise(found))
    assert len(found[-1]) == N


@pytest.mark.parametrize("keep", KEEPS)
def test_few_buckets_give_the_same_rows(
    tmp_path: Path, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = scores("outlier")
    path = write(tmp_path / "t.parquet", id=torch.arange(N), label=labels(), score=score)
    fine = select_table(path, 0.3, quota="balanced", keep=keep, out=tmp_path / "fine.parquet")
    monkeypatch.setattr(_select, "CELLS", 1)
    coarse = select_table(path, 0.3, quota="balanced", keep=keep, out=tmp_path / "coarse.parquet")
    assert kept(fine).equal(kept(coarse))


def test_given_quotas_hand_checked(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        id=["e", "a", "b", "c", "d"],
        label=["dog", "cat", "cat", "cat", "dog"],
        score=[0.5, 0.7, 0.9, 0.7, 0.5],
    )
    out = tmp_path / "kept.parquet"
    chosen = select_table(path, quota={"cat": 2, "dog": 1}, keep="hard", out=out)
    # cat: b, then a before c of the same score; dog: d before e.
    assert pq.read_table(out)["id"].to_pylist() == ["a", "b", "d"]
    assert chosen.rows() == [("cat", 3, None, 2), ("dog", 2, None, 1)]
    assert chosen.rule == "given"


def test_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "scale.md"
    if not page.exists():
        pytest.skip("the documentation is not here")
    monkeypatch.chdir(tmp_path)
    columns = {"id": torch.arange(6), "score": torch.arange(6.0), "loss": torch.arange(6.0)}
    write(Path("train.parquet"), label=["cat", "dog", "cat"] * 2, **columns)
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(compile(block, page.name, "exec"), {})
    assert pq.read_table("kept.parquet")["id"].to_pylist() == [3, 4, 5]
    (query,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert run_sql(query, Path("train.parquet")).tolist() == [3, 4, 5]


def test_files_rows_and_columns_may_come_in_any_order(tmp_path: Path) -> None:
    target, score, number = labels(), scores("ties"), torch.arange(N)
    whole = write(tmp_path / "whole.parquet", id=number, label=target, score=score)
    turn = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    first, last = turn[:700], turn[700:]
    write(tmp_path / "part-0.parquet", score=score[first], label=target[first], id=first)
    write(tmp_path / "part-1.parquet", id=last, label=target[last], score=score[last], more=last)
    duckdb.sql(f"COPY (SELECT * FROM '{whole}') TO '{tmp_path / 'whole.csv'}'")
    parts = [tmp_path / "part-1.parquet", tmp_path / "part-0.parquet"]
    tables = [whole, str(tmp_path / "part-*.parquet"), parts, tmp_path / "whole.csv"]
    found = [
        kept(select_table(t, 0.2, quota="balanced", keep="hard", out=tmp_path / f"{i}.parquet"))
        for i, t in enumerate(tables)
    ]
    assert all(ids.equal(found[0]) for ids in found)


@pytest.mark.parametrize("names", [["Zebra", "ant", "Ötzi", "it's", 'a"b'], [True, False]])
def test_classes_of_any_name_in_a_fixed_order(tmp_path: Path, names: list[Any]) -> None:
    target = torch.arange(N) % len(names)
    path = write(tmp_path / "t.parquet", id=torch.arange(N), label=[names[k] for k in target])
    chosen = select_table(path, 0.1, quota="balanced", out=tmp_path / "kept.parquet")
    order = sorted(names)
    assert [cell[0] for cell in chosen.classes] == order
    own = torch.tensor([order.index(name) for name in names])[target]
    budget = round(0.1 * N)
    quota = quotas.balanced(torch.bincount(own), budget)
    assert kept(chosen).equal(in_memory(own, quota, own, "random", 0))
    if isinstance(names[0], str):
        assert run_sql(chosen.sql, path).equal(kept(chosen))


def test_columns_of_other_names(tmp_path: Path) -> None:
    columns = {"index": torch.arange(N), "the class": labels(), "Order": labels(3), "s": scores("float")}  # fmt: skip
    path = write(tmp_path / "t.parquet", **columns)
    named = {"id": "index", "label": "the class", "group": "Order", "score": "s"}
    how: dict[str, Any] = {"quota": "proportional", "keep": "hard", "by": "group"}
    chosen = select_table(path, 0.3, **how, **named, out=tmp_path / "kept.parquet")
    assert len(kept(chosen)) == round(0.3 * N)
    assert run_sql(chosen.sql, path).equal(kept(chosen))


def test_scores_are_not_read_for_a_random_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", id=torch.arange(4), label=torch.tensor([0, 0, 1, 1]))
    chosen = select_table(path, 0.5, quota="proportional", out=tmp_path / "kept.parquet")
    assert len(kept(chosen)) == 2


def test_little_memory_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    # One score for all: every row is in the range where the quota ends, so all of them are sorted.
    duckdb.sql(
        "COPY (SELECT range AS id, range % 3 AS label, 0.5 AS score FROM range(3000000)) "
        f"TO '{path}' (FORMAT parquet)"
    )
    out = tmp_path / "kept.parquet"
    select_table(path, 0.5, quota="balanced", keep="hard", memory="256MiB", out=out)
    ids = pq.read_table(out)["id"].to_numpy()
    assert (ids == range(1_500_000)).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.json", "kept.parquet", "t.parquet"]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("by", ["label", "group"])
def test_query_gives_the_same_in_another_database(tmp_path: Path, keep: Keep, by: str) -> None:
    target, score, group = labels(), scores("double"), labels(4) // 4
    number = torch.arange(N) * 7_000_000_001 - 10**12
    path = write(tmp_path / "t.parquet", id=number, label=target, score=score, cell=group)
    chosen = select_table(
        path, 0.3, quota="balanced", keep=keep, by=by, group="cell", out=tmp_path / "kept.parquet"
    )
    with sqlite3.connect(":memory:") as database:
        database.create_function("MOD", 2, lambda a, b: int(math.fmod(a, b)) if abs(a) < 2**53 else abs(a) % b * (1 if a > 0 else -1))  # fmt: skip
        database.create_function("FLOOR", 1, math.floor)
        database.create_function("LEAST", 2, min)
        database.create_function("GREATEST", 2, max)
        database.execute("CREATE TABLE my_table (id INTEGER, label INTEGER, score REAL, cell INTEGER)")  # fmt: skip
        rows = zip(*(c.tolist() for c in (number, target, score, group)), strict=True)
        database.executemany("INSERT INTO my_table VALUES (?, ?, ?, ?)", rows)
        found = database.execute(chosen.sql).fetchall()
    database.close()
    assert [row[0] for row in found] == kept(chosen).tolist()


def test_query_reads_as_expected() -> None:
    classes, quota, order = (("cat",), ("dog",)), torch.tensor([2, 1]), _sql.Order("hard", 0)
    columns = source_module.Columns(score="loss")
    text = _sql.definition(classes, quota, order, columns, excluded=False)
    assert text == (
        "WITH samples AS (\n"
        "  SELECT id AS id, label AS label, loss AS score\n"
        "  FROM my_table\n"
        "),\n"
        "quotas AS (\n"
        "  SELECT 'cat' AS label, 2 AS quota\n"
        "  UNION ALL SELECT 'dog' AS label, 1 AS quota\n"
        "),\n"
        "ranked AS (\n"
        "  SELECT label, id,\n"
        "    ROW_NUMBER() OVER (PARTITION BY label ORDER BY score DESC, id) AS place\n"
        "  FROM samples\n"
        ")\n"
        "SELECT ranked.id\n"
        "FROM ranked JOIN quotas ON ranked.label = quotas.label\n"
        "WHERE ranked.place <= quotas.quota\n"
        "ORDER BY ranked.id\n"
    )


IDS = [0, 1, 2, -1, 2**31, 2147483579, -2147483579, 2147483549, 2**62, 2**63 - 1, -(2**63)]


def slow_key(number: int, seed: int) -> int:
    p, q = 2147483579, 2147483549
    x = number % p
    for i, constant in enumerate(random_module._constants(seed)):
        if i == 1:
            x = (x + number % q) % p
        x = (x + constant) ** 3 % p
    return x


@pytest.mark.parametrize("seed", [0, 1, -3, 2**70])
def test_keys_in_torch_in_sql_and_in_exact_arithmetic(seed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    more = torch.randint(-(2**62), 2**62, (500,), generator=generator)
    ids = torch.cat([torch.tensor(IDS), more])
    expected = [slow_key(number, seed) for number in ids.tolist()]
    assert random_key(ids, seed).tolist() == expected
    query = random_module.random_key_sql("place", "given", "id", seed)
    with duckdb.connect() as connection:
        given = {"id": ids.numpy(), "place": torch.arange(len(ids)).numpy()}
        connection.register("given", pa.table(given))
        found = connection.execute(f"SELECT random FROM ({query}) ORDER BY place").fetchall()
    assert [row[0] for row in found] == expected


def test_no_product_overflows() -> None:
    largest = random_module.PRIME - 1 + random_module.LARGEST
    assert largest**2 < 2**63
    assert (random_module.PRIME - 1) * largest < 2**63


def test_keys_are_spread_evenly_and_differ_with_the_seed() -> None:
    n = 200_000
    keys = torch.stack([random_key(torch.arange(n), seed) for seed in (0, 1)]).double()
    keys /= random_module.PRIME
    for key in keys:
        assert len(key.unique()) > n - 50  # n**2 / 2**32 = 9 pairs
        for pair in (key[:-1], key[1:]), (key[:-7], key[7:]):
            cell = (pair[0] * 30).long() * 30 + (pair[1] * 30).long()
            count = torch.bincount(cell, minlength=900).double()
            mean = count.mean()
            assert abs(float(((count - mean) ** 2 / mean).sum()) - 899) < 5 * (2 * 899) ** 0.5
    low = keys < 0.3
    assert abs(int((low[0] & low[1]).sum()) - 0.09 * n) < 5 * (0.09 * n) ** 0.5


def test_keys_are_for_integers() -> None:
    with pytest.raises(TypeError, match=r"`index` must hold integers, got torch\.float32"):
        random_key(torch.rand(2))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(
        tmp_path / "t.parquet",
        id=torch.arange(60),
        label=["cat", "dog", "eel"] * 20,
        group=torch.arange(60) % 2,
        score=torch.arange(60).float(),
    )


def history(
    folder: Path, name: str = "val", k: int = 3, names: Sequence[str] | None = None, **more: Any
) -> Path:
    counts = ClassCounts(torch.arange(1, k + 1), torch.full((k,), 10))
    evaluation = Evaluation(name, 1, 1, False, counts)
    RecallHistory((evaluation,), None if names is None else tuple(names), **more).save(folder)
    return folder


def test_recalls_of_a_run(tmp_path: Path, table: Path) -> None:
    run = history(tmp_path / "run", names=["eel", "cat", "dog"])
    chosen = select_table(table, 0.5, recall=run, shrinkage=0)
    assert chosen.recall.tolist() == [0.2, 0.3, 0.1]
    assert chosen.path is None
    assert chosen.quota.equal(quotas.drop([20, 20, 20], [0.2, 0.3, 0.1], 30))


def test_recalls_of_numbered_groups_of_a_run(tmp_path: Path) -> None:
    ids = torch.arange(40)
    path = write(tmp_path / "t.parquet", id=ids, label=ids % 4 // 2, group=ids % 4)
    run = history(tmp_path / "run", "val/groups", k=4)
    chosen = select_table(path, 0.5, recall=run, by="group", shrinkage=0)
    assert chosen.recall.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_recalls_of_a_csv_file(tmp_path: Path, table: Path) -> None:
    csv = tmp_path / "recalls.csv"
    csv.write_text("recall,label,note\n0.5,dog,\n,cat,\n0.25,eel,x\n")
    chosen = select_table(table, 0.5, recall=csv)
    assert str(chosen.recall.tolist()) == "[nan, 0.5, 0.25]"
    assert json.loads(chosen.to_json())["classes"][0]["recall"] is None


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("label,recall\ncat,1\ndog,1\n", "has no recall for 1 of 3 classes, first for 'eel'"),
        ("label,recall\ncat,1\ncat,1\n", "line 3 of .* gives class 'cat' a second recall"),
        ("label,rate\ncat,1\n", "must have the columns label, recall, got label, rate"),
        ("", "must have the columns label, recall, got nothing"),
    ],
)
def test_recalls_that_do_not_fit(tmp_path: Path, table: Path, content: str, match: str) -> None:
    csv = tmp_path / "recalls.csv"
    csv.write_text(content)
    with pytest.raises(ValueError, match=match):
        select_table(table, 0.5, recall=csv)


@pytest.mark.parametrize(
    ("run", "by", "match"),
    [
        ({"names": ["cat", "dog", "fox"]}, "label", "'fox', which is not in the table"),
        ({}, "label", "numbers its classes, but the table names them, such as 'cat'"),
        ({"name": "test"}, "label", r"one validation of classes \(val\), it has test"),
        ({}, "group", r"one validation of groups \(val/groups\), it has val"),
        ({"name": "val/groups", "k": 2}, "group", "groups of the table have several labels each"),
    ],
)
def test_runs_that_do_not_fit(
    tmp_path: Path, table: Path, run: dict[str, Any], by: str, match: str
) -> None:
    folder = history(tmp_path / "run", **run)
    with pytest.raises(ValueError, match=match):
        select_table(table, 0.5, recall=folder, by=by)


GOOD = {"id": [0, 1, 2, 3], "label": [0, 0, 1, 1], "score": [0.1, 0.2, 0.3, 0.4]}
NAN = float("nan")


@pytest.mark.parametrize(
    ("keep", "change", "match"),
    [
        ("hard", {"score": [0.1, 0.2, None, 0.2]}, r"1 rows have no score \(NULL or NaN\), first id 2"),
        ("hard", {"label": [-1] * 4}, "all rows have the label -1"),
        ("hard", {"label": [0, 0, -1, -1], "score": [0.1, NAN, NAN, 0.2]}, "1 rows have no score .* id 1"),
        ("hard", {"id": [-200, 7, -200, -200]}, "'id' must be unique, but -200 occurs 3 times"),
        ("hard", {"id": ["a", "b", "b", "c"]}, "'id' must be unique, but 'b' occurs 2 times"),
        ("hard", {"id": [0, 1, None, 3]}, r"1 rows have no id \(column 'id' is NULL\)"),
        ("hard", {"id": [0.5, 1.5, 2.5, 3.5]}, "must hold integers or strings for the id, got DOUBLE"),
        ("stratified", {"score": [0.1, math.inf, 0.2, 0.3]}, r"1 rows have no finite score .* first id 1"),
        ("random", {"label": [-1, -1, -1, 0]}, r"`density` 0\.5 of 4 rows is 2, but only 1 have a class"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(
    tmp_path: Path, keep: Keep, change: dict[str, Any], match: str
) -> None:
    path, out = write(tmp_path / "t.parquet", **GOOD | change), tmp_path / "kept.parquet"
    with pytest.raises(ValueError, match=match):
        select_table(path, 0.5, quota="proportional", keep=keep, out=out)
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"density": None}, ValueError, "`density` must be above 0 and at most 1, got None"),
        ({"density": NAN}, ValueError, "`density` must be above 0"),
        ({"density": 1.0, "quota": {0: 1}}, ValueError, "`density` has no effect"),
        ({"density": None, "quota": {0: 1, 2: 1}}, ValueError, "a quota for class 2, which is not in the table: it has 0, 1"),
        ({"density": None, "quota": {0: 1}}, ValueError, "`quota` has no quota for 1 of 2 classes, first for 1"),
        ({"density": None, "quota": {0: 1, 1: 3}}, ValueError, "asks for 3 rows of class 1, which has 2"),
        ({"quota": "fair"}, ValueError, "`quota` must be one of drop, .* got 'fair'"),
        ({"recall": {0: 1.0}}, ValueError, "`recall` has no effect"),
        ({"quota": "drop", "recall": {0: 1.0}}, ValueError, "`recall` has no recall for 1 of 2"),
        ({"keep": "best"}, ValueError, "`keep` must be one of random, .* got 'best'"),
        ({"by": "class"}, ValueError, "`by` must be 'label' or 'group', got 'class'"),
        ({"by": "group"}, ValueError, "no column 'group' for the group, only id, label, score"),
        ({"memory": "much"}, ValueError, "`memory` must be at least 256MiB, such as 2GiB, got 'much'"),
        ({"seed": 0.5}, TypeError, "integer"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_used(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    path = write(tmp_path / "t.parquet", **GOOD)
    with pytest.raises(error, match=match):
        select_table(path, **{"density": 0.5, "quota": "proportional", **options})


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path, csv = write(tmp_path / "t.parquet", **GOOD), tmp_path / "t.csv"
    csv.write_text("id,label\n1,2\n")
    ask = {"density": 0.5, "quota": "proportional"}
    with pytest.raises(FileNotFoundError, match="There is no file 'gone-"):
        select_table([path, "gone-*.parquet"], **ask)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be Parquet files or all CSV files, got both"):
        select_table([path, csv], **ask)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"t\.parquet is named more often"):
        select_table([path, path], **ask)  # type: ignore[arg-type]
    (tmp_path / "t.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be \.parquet or \.csv files, got .*t\.txt"):
        select_table(tmp_path / "t.txt", **ask)  # type: ignore[arg-type]
    (tmp_path / "torn.parquet").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"the tables cannot be read: .*torn"):
        select_table(tmp_path / "torn.parquet", **ask)  # type: ignore[arg-type]


def test_too_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_fairprune.table import _count

    monkeypatch.setattr(_count, "MOST_CLASSES", 1)
    path = write(tmp_path / "t.parquet", **GOOD)
    with pytest.raises(ValueError, match="at most 1 different values, 'label' has 2"):
        select_table(path, 0.5, quota="proportional")


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path / "t.parquet", **GOOD), tmp_path / "kept.parquet"
    for there in ("kept.parquet", "kept.json"):
        (tmp_path / there).write_text("mine")
        with pytest.raises(ValueError, match=f"{re.escape(there)} already exists"):
            select_table(path, 0.5, quota="proportional", out=out)
        assert (tmp_path / there).read_text() == "mine"
        (tmp_path / there).unlink()
    with pytest.raises(ValueError, match=r"`out` must end in \.parquet"):
        select_table(path, 0.5, quota="proportional", out=tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone' for `out`"):
        select_table(path, 0.5, quota="proportional", out=tmp_path / "gone" / "kept.parquet")

    def stop(words: str) -> None:
        if words.startswith("Counting the rows kept"):  # the ids are in a temporary file by then
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select_table(path, 0.5, quota="none", out=out, on_step=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_table_that_changes_meanwhile(tmp_path: Path) -> None:
    path, out = write(tmp_path / "t.parquet", **GOOD), tmp_path / "kept.parquet"

    def change(words: str) -> None:
        if words.startswith("Counting keys"):
            write(path, **{**GOOD, "label": [0, 0, 0, 1]})

    with pytest.raises(ValueError, match=r"changed while they were read: .* rows are left of 4"):
        select_table(path, 1.0, quota="proportional", out=out, on_step=change)
    assert not out.exists()


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match=r"`memory` of 1GiB is not enough .*\(full\)"),
        source_module.plain_errors("1GiB"),
    ):
        raise duckdb.OutOfMemoryException("full\nmore")


def test_missing_duckdb_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet", **GOOD)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-fairprune\[scale\]'"):
        select_table(path, 0.5, quota="proportional")


def test_command(tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv, out = tmp_path / "recalls.csv", tmp_path / "kept.parquet"
    csv.write_text("label,recall\ncat,0.9\ndog,0.8\neel,0.7\n")
    arguments = ["select", str(table), "--density", "0.1", "--recall", str(csv), "--keep", "hard"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"cat +20 +0\.900 +1 +0\.050", text)
    assert re.search(r"all +60 +6 +0\.100", text)
    assert "kept.parquet, 6 of 60 rows, and kept.json beside it" in text
    # eel, 3 rows of the highest scores: 59, 56, 53; dog 58, 55; cat 57
    assert pq.read_table(out)["id"].to_pylist() == [53, 55, 56, 57, 58, 59]
    summary = json.loads((tmp_path / "kept.json").read_text())
    assert summary["classes"][2] == {"label": "eel", "size": 20, "recall": 0.7, "kept": 3}
    choice = {"quota": "drop", "keep": "hard", "seed": 0, "kept": 6, "num_samples": 60}
    assert summary.items() >= (choice | {"ids": "kept.parquet"}).items()
    with pytest.raises(SystemExit) as ending:
        cli.main([*arguments, "--out", str(out)])
    assert ending.value.code == 2
    assert "kept.parquet already exists" in capsys.readouterr().err


def test_command_that_writes_nothing(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["select", str(table), "--density", "0.5", "--quota", "balanced", "--by", "group"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"cat / 0 +10 +5 +0\.500", text)
    assert "Nothing was written: 30 of 60 rows would be kept" in text
    assert cli.main([*arguments, "--print-sql"]) == 0
    query = capsys.readouterr().out
    assert query.startswith("WITH samples AS (")
    assert len(run_sql(query, table)) == 30
    assert cli.main(["select", str(table), "--density", "0.5", "--quota", "none", "--dry-run"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_command_shows_the_ends_of_many_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = torch.arange(100).repeat_interleave(torch.arange(1, 101))
    path = write(tmp_path / "t.parquet", id=torch.arange(len(target)), label=target)
    out = str(tmp_path / "kept.parquet")
    assert cli.main(["select", str(path), "--density", "0.2", "--quota", "balanced", "--out", out]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert "80 more" in text
    assert len(text.splitlines()) < 32


def test_command_without_duckdb(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert cli.main(["select", str(table), "--density", "0.5", "--quota", "none"]) == 1
    assert "lightning-fairprune[scale]" in capsys.readouterr().err
