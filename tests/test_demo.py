"""The demonstration, in miniature."""

from __future__ import annotations

import csv
import io
import logging
import sys
from pathlib import Path

import pytest
import torch
import users  # noqa: F401  (one thread, quiet loggers)
from rich.console import Console

from lightning_fairprune import demo
from lightning_fairprune.demo import _digits, _report, _runs

STEPS = 9 * 22 + 20  # the warm-up and about three pruned epochs


@pytest.fixture(scope="module")
def records() -> list[demo.Record]:
    return demo.run(density=0.3, seeds=1, steps=STEPS)


def test_all_methods_see_equally_many_samples_and_keep_the_budget(
    records: list[demo.Record],
) -> None:
    assert [record.method for record in records] == list(demo.METHODS)
    assert {record.samples_seen for record in records} == {16 * STEPS}
    assert [int(record.kept.sum()) for record in records] == [352, 106, 106, 106, 106]
    assert all(bool((record.kept <= record.sizes).all()) for record in records)


def test_quotas_shift_data_to_rare_hard_classes(records: list[demo.Record]) -> None:
    rare = _digits.load()[2][-3:]
    kept = {record.method: int(record.kept[rare].sum()) for record in records}
    assert kept["random+DRoP"] > kept["random"]
    assert kept["random+Minimax"] > kept["random"]


def test_numbers_come_from_images_that_nothing_else_saw(records: list[demo.Record]) -> None:
    assert all(int(record.counts.support.sum()) == 1797 - 10 * (80 + 40) for record in records)
    data = _digits.LongTailedDigits(seed=1)
    data.setup("fit")
    seen = torch.cat([data.train.tensors[0], data.val.tensors[0]]).flatten(1)
    # No two of the 1797 images are equal, so equal pixels would be the same image.
    assert len(_digits.load()[0].flatten(1).unique(dim=0)) == 1797
    assert torch.cdist(data.test.tensors[0].flatten(1), seen).min() > 0


def test_the_harder_the_rarer() -> None:
    order, sizes = _digits.load()[2], _digits.train_sizes()
    assert sorted(order.tolist()) == list(range(10))
    assert sizes[order].tolist() == sorted(sizes.tolist(), reverse=True)
    assert (int(sizes.max()), int(sizes.min()), int(sizes.sum())) == (80, 10, 352)
    assert int(sizes.sum()) % _digits.BATCH == 0


def test_a_run_can_be_repeated_and_leaves_nothing_behind(records: list[demo.Record]) -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = (torch.get_rng_state(), logger.level, torch.get_num_threads())
    again = demo.run(density=0.3, seeds=1, methods=["random"], steps=STEPS)
    assert torch.equal(again[0].counts.tp, records[1].counts.tp)
    assert torch.equal(again[0].kept, records[1].kept)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (logger.level, torch.get_num_threads()) == before[1:]


def test_files_hold_every_run(records: list[demo.Record], tmp_path: Path) -> None:
    files = demo.write(records, tmp_path / "new")
    assert [path.name for path in files] == ["table.md", "runs.csv", "classes.png"]
    assert set((tmp_path / "new").iterdir()) == set(files)
    table = files[0].read_text().splitlines()
    assert len(table) == 2 + 5
    assert table[2].startswith("| full data | 0.")
    lines = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [line["method"] for line in lines] == list(demo.METHODS)
    assert int(lines[1]["kept_0"]) == int(records[1].kept[0])
    assert float(lines[1]["worst"]) == pytest.approx(records[1].counts.worst, abs=1e-4)
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_no_text_of_the_figure_is_cut_off_or_overlaps(records: list[demo.Record]) -> None:
    chart = _report.figure(records)
    chart.draw_without_rendering()
    whole = chart.bbox
    for axis in chart.axes:
        boxes = [text.get_window_extent() for text in (*axis.texts, axis.title)]
        for k, box in enumerate(boxes):
            assert whole.x0 <= box.x0
            assert box.x1 <= whole.x1
            assert not any(box.overlaps(other) for other in boxes[:k] if other.width)


def test_table_fits_into_80_columns(records: list[demo.Record]) -> None:
    text = io.StringIO()
    two = [*records, *records]  # with ranges, which are wider
    Console(file=text, width=80).print(_report.terminal_table(two))
    assert "…" not in text.getvalue()
    assert "random+Minimax" in text.getvalue()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"density": 0.0}, r"`density` must be at least 0.045.* got 0.0"),
        ({"density": float("nan")}, "`density` must be at least"),
        ({"density": 1.5}, r"at most 1, got 1.5"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
        ({"methods": ["k-center"]}, r"`methods` must be some of full data, .* got \['k-center'\]"),
        ({"methods": []}, "`methods` must be some of"),
        ({"steps": 198}, "`steps` must be more than the 198 of the warm-up, got 198"),
    ],
)
def test_wrong_arguments_are_told_before_work(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        demo.run(**arguments)  # type: ignore[arg-type]


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`records` must hold at least one run"):
        demo.write([], tmp_path)


def test_missing_extras_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-fairprune\[demo\]"'):
        demo.run()
    assert demo.main(["--out", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("flaw", [["--density", "7"], ["--density", "x"], ["--seeds", "0"]])
def test_wrong_options_end_in_one_sentence(
    flaw: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ending:
        demo.main([*flaw, "--out", str(tmp_path)])
    assert ending.value.code == 2
    assert "fairprune demo: error:" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        demo.main(["--out", str(tmp_path / "file")])
    assert "cannot be written to" in capsys.readouterr().err


def test_command_ends_with_the_files_and_what_is_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(_runs, "STEPS", STEPS)
    monkeypatch.setattr(_runs, "METHODS", {"random": {"quota": None}})
    monkeypatch.setattr(
        demo.run, "__kwdefaults__", {**demo.run.__kwdefaults__, "methods": ["random"]}
    )
    assert demo.main(["--seeds", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "classes.png") in out
    assert "examples/01_two_lines.py" in out
