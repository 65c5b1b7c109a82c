"""The report: reading, grouping, pairing, numbers and what can be wrong with runs."""

from __future__ import annotations

import csv
import math
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_fairprune import cli, recalls, select, statistics
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.report import _build, _draw, _settings, _words, main, report
from lightning_fairprune.report._compare import Comparison, compare
from lightning_fairprune.report._examples import examples_of
from lightning_fairprune.report._read import natural, read
from lightning_fairprune.selection.decision import Estimate

NAMES = ("cat", "dog", "<script>alert(1)</script>", "a|b")
FULL = ((90, 80, 60, 70), (92, 78, 62, 71), (88, 81, 58, 69))
DROP = ((85, 78, 55, 70), (86, 77, 57, 69), (84, 78, 53, 72))
RANDOM = ((89, 76, 31, 64), (90, 75, 33, 66), (88, 74, 29, 62))


def counts(tp: Any, support: Any = 100) -> ClassCounts:
    tp = torch.as_tensor(tp)
    return ClassCounts(tp, torch.as_tensor(support).expand(len(tp)).clone())


def make(
    folder: Path,
    tp: Any,
    seed: int | None = 0,
    *,
    data: str = "test",
    names: tuple[str, ...] | None = NAMES,
    settings: dict[str, Any] | None = None,
    hparams: str | None = None,
    support: Any = 100,
    reference: Any = None,
    epochs: int = 3,
) -> Path:
    """Writes the files of a run."""
    final = counts(tp, support)
    tensor = final.tp
    pruned = settings is not None
    evaluations = [
        Evaluation("val", e, 10 * e, e > 1 and pruned, counts(tensor // (5 - e), support))
        for e in range(1, epochs + 1)
    ]
    evaluations.append(Evaluation(data, 0, 30, pruned, final))
    saved = {} if reference is None else {data: counts(reference, support)}
    RecallHistory(tuple(evaluations), names, saved, seed).save(folder / "fairprune")
    if hparams is not None:
        (folder / "hparams.yaml").write_text(hparams)
    if settings is not None:
        target = torch.arange(len(tensor)).repeat_interleave(10)
        quota = torch.tensor([2, 3, 5, 6])[: len(tensor)]
        history = tuple(Estimate(e, final.recall, q) for e, q in ((1, quota.flip(0)), (2, quota)))
        chosen = select(target, quota, seed=seed or 0)
        score = torch.rand(len(target), generator=torch.Generator().manual_seed(1))
        record = PruningRecord(chosen, target, score, history, {**settings, "seed": seed})
        record.save(folder / "fairprune")
    return folder


def write_all(root: Path) -> Path:
    """Three settings with three seeds each."""
    drop = {"density": 0.4, "quota": "lightning_fairprune.quotas.drop", "score": None}
    random = {"density": 0.4, "quota": None, "score": None}
    kinds = (("full", FULL, None), ("drop", DROP, drop), ("random", RANDOM, random))
    for name, tps, settings in kinds:
        for seed, tp in enumerate(tps):
            hparams = f"lr: 0.1\nseed: {seed}\nwhat: <b>&bold\n"
            make(root / name / f"version_{seed}", tp, seed, settings=settings, hparams=hparams)
    return root


class Images(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((3, 4, 4), i / 40), i // 10


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    root = write_all(tmp_path_factory.mktemp("runs"))
    out = root / "out" / "deep"
    found = report([root / "drop", root / "random"], root / "full", out, dataset=Images())
    return found, out


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def share(tps: Any) -> Tensor:
    return torch.tensor(tps).double() / 100


def test_files_are_those_that_are_promised(written: tuple[Comparison, Path]) -> None:
    names = {path.name for path in written[1].iterdir()}
    assert {"index.html", "summary.md", "summary.csv", "classes.csv", "runs.csv"} < names
    pictures = {name.removesuffix(".png") for name in names if name.endswith(".png")}
    kinds = ("recall_by_class", "density_against_recall", "kept_by_class", "quotas_over_time")
    expected = {f"{kind}_{i}_{q}" for kind in kinds for i, q in ((1, "drop"), (2, "random"))}
    expected |= {"intensification_1_drop", "intensification_2_random"}
    assert pictures == expected | {"recalls_over_epochs"}
    for name in pictures:
        assert (written[1] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not any(name.startswith(".") for name in names)


def test_summary_holds_means_and_intervals(written: tuple[Comparison, Path]) -> None:
    reference, drop, random = rows_of(written[1] / "summary.csv")
    assert [r["setting"] for r in (reference, drop, random)] == ["reference", "drop", "random"]
    assert [r["role"] for r in (reference, drop, random)] == ["reference", "setting", "setting"]
    before = share(FULL)
    for row, tps in ((reference, FULL), (drop, DROP), (random, RANDOM)):
        after = share(tps)
        values = {
            "average": after.mean(1),
            "worst": after.amin(1),
            "gap": after.amax(1) - after.amin(1),
            "std": after.std(1, correction=0),
            "zero_recall": torch.zeros(3),
        }
        if row is not reference:
            values["alpha"] = statistics.intensification_ratio(before, after)
            lost = (before - after) - (before - after).mean(1, keepdim=True)
            values["disparity"] = lost.amax(1)
            values["density"] = torch.full((3,), 16 / 40)
        for name, value in values.items():
            expected = statistics.summarise(value.double(), 0.95)
            assert float(row[name]) == pytest.approx(float(value.mean()), abs=1e-5)
            assert float(row[f"{name}_low"]) == pytest.approx(expected.low, abs=1e-5)
            assert float(row[f"{name}_high"]) == pytest.approx(expected.high, abs=1e-5)
        assert row["seeds"] == "3"
        assert row["worst_class"] == NAMES[2]
    assert reference["alpha"] == reference["density"] == reference["alpha_label"] == ""
    alpha = statistics.intensification_ratio(before, share(RANDOM))
    assert random["alpha_label"] == statistics.summarise(alpha, 0.99).label == ">"


def test_classes_hold_every_run_and_class(written: tuple[Comparison, Path]) -> None:
    rows = rows_of(written[1] / "classes.csv")
    assert len(rows) == 2 * 3 * 4
    for i, row in enumerate(rows):
        group, m, k = i // 12, i // 4 % 3, i % 4
        after, before = share((DROP, RANDOM)[group])[m], share(FULL)[m]
        assert row["class"] == NAMES[k]
        assert (row["class_index"], row["seed"], row["support"]) == (str(k), str(m), "100")
        assert row["run"].endswith(f"version_{m}")
        assert float(row["recall_before"]) == pytest.approx(float(before[k]))
        assert float(row["recall"]) == pytest.approx(float(after[k]))
        assert float(row["change"]) == pytest.approx(float(after[k] - before[k]), abs=1e-6)
        assert float(row["retention"]) == pytest.approx(float(after[k] / before[k]), rel=1e-5)
        adjusted = (after - before)[k] - (after.mean() - before.mean())
        assert float(row["adjusted_change"]) == pytest.approx(float(adjusted), abs=1e-6)
        ratio = recalls.class_intensification(after, before)[k]
        assert float(row["intensification"]) == pytest.approx(float(ratio), rel=1e-4)
        quota = (2, 3, 5, 6)[k]
        assert (float(row["size"]), float(row["kept"])) == (10, quota)
        assert float(row["density"]) == pytest.approx(quota / 10)


def test_runs_hold_every_run(written: tuple[Comparison, Path]) -> None:
    rows = rows_of(written[1] / "runs.csv")
    assert [row["seed"] for row in rows] == ["0", "1", "2"] * 2
    assert {row["compared_with"] for row in rows} == {"seed"}
    assert float(rows[3]["worst"]) == pytest.approx(0.31)
    assert float(rows[3]["accuracy"]) == pytest.approx(0.65)
    assert (rows[3]["kept"], rows[3]["num_samples"], rows[3]["step"]) == ("16", "40", "30")


def test_markdown_escapes_and_names_who_pays(written: tuple[Comparison, Path]) -> None:
    text = (written[1] / "summary.md").read_text()
    assert "a\\|b" in text
    assert "\\<script>" in text
    assert "lost 29.0 points (60.0 → 31.0) while the average lost 10.2" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") in (12, 7) for line in table)


def test_same_input_gives_the_same_bytes(
    written: tuple[Comparison, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = written[1].parents[1]
    monkeypatch.setattr(_build, "drawings", lambda comparison: [])
    for out in ("a", "b"):
        report([root / "drop", root / "random"], [root / "full"], tmp_path / out, dataset=Images())
    for name in ("index.html", "summary.md", "summary.csv", "classes.csv", "runs.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        if name != "index.html":
            assert (tmp_path / "a" / name).read_bytes() == (written[1] / name).read_bytes()


VOID = {"meta", "img", "source", "br", "link"}


class Page(HTMLParser):
    """What is in a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_whole_and_safe(written: tuple[Comparison, Path]) -> None:
    text = (written[1] / "index.html").read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "form", "base", "svg"} & set(tags)
    assert "http:" not in text
    assert "https:" not in text
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "srcset"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png")
        if tag == "img":
            assert attributes["alt"]
    assert page.tags[0] == ("html", {"lang": "en"})
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    said = {"http-equiv": "Content-Security-Policy", "content": policy}
    assert ("meta", said) in page.tags
    for words in (NAMES[2], "what: <b>&bold", "quota: lightning_fairprune.quotas.drop"):
        assert words in " ".join(page.text)


def test_no_template_lets_html_through() -> None:
    templates = Path(_build.__file__).parent / "templates"
    texts = [path.read_text() for path in templates.iterdir()]
    assert len(texts) == 4
    assert not any(re.search(r"\bsafe\b|autoescape", text) for text in texts)


def test_headings_are_in_order_and_links_lead_somewhere(written: tuple[Comparison, Path]) -> None:
    page = Page((written[1] / "index.html").read_text())
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(set(ids)) == len(ids) == 10
    assert links == [f"#{name}" for name in ids]


def test_figures_have_a_form_for_phones_and_examples_are_shown_of_each_class(
    written: tuple[Comparison, Path],
) -> None:
    page = Page((written[1] / "index.html").read_text())
    sources = [attributes for tag, attributes in page.tags if tag == "source"]
    assert len(sources) == len(list(written[1].glob("*.png")))
    assert {attributes["media"] for attributes in sources} == {"(max-width: 640px)"}
    alts = [attributes["alt"] or "" for tag, attributes in page.tags if tag == "img"]
    kept = [alt for alt in alts if alt.startswith(("hardest, kept", "easiest, kept"))]
    dropped = [alt for alt in alts if alt.startswith(("hardest, dropped", "easiest, dropped"))]
    assert len(kept) == 2 * 16
    assert len(dropped) == 2 * 24


def test_a_thousand_classes_are_a_small_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"class number {k}" for k in range(1000))
    for name in ("full", "half"):
        for seed in range(2):
            tp = torch.randint(30, 100, (1000,), generator=generator)
            make(tmp_path / name / str(seed), tp, seed, names=names)
    report(tmp_path / "half", tmp_path / "full", tmp_path / "out")
    page = tmp_path / "out" / "index.html"
    assert page.stat().st_size < 3_000_000
    assert Page(page.read_text()).tags.count(("tr", {})) > 1000


def test_runs_with_equal_settings_are_seeds(tmp_path: Path) -> None:
    write_all(tmp_path)
    groups = _settings.grouped(read([tmp_path]))
    sizes = {label: len(runs) for label, runs in groups.items()}
    assert sizes == {"quota=drop": 3, "no pruning": 3, "quota=none": 3}


DENSITY = {"density": 0.3, "quota": "a.b.drop", "warmup_epochs": 5}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([(None, "")], ["no pruning"]),
        ([(DENSITY, "")], ["quota=drop, density=0.3"]),
        ([(DENSITY, ""), (None, "")], ["quota=drop, density=0.3", "no pruning"]),
        (
            [(DENSITY, ""), ({**DENSITY, "density": 0.5, "quota": None}, "")],
            ["quota=drop, density=0.3", "density=0.5"],
        ),
        (
            [(DENSITY, ""), ({**DENSITY, "warmup_epochs": 9}, "")],
            ["warmup_epochs=5", "warmup_epochs=9"],
        ),
        ([(DENSITY, "lr: 1"), (DENSITY, "lr: 2\nseed: 3")], None),
        (
            [(None, "net: {width: 8}"), (None, "net: {width: 16}")],
            ["no pruning, width=8", "no pruning, width=16"],
        ),
        ([(None, "data_seed: 1"), (None, "data_seed: 2")], ["no pruning"]),
        ([(None, "a: !!python/object:x.Y {b: 1}"), (None, "a: 2")], None),
        ([(None, "a: [1"), (None, "a: 2")], None),
    ],
)
def test_a_label_says_what_is_particular(
    tmp_path: Path, settings: list[Any], expected: list[str] | None
) -> None:
    for i, (pruning, hparams) in enumerate(settings):
        make(tmp_path / f"v{i}", FULL[0], i, settings=pruning, hparams=hparams)
    found = list(_settings.grouped(read([tmp_path])))
    if expected is None:
        assert len(set(found)) == 2
    else:
        assert found == expected


def test_several_folders_name_their_settings(tmp_path: Path) -> None:
    write_all(tmp_path)
    both = read([tmp_path / "drop", tmp_path / "random"])
    assert list(_settings.grouped(both)) == ["drop", "random"]
    # One folder says nothing, and one that holds two settings is the name of neither.
    assert list(_settings.grouped(read([tmp_path / "drop"]))) == ["quota=drop, density=0.4"]
    mixed = read([tmp_path / "drop" / "version_0", tmp_path])
    assert "drop" not in _settings.grouped(mixed)


def test_labels_fall_back_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one = make(tmp_path / "a" / "v0", FULL[0], hparams="x: 1")
    two = make(tmp_path / "b" / "v0", FULL[1], 1, hparams="x: 1")
    (one / "config.yaml").write_text("seed_everything: 1\ntrainer: {default_root_dir: x}\n")
    (two / "config.yaml").write_text("seed_everything: 2\ntrainer: {default_root_dir: y}\n")
    assert list(_settings.grouped(read([one, two]))) == ["no pruning"]
    (two / "config.yaml").write_text("trainer: {max_epochs: 5}\n")
    assert list(_settings.grouped(read([one, two])))[1] == "no pruning, max_epochs=5"
    named = read([f"no pruning={one}", two])
    assert list(_settings.grouped(named)) == ["no pruning", "no pruning (v0)"]


def test_weights_that_were_pruned_are_not_called_unpruned(tmp_path: Path) -> None:
    run = make(tmp_path / "r", FULL[0])
    history = RecallHistory.load(run)
    pruned = tuple(e._replace(pruned=True) for e in history.evaluations)
    RecallHistory(pruned, NAMES, {}, 0).save(run / "fairprune")
    assert list(_settings.grouped(read([run]))) == ["weights pruned"]


def test_runs_of_one_name_are_one_setting(tmp_path: Path) -> None:
    write_all(tmp_path)
    found = compare(read([f"A={tmp_path / 'drop'}", f"A={tmp_path / 'random' / 'version_0'}"]))
    assert [(group.label, len(group.runs)) for group in found.settings] == [("A", 4)]
    assert "The runs of A differ in pruning.quota." in found.notes
    assert any("several runs with seed 0" in note for note in found.notes)


@pytest.mark.parametrize("inside", [".", "fairprune", "fairprune/recalls.safetensors"])
def test_a_run_can_be_named_by_its_files(tmp_path: Path, inside: str) -> None:
    run = make(tmp_path / "lr=0.1" / "version_0", FULL[0], 7, hparams="a: 1")
    (found,) = read([run / inside])
    assert (found.path.resolve(), found.seed, found.texts) == (run, 7, {"hparams.yaml": "a: 1"})


def test_folders_are_searched_in_natural_order_and_counted_once(tmp_path: Path) -> None:
    for i in (10, 2, 1):
        make(tmp_path / "lr=0.1" / f"version_{i}", FULL[0], i)
    found = read([tmp_path, tmp_path / "lr=0.1" / "version_2"])
    assert [run.seed for run in found] == [1, 2, 10]
    assert sorted(["v10", "v2", "v1"], key=natural) == ["v1", "v2", "v10"]


def test_pairs_are_of_equal_seed(tmp_path: Path) -> None:
    write_all(tmp_path)
    found = compare(read([tmp_path]), read([tmp_path / "full" / "version_2", tmp_path / "full"]))
    assert [group.label for group in found.settings] == ["quota=drop", "quota=none"]
    for group in found.settings:
        assert group.pairing == "seed"
        assert torch.equal(group.before, share(FULL))  # type: ignore[arg-type]
    assert "equal seed" in _words.compared_with(found)
    assert any("not shown among" in note for note in found.notes)


def test_without_equal_seeds_the_mean_is_the_reference(tmp_path: Path) -> None:
    for seed in range(3):
        make(tmp_path / "full" / str(seed), FULL[seed], seed + 5)
        make(tmp_path / "drop" / str(seed), DROP[seed], seed)
    (group,) = compare(read([tmp_path / "drop"]), read([tmp_path / "full"])).settings
    assert group.pairing == "mean"
    assert torch.allclose(group.before, share(FULL).mean(0).expand(3, 4))  # type: ignore[arg-type]
    # Seeds that are not known are no pair.
    one = make(tmp_path / "a", DROP[0], None)
    two = make(tmp_path / "b", FULL[0], None)
    found = compare(read([one]), read([two]))
    assert found.settings[0].pairing == "mean"
    assert "the one reference run" in _words.compared_with(found)
    assert found.settings[0].test is None


def test_saved_references_are_used(tmp_path: Path) -> None:
    for seed in range(2):
        make(tmp_path / "drop" / str(seed), DROP[seed], seed, reference=FULL[seed])
    make(tmp_path / "other", RANDOM[0], 9, hparams="lr: 1")
    found = compare(read([tmp_path]))
    drop, other = found.settings
    assert drop.pairing == "saved"
    assert torch.equal(drop.before, share(FULL[:2]))  # type: ignore[arg-type]
    assert drop.test is not None
    assert other.before is None
    assert other.change.isnan().all()
    assert f"None was kept by {other.label}" in _words.compared_with(found)
    first, second = _words.verdict(found)
    assert first.startswith("no pruning, lr=none: ")
    assert second.endswith("below the average.")


def test_without_a_reference_distortion_is_left_out(tmp_path: Path) -> None:
    run = make(tmp_path / "r", DROP[0])
    found = compare(read([run]))
    assert found.reference is None
    (text,) = _words.verdict(found)
    assert text.endswith("has the lowest recall, 55.0, 17.0 points below the average.")
    report(run, out=tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "--reference" in page
    assert "intensification" not in page.lower()
    (row,) = rows_of(tmp_path / "out" / "summary.csv")
    assert (row["alpha"], row["worst_low"], row["worst"]) == ("", "", "0.55")


def test_runs_on_all_the_data_are_proposed_as_reference(tmp_path: Path) -> None:
    text = _words.compared_with(compare(read([write_all(tmp_path)])))
    assert "--reference" in text
    assert text.endswith("full/version_2.")


def test_significant_classes_are_marked(tmp_path: Path) -> None:
    write_all(tmp_path)
    found = compare(read([tmp_path]), read([tmp_path / "full"]))
    group = found.settings[1]
    expected = statistics.class_change_test(share(FULL), share(RANDOM))
    assert torch.equal(group.test.adjusted, expected.adjusted)
    assert _words.marks(group)[2] == "lost"
    assert set(_words.marks(group)) == set(expected.lost().tolist() + expected.gained().tolist())


def test_classes_are_sorted_by_what_they_lost(tmp_path: Path) -> None:
    support = torch.tensor([100, 100, 0, 100])
    make(tmp_path / "a", (80, 50, 0, 90), support=support)
    make(tmp_path / "b", (90, 80, 0, 70), support=support)
    found = compare(read([tmp_path / "a"]), read([tmp_path / "b"]))
    assert found.settings[0].order.tolist() == [1, 0, 3, 2]
    assert compare(read([tmp_path / "a"])).settings[0].order.tolist() == [1, 0, 3, 2]
    (text,) = _words.verdict(found)
    assert text.startswith("dog lost 30.0 points (80.0 → 50.0) while the average lost")
    assert text.endswith("; the worst class went from 70.0 to 50.0.")
    assert found.settings[0].weakest == 1


def test_no_loss_is_said_so(tmp_path: Path) -> None:
    make(tmp_path / "a", (95, 81, 70, 75), names=None)
    make(tmp_path / "b", FULL[0], names=None)
    found = compare(read([tmp_path / "a"]), read([tmp_path / "b"]))
    assert _words.verdict(found) == [
        "No class lost recall, class 1 gained least, +1.0 (80.0 → 81.0), while the average gained 5.2; "
        "the worst class went from 60.0 to 70.0."
    ]


def test_many_settings_are_not_all_told(tmp_path: Path) -> None:
    runs = [f"s{i}={make(tmp_path / str(i), FULL[0])}" for i in range(10)]
    sentences = _words.verdict(compare(read(runs)))
    assert len(sentences) == 9
    assert sentences[0].startswith("s0: ")
    assert sentences[-1] == "2 more settings below."


def test_data_is_the_test_or_what_is_common(tmp_path: Path) -> None:
    one = make(tmp_path / "a", FULL[0])
    two = make(tmp_path / "b", FULL[0], data="val/birds")
    assert compare(read([one])).data == "test"
    assert compare(read([one, two])).data == "val"
    assert compare(read([two]), data="val/birds").data == "val/birds"
    found = compare(read([one]))
    assert (found.curves, compare(read([two]), data="val").curves) == ("val", "val")
    assert compare(read([make(tmp_path / "c", FULL[0], epochs=0)])).curves is None


def test_groups_are_no_classes(tmp_path: Path) -> None:
    run = make(tmp_path / "r", FULL[0], settings={"group_by": "place"})
    record = PruningRecord.load(run)
    target = record.target % 2
    kept = select(target, torch.tensor([5, 5]))
    PruningRecord(kept, target, None, (), {"group_by": "place"}).save(run / "fairprune")
    found = compare(read([run]))
    assert found.settings[0].sizes.isnan().all()
    assert any("pruned by groups" in note for note in found.notes)
    assert not any("kept" in drawing.name for drawing in _draw.drawings(found))


def test_discovered_groups_are_shown_with_recall_and_thumbnails(tmp_path: Path) -> None:
    settings = {"group_by": "Discovered()"}
    run = make(tmp_path / "r", FULL[0], settings=settings)
    n = PruningRecord.load(run).selection.num_samples
    group, of = torch.arange(n) % 3, torch.tensor([0, 1, 1])
    kept = select(group, torch.tensor([5, 4, 3]))
    last = Estimate(1, torch.tensor([0.9, 0.8, 0.25]), kept.quota)
    record = PruningRecord(kept, group, None, (last,), settings, group_class=of)
    record.save(run / "fairprune")
    found = compare(read([run]))
    first, second = (
        f"{found.class_names[1]}, group {i} of 2: {k} of {int(kept.sizes[i])} samples kept, recall {r} %"
        for i, k, r in ((1, 4, "80"), (2, 3, "25"))
    )
    assert any(note.endswith(f"discovered: {first}; {second}.") for note in found.notes)
    (shown,) = examples_of(found, torch.rand(n, 8, 8))
    assert [name for name, _ in shown.classes] == [first, second]
    assert [kind for kind, _ in shown.classes[1][1]] == ["random, kept", "random, dropped"]


def test_groups_are_reported_by_their_names(tmp_path: Path) -> None:
    def run(name: str, tp: Any) -> Path:
        folder = make(tmp_path / name, FULL[0], settings={"group_by": "place"})
        history = RecallHistory.load(folder)
        groups = ClassCounts(torch.tensor(tp), torch.tensor([100, 100, 0]))
        evaluations = tuple(
            Evaluation(f"{e.name}/groups", e.epoch, e.step, e.pruned, groups)
            for e in history.evaluations
        )
        both = (*history.evaluations, *evaluations)
        names = history.class_names
        RecallHistory(both, names, group_names=("land", "water", "air")).save(folder / "fairprune")
        record = PruningRecord.load(folder)
        kept = select(record.target % 2, torch.tensor([5, 9]))
        by_place = PruningRecord(kept, record.target % 2, None, (), {"group_by": "place"})
        by_place.save(folder / "fairprune")
        return folder

    one, two = run("a", [80, 40, 0]), run("b", [90, 70, 0])
    found = compare(read([one]), read([two]), data="test/groups")
    assert found.names == ("land", "water", "air")
    assert found.curves == "val/groups"
    assert found.settings[0].kept.tolist() == [[5, 9, 0]]
    assert _words.verdict(found)[0].startswith("water lost 30.0 points (70.0 → 40.0)")
    # The classes were not what quotas were set for.
    (note,) = compare(read([one]), data="test").notes
    assert note.endswith("was pruned by groups; what was kept of each class is not known.")
    report(one, two, tmp_path / "out", data="test/groups")
    assert "water" in (tmp_path / "out" / "index.html").read_text()


def test_half_widths_are_those_of_summarise() -> None:
    values = torch.tensor([[0.5, 0.1, torch.nan], [0.7, torch.nan, torch.nan], [0.9, 0.4, 1.0]])
    widths = statistics.half_widths(values.double(), 0.9).tolist()
    for column, width in zip(values.T.double(), widths, strict=True):
        found = statistics.summarise(column, 0.9)
        expected = (found.high - found.low) / 2
        assert width == pytest.approx(expected, nan_ok=True)
    assert statistics.half_widths(values[:1], 0.9).isnan().all()


@pytest.mark.parametrize(
    ("written_as", "expected"),
    [
        (_words.points(0.612), "61.2"),
        (_words.points(math.nan), "–"),
        (_words.signed(-0.0821), "-8.2"),
        (_words.signed(-0.0001), "+0.0"),
        (_words.signed(0.5), "+50.0"),
        (_words.ratio(1.0), "1.00"),
        (_words.amount(1.0), "1"),
        (_words.amount(1 / 3), "0.3"),
        (_words.percent(0.95), "95 %"),
    ],
)
def test_numbers_in_words(written_as: str, expected: str) -> None:
    assert written_as == expected


def broken(folder: Path, kind: str) -> list[str]:
    """Makes runs that something is wrong with and returns the arguments."""
    options: dict[str, dict[str, Any]] = {
        "names": {"names": ("cat", "cow", *NAMES[2:])},
        "empty": {"tp": (0, 0, 0, 0), "support": 0},
        "damaged record": {"settings": {"density": 0.4}},
        "support": {"support": torch.tensor([100, 109, 100, 100])},
        "reference": {"tp": FULL[0][:3], "names": None},
    }
    one = str(make(folder / "one", FULL[0]))
    two = make(folder / "two", **{"tp": FULL[0]} | options.get(kind, {}))
    if kind == "damaged record":
        (two / "fairprune" / "pruning.safetensors").write_bytes(b"no")
    elif kind == "saved support":
        old = RecallHistory.load(two)
        saved = {"test": counts(FULL[0], torch.tensor([100, 100, 130, 100]))}
        RecallHistory(old.evaluations, NAMES, saved, 0).save(two / "fairprune")
        return [str(two)]
    if kind in ("support", "reference", "itself"):
        return [one, "--reference", one if kind == "itself" else str(two)]
    return [one, str(two)]


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("names", "class 1 is 'dog' in '.*one' and 'cow' in '.*two'"),
        ("empty", "the last evaluation of 'test' in '.*two' has no samples"),
        ("damaged record", r"pruning.safetensors' cannot be loaded: it is not a safetensors file"),
        ("support", "on the same data, but class dog has 100 and 109 samples in 'test'"),
        ("saved support", "has 100 and 130 samples"),
        ("reference", "all runs must have the same classes"),
        ("itself", "the runs must differ from those of the reference"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(
    kind: str, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = broken(tmp_path, kind)
    with pytest.raises(SystemExit) as ending:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert ending.value.code == 2
    text = capsys.readouterr().err
    assert re.search(match, text), text
    assert text.splitlines()[-1].startswith("fairprune report: error:")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [0, 8])
def test_a_few_repeated_samples_are_the_same_data(tmp_path: Path, more: int) -> None:
    one = make(tmp_path / "a", FULL[0])
    two = make(tmp_path / "b", FULL[0], support=100 + more)
    assert compare(read([one]), read([two])).settings[0].before is not None


DATASETS = """
import torch
class Set(torch.utils.data.Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): return torch.zeros(3, 4, 4), 0
def make(): return Set()
class Short(Set):
    def __len__(self): return 39
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter([])
number = 3
def fails(): raise RuntimeError("no disk")
"""


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("Set", None),
        ("make", None),
        ("Short", "must be the 40 samples that were selected from, got 39"),
        ("Stream", "must be a map-style dataset, with __getitem__ and __len__, got Stream"),
        ("number", "must be a map-style dataset, with __getitem__ and __len__, got int"),
        ("fails", "cannot be loaded: RuntimeError: no disk"),
        ("none", "cannot be loaded: AttributeError"),
    ],
)
def test_dataset_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    match: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_data", raising=False)
    monkeypatch.setattr(_build, "drawings", lambda comparison: [])
    (tmp_path / "their_data.py").write_text(DATASETS)
    make(tmp_path / "run", FULL[0], settings={"density": 0.4})
    arguments = ["run", "--dataset", f"their_data:{name}"]
    if match is None:
        assert main(arguments) == 0
        assert 'class="thumbs"' in (tmp_path / "fairprune-report" / "index.html").read_text()
        return
    with pytest.raises(SystemExit):
        main(arguments)
    assert match in capsys.readouterr().err


def test_dataset_needs_a_module_and_a_pruned_run(tmp_path: Path) -> None:
    run = make(tmp_path / "run", FULL[0])
    with pytest.raises(ValueError, match=r"`dataset` must be written as package.module:name"):
        report(run, out=tmp_path / "out", dataset="digits")
    with pytest.raises(ValueError, match="ModuleNotFoundError"):
        report(run, out=tmp_path / "out", dataset="there.is.none:such")
    with pytest.raises(ValueError, match="no run has pruned its data"):
        report(run, out=tmp_path / "out", dataset=Images())


def test_command_prints_tables_and_names_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(_build, "drawings", lambda comparison: [])
    assert cli.main(["report", "drop", "random", "--reference", "full"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("drop: cat lost")
    assert "-29.0" in out
    assert "<script>" in out
    assert "Written: fairprune-report/index.html and 4 files beside it" in out


def test_missing_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert 'pip install "lightning-fairprune[report]"' in capsys.readouterr().err
    with pytest.raises(
        ImportError, match="needs jinja2, matplotlib and scipy, and scipy is not installed"
    ):
        report(tmp_path)
