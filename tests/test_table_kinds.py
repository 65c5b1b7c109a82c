"""Tables as they are found: right, or refused in a sentence."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_fairprune import ClassCounts, cli, quotas
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.selection.decision import Decision
from lightning_fairprune.table import select_table

duckdb = pytest.importorskip("duckdb")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TARGET = torch.tensor([0] * 50 + [1] * 40 + [2] * 10)
COUNTS = ClassCounts(torch.tensor([20, 12, 3]), torch.tensor([20, 20, 5]))


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows(label: list[Any]) -> str:
    return "".join(f"{i},{value}\n" for i, value in enumerate(label))


def numbered(folder: Path) -> Path:
    return table(folder / "t.csv", "id,label\n" + rows(TARGET.tolist()))


# --------------------------------------------------------------------- shrinkage, floor, empty classes


@pytest.mark.parametrize(
    ("shrinkage", "floor"), [("auto", 0), (10.0, 0), (3.0, 0), (0.0, 2), ("auto", 4)]
)
def test_quotas_are_those_of_the_callback(tmp_path: Path, shrinkage: Any, floor: int) -> None:
    RecallHistory((Evaluation("val", 1, 1, False, COUNTS),)).save(tmp_path / "run")
    lines = zip(range(3), COUNTS.recall.tolist(), COUNTS.support.tolist(), strict=True)
    text = "label,recall,support\n" + "".join(f"{k},{r!r},{n}\n" for k, r, n in lines)
    given = table(tmp_path / "recall.csv", text)
    decision = Decision(0.3, quotas.drop, floor=floor)
    decision.learn(TARGET)
    expected = decision.estimate(0, COUNTS.shrunk_recall(shrinkage))
    for recall in (tmp_path / "run", given):
        found = select_table(
            numbered(tmp_path), 0.3, recall=recall, shrinkage=shrinkage, floor=floor
        )
        assert found.quota is not None
        assert found.quota.tolist() == expected.tolist()


@pytest.mark.filterwarnings("default:.*keep no sample")
def test_a_class_that_keeps_nothing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [("cat", "dog", "owl\x1b[2J")[k] for k in TARGET.tolist()]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": range(100), "label": labels}), path)
    recall = {"cat": 1.0, "dog": 0.5, "owl\x1b[2J": 1.0}
    said = r"2 of 3 classes keep no sample.*: 0 \(cat\), 2 \(owl\\x1b\[2J\)\. Set `floor`"
    with pytest.warns(UserWarning, match=said):
        assert select_table(path, 0.3, recall=recall).quota.tolist() == [0, 30, 0]
    floored = select_table(path, 0.3, recall=recall, floor=2)
    assert floored.quota.tolist() == [2, 26, 2]
    given = table(
        tmp_path / "r.csv", "label,recall\n" + "".join(f"{k},{v}\n" for k, v in recall.items())
    )
    assert (
        cli.main(["select", str(path), "--density", ".3", "--recall", str(given), "--dry-run"]) == 0
    )
    err = capsys.readouterr().err
    assert "Warning: 2 of 3 classes keep no sample" in err
    assert "UserWarning" not in err
    scores = pa.table({"id": range(100), "label": labels, "score": TARGET.tolist()})
    pq.write_table(scores, path)
    with pytest.warns(
        UserWarning, match=r"1 of 3 classes keep no sample.*: 0 \(cat\)\. Use quotas"
    ):
        select_table(path, 0.5, quota="none", keep="hard", out=tmp_path / "kept.parquet")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"floor": -1}, "`floor` must be 0 or more"),
        ({"floor": 1.5}, "`floor` must be .*whole number, got 1.5"),
        ({"shrinkage": -1}, "`shrinkage` must be 0 or more"),
        ({"shrinkage": float("nan")}, "`shrinkage` must be 0 or more"),
        ({"shrinkage": "much"}, "`shrinkage` must be 0 or more samples, or 'auto', got 'much'"),
        ({"floor": 1, "quota": "none"}, "`floor` has no effect"),
        ({"floor": 40}, "floor"),
    ],
)
def test_shrinkage_and_floor_that_cannot_be_used(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        select_table(numbered(tmp_path), 0.3, **({"quota": "balanced"} | options))


# ------------------------------------------------------------------------------------ kinds of labels


@pytest.mark.parametrize("words", [("false", "true"), ("False", "True"), ("FALSE", "TRUE")])
def test_boolean_labels(tmp_path: Path, words: tuple[str, str]) -> None:
    labels = [words[i % 4 == 0] for i in range(40)]
    path = table(tmp_path / "t.csv", "id,label\n" + rows(labels))
    recall = table(tmp_path / "r.csv", f"label,recall\n{words[0]},0.9\n{words[1]},0.5\n")
    for given in (recall, {False: 0.9, True: 0.5}):
        found = select_table(path, 0.5, recall=given)
        assert found.classes == ((0,), (1,))
        assert found.sizes.tolist() == [30, 10]
        assert found.quota.tolist() == quotas.drop([30, 10], [0.9, 0.5], 20).tolist()


def test_words_for_yes_and_no(tmp_path: Path) -> None:
    for words in (("yes", "no"), ("t", "f"), ("true", "maybe")):
        path = table(tmp_path / "t.csv", "id,label\n" + rows([words[i % 2] for i in range(20)]))
        recall = table(tmp_path / "r.csv", f"label,recall\n{words[0]},0.2\n{words[1]},0.8\n")
        found = select_table(
            path, 0.5, recall=recall
        )  # whether DuckDB takes the words for booleans or not
        for (cell,), n in zip(found.classes, found.quota.tolist(), strict=True):
            assert n == (8 if cell in (words[0], int(words[0] in ("yes", "t", "true"))) else 2)


def test_categories_and_dictionaries(tmp_path: Path) -> None:
    names = ["cat", "dog", "owl"]
    label = pa.DictionaryArray.from_arrays(pa.array(TARGET.numpy()), pa.array(names))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": range(100), "label": label}), path)
    found = select_table(path, 0.3, quota="balanced")
    assert found.classes == (("cat",), ("dog",), ("owl",))
    assert found.quota.tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([1.5, 2.5], "must hold integers or strings for the label, got DOUBLE"),
        ([Decimal("1.50"), Decimal("2.50")], r"must hold integers or strings .* got DECIMAL"),
        ([None, 1], r"1 rows have no label \(column 'label' is NULL\), first id 0"),
        ([2**63, 2**63 + 1], "the tables cannot be read: .*out of range"),
        ([[1], [2]], "must hold integers or strings for the label, got BIGINT"),
        ([-5, 3], "column 'label' must be >= -1, got -5"),
    ],
)
def test_labels_that_cannot_be_classes(tmp_path: Path, values: list[Any], match: str) -> None:
    path = tmp_path / "t.parquet"
    kind = pa.uint64() if values[0] == 2**63 else None
    pq.write_table(pa.table({"id": [0, 1], "label": pa.array(values, kind)}), path)
    with pytest.raises(ValueError, match=match):
        select_table(path, 0.5, quota="balanced")


@pytest.mark.parametrize(
    "text", ["2024-01-01", "2024-01-01 10:00:00", "170141183460469231731687303715884105727"]
)
def test_labels_in_text_that_are_something_else(tmp_path: Path, text: str) -> None:
    path = table(tmp_path / "t.csv", "id,label\n" + rows([text] * 4))
    with pytest.raises(ValueError, match="must hold integers or strings for the label, got"):
        select_table(path, 0.5, quota="balanced")


# ------------------------------------------------------------------------------------- kinds of files


@pytest.mark.parametrize("names", [("label", "label"), ("label", "Label"), ("LABEL", "label")])
def test_two_columns_of_one_name(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays = [pa.array(range(4)), pa.array([0, 0, 1, 1]), pa.array([1, 1, 1, 1])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["id", *names]), tmp_path / "t.parquet")
    text = f"id,{','.join(names)}\n0,0,1\n1,0,1\n2,1,1\n3,1,1\n"
    for path in (tmp_path / "t.parquet", table(tmp_path / "t.csv", text)):
        with pytest.raises(
            ValueError, match="must have one column 'label' for the label, it has"
        ) as e:
            select_table(path, 0.5, quota="balanced")
        assert all(repr(name) in str(e.value) for name in names)
    nested = pa.table({"id": range(4), "label": [0, 0, 1, 1], "more": [{"label": 1}] * 4})
    pq.write_table(nested, tmp_path / "nested.parquet")
    assert select_table(tmp_path / "nested.parquet", 0.5, quota="balanced").quota.tolist() == [1, 1]


def test_a_folder_that_names_a_column_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "label=cat").mkdir()
    path = table(tmp_path / "label=cat" / "t.csv", "id,label\n0,0\n1,1\n")
    with pytest.raises(ValueError, match="must have one column 'label' for the label, it has"):
        select_table(path, 0.5, quota="balanced")


@pytest.mark.parametrize(
    "scheme", ["http", "https", "s3", "hf", "gs", "gcs", "r2", "az", "azure", "file", "S3"]
)
def test_no_name_reaches_the_network(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(
        ValueError, match=r"tables must be files on this machine, got .*download it first"
    ):
        select_table(f"{scheme}://example.com/t.parquet", 0.5, quota="balanced")


def test_no_extension_is_downloaded_or_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[Any] = []
    connect, execute = duckdb.connect, "SELECT name, value FROM duckdb_settings() WHERE "
    execute += "name LIKE 'auto%extensions' OR name LIKE 'allow_community%'"

    class Kept:
        """A connection that stays open."""

        def __init__(self, **options: Any) -> None:
            self.connection = connect(**options)
            connections.append(self.connection)

        def __enter__(self) -> Any:
            return self.connection

        def __exit__(self, *_: Any) -> None:
            pass

        def execute(self, query: str) -> Any:
            return self.connection.execute(query)

    monkeypatch.setattr(duckdb, "connect", Kept)
    select_table(numbered(tmp_path), 0.5, quota="balanced")
    (connection,) = connections
    assert dict(connection.execute(execute).fetchall()) == {
        "allow_community_extensions": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    with pytest.raises(duckdb.Error, match=r"(?i)httpfs|extension"):
        connection.execute("SELECT * FROM read_parquet('https://example.invalid/t.parquet')")
    connection.close()


@pytest.mark.parametrize(
    "name", ["it's.csv", 'a "quoted".csv', "a;b.csv", "ü 猫.csv", "a.b.csv", "c_x.csv"]
)
def test_names_of_files(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / name, "id,label\n0,0\n1,1\n")
    assert select_table(path, 1.0, quota="balanced").quota.tolist() == [1, 1]


def test_folders_and_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"it is a folder; give the files in it, such as '.*\*"
    ):
        select_table(tmp_path, 0.5, quota="balanced")
    numbered(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(select_table("~/t.csv", 0.5, quota="balanced")) == 50
    with pytest.raises(FileNotFoundError, match="There is no file"):
        select_table("C:\\data\\t.csv", 0.5, quota="balanced")


@pytest.mark.parametrize(
    "label", ["select", "order", "a.b", 'a"b', "a\nb", "a b", "group", "index", "é"]
)
def test_names_of_columns(tmp_path: Path, label: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": range(100), label: TARGET.tolist()}), path)
    found = select_table(path, 0.3, quota="balanced", label=label, out=tmp_path / "kept.parquet")
    assert found.quota.tolist() == [10, 10, 10]
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW my_table AS SELECT * FROM '{path}'")
        ids = [row[0] for row in connection.execute(found.sql).fetchall()]
    assert ids == pq.read_table(tmp_path / "kept.parquet")["id"].to_pylist()


@pytest.mark.parametrize("text", ["", "id,label\n", "\n\n", "id\n"])
def test_tables_without_rows(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"no column|have rows|cannot be read"):
        select_table(table(tmp_path / "t.csv", text), 0.5, quota="balanced")


def test_other_ways_to_write_csv(tmp_path: Path) -> None:
    body = [f"{i}|{'a' if i % 2 else 'b'}" for i in range(20)]
    for between, before in ((",", ""), (";", ""), ("\t", ""), (",", "\ufeff")):
        text = before + "\n".join(line.replace("|", between) for line in ["id|label", *body]) + "\n"
        found = select_table(table(tmp_path / "t.csv", text), 0.5, quota="balanced")
        assert found.classes == (("a",), ("b",))
        assert found.quota.tolist() == [5, 5]
    quoted = "id,label\n" + "".join(f'{i},"a\n{i % 2}"\n' for i in range(20))
    found = select_table(table(tmp_path / "t.csv", quoted), 0.5, quota="balanced")
    assert found.classes == (("a\n0",), ("a\n1",))


def test_a_type_that_changes_after_what_was_sniffed(tmp_path: Path) -> None:
    labels = ["1"] * 30_000 + ["cat"]
    with pytest.raises(
        ValueError, match=r"the tables cannot be read: .*; copy or write them again"
    ):
        select_table(table(tmp_path / "t.csv", "id,label\n" + rows(labels)), 0.5, quota="balanced")


def test_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(("id,label\n" + rows([0, 1] * 10)).encode("utf-16"))
    with pytest.raises(ValueError, match=r"no column|cannot be read"):
        select_table(tmp_path / "t.csv", 0.5, quota="balanced")


def test_the_summary_has_a_checksum(tmp_path: Path) -> None:
    select_table(numbered(tmp_path), 0.5, quota="balanced", out=tmp_path / "kept.parquet")
    found = json.loads((tmp_path / "kept.json").read_text())
    assert (found["version"], len(found["checksum"])) == ("2", 8)
