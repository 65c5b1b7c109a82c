"""Files of others run no code, names of others stay names, and files of ours are nobody else's."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import os
import pickle
import re
import stat
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_fairprune as lfp
from lightning_fairprune import cli
from lightning_fairprune._files import write_whole
from lightning_fairprune.records.recall_history import Evaluation, printable
from lightning_fairprune.report._settings import _parsed
from lightning_fairprune.table import select_table

ROOT = Path(lfp.__file__).parent
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")


def calls() -> list[tuple[str, str, ast.Call]]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
    return [
        (path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node)
        for path, tree in sorted(trees.items())
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def test_nothing_is_unpickled_or_evaluated() -> None:
    loaders = ("torch.load", "np.load", "numpy.load", "pickle.load", "pickle.loads")
    forbidden = ("eval", "exec", "compile", "os.system", "yaml.unsafe_load", "yaml.full_load")
    for path, name, node in calls():
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert name not in forbidden, f"{path} calls {name}"
        assert not name.endswith(("read_pickle", "load_from_checkpoint")), f"{path} calls {name}"
        assert options.get("shell", "False") == "False", f"{path}: {name}(shell=...)"
        assert options.get("allow_pickle", "False") == "False", f"{path}: {name}(allow_pickle=...)"
        if name == "torch.load":
            assert options["weights_only"] == "True", path
        elif name in loaders:
            # The arrays of CIFAR, by an unpickler that knows arrays only; other files are no pickles.
            assert name == "np.load", f"{path} calls {name}"
            assert path == "experiments/data/_read.py"


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_cifar_build_arrays_only(tmp_path: Path, protocol: int) -> None:
    from lightning_fairprune.experiments.data._read import stored_pickles

    path, owned = tmp_path / "data_batch_1", tmp_path / "owned"
    path.write_bytes(pickle.dumps({"labels": Payload(owned)}, protocol))
    with pytest.raises(pickle.UnpicklingError, match="must hold arrays only"):
        stored_pickles([path], "labels")
    assert not owned.exists()


def test_yaml_of_a_run_builds_no_objects(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    text = f"a: !!python/object/apply:os.mkdir ['{owned}']\nb: !!python/name:os.system\nc: 1"
    found: Any = _parsed(text)
    assert found["c"] == 1
    assert not owned.exists()


def test_yaml_that_refers_to_itself_over_and_over_stays_text() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    assert _parsed(text) == text  # 9**12 values
    assert _parsed("a: &a [*a]") == "a: &a [*a]"
    assert _parsed("a: &a [1]\nb: *a") == {"a": [1], "b": [1]}


EVIL = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</pre></style></title><svg onload=alert(1)>",
    "javascript:alert(1)",
    "| a | b |\n| --- | --- |",
    '=HYPERLINK("http://example.com","x")',
    "@SUM(A1)",
    "cat\u202egod",
    "dog\x1b]0;title\x07\x1b[2J",
    "$\\frac{1}$",
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has {name}={value}"
            if name in ("src", "href", "srcset"):
                assert value.startswith(("data:image/png;base64,", "#")), value


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    folder = tmp_path_factory.mktemp("evil")
    for seed in (0, 1):
        counts = lfp.ClassCounts(torch.arange(len(EVIL)) + seed, torch.full((len(EVIL),), 20))
        last = Evaluation("val", 1, 100, False, counts)
        home = folder / f"run <script>alert({seed})<"
        lfp.RecallHistory((last,), EVIL, {"val": counts}, seed=seed).save(home / "fairprune")
        (home / "hparams.yaml").write_text(f"model: {EVIL[2]!r}\nname: {EVIL[1]!r}\nseed: {seed}\n")
    names = [f"{EVIL[0]}\u202e=%s" % place for place in sorted(folder.iterdir())]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main(["report", *names, "--out", str(folder / "page")]) == 0
    (folder / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    return folder / "page"


def test_names_are_text_on_the_page(page: Path) -> None:
    text = (page / "index.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert not tags.found & {"script", "svg", "iframe", "object", "embed", "form", "a\u202e"}
    assert "default-src 'none'" in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_names_are_text_in_markdown(page: Path) -> None:
    lines = (page / "summary.md").read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in tables}) == 2  # settings and classes
    assert not [line for line in lines if re.search(r"(?<!\\)<[a-z/]", line)]


@pytest.mark.parametrize("name", ["summary.csv", "classes.csv", "runs.csv"])
def test_no_cell_is_a_formula(page: Path, name: str) -> None:
    rows = list(csv.reader(io.StringIO((page / name).read_text(encoding="utf-8"))))
    cells = [cell for row in rows for cell in row]
    for cell in cells:
        if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
            float(cell)
    if name == "classes.csv":
        assert "'@SUM(A1)" in cells


def test_no_file_leaves_the_folder(page: Path) -> None:
    files = [path for path in page.parent.rglob("*") if path.is_file()]
    ours = ("hparams.yaml", "said.txt")
    kept = {p.parent for p in files if p.parent.name == "fairprune" or p.name in ours}
    assert {path.parent for path in files} - kept == {page}
    assert all(printable(path.name) == path.name for path in page.iterdir())


def test_a_terminal_gets_no_escapes(page: Path) -> None:
    said = (page.parent / "said.txt").read_text(encoding="utf-8")
    assert r"\u202e" in said
    assert "\u202e" not in said
    assert "\x1b" not in said


def test_printable_names_keep_their_script() -> None:
    for name in ("кошка", "猫　二", "می\u200cخواهم", "👩\u200d🚀", "a b", "naïve"):
        assert printable(name) == name


QUOTED = ('la"bel', "sco're", "id; DROP TABLE samples", "a' OR '1'='1")


def test_names_are_names_in_sql(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    label, score, id_, value = QUOTED
    path = tmp_path / 'it\'s; a "table".csv'
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([id_, label, score])
        writer.writerows([[i, value if i % 2 else "'; DROP", i / 10] for i in range(8)])
    out = tmp_path / "it's kept.parquet"
    chosen = select_table(
        path, 0.5, quota="balanced", keep="hard", id=id_, label=label, score=score, out=out
    )
    kept = lfp.Selection.from_parquet(out, torch.arange(8) % 2)
    assert kept.indices.tolist() == [4, 5, 6, 7]
    database = duckdb.connect()
    database.execute(
        f"CREATE TABLE my_table AS SELECT * FROM read_csv('{str(path).replace(chr(39), chr(39) * 2)}')"
    )
    assert database.execute(chosen.sql).fetchall() == [(4,), (5,), (6,), (7,)]


def test_file_names_are_no_patterns(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    for name in ("a1.csv", "a[1].csv"):
        (tmp_path / name).write_text("id,label\n0,0\n1,1\n")
    with pytest.raises(ValueError, match=r"names without \*, \? and \[, got '.*a\[1\].csv'"):
        select_table([tmp_path / "a*.csv"], 0.5, quota="balanced")


@POSIX
def test_a_file_is_its_owners_alone_until_it_is_whole(tmp_path: Path) -> None:
    modes = []

    def write(temporary: Path) -> None:
        assert temporary.parent == tmp_path
        modes.append(stat.S_IMODE(temporary.stat().st_mode))
        temporary.write_text("new")

    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "a", write)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_nobody_can_guess_the_temporary_name(tmp_path: Path) -> None:
    names: set[str] = set()
    for _ in range(20):
        write_whole(tmp_path / "a", lambda temporary: names.add(temporary.name))
    assert len(names) == 20
    assert not [name for name in names if str(os.getpid()) in name.replace(".", " ").split()]


@POSIX
def test_a_link_in_the_way_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("old")
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".a.guessed.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", lambda temporary: temporary.write_text("new"))
    assert precious.read_text() == "old"


@POSIX
def test_a_link_in_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("old")
    (tmp_path / "a").symlink_to(precious)
    write_whole(tmp_path / "a", lambda temporary: temporary.write_text("new"))
    assert precious.read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()


def test_evaluations_with_names_like_paths_stay_in_the_folder(tmp_path: Path) -> None:
    counts = lfp.ClassCounts(torch.tensor([1]), torch.tensor([2]))
    names = ("val/../../../etc", "..", "/etc/passwd")
    evaluations = tuple(Evaluation(name, 1, 1, False, counts) for name in names)
    home = tmp_path / "a" / "b"
    lfp.RecallHistory(evaluations).save(home)
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {home}
    assert lfp.RecallHistory.load(home).names == names
