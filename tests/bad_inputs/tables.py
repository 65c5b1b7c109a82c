"""The commands: select, report, experiment, fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lightning_fairprune as lfp
from bad_inputs import Bad, command
from lightning_fairprune.history import Evaluation

TABLE = "id,label,score\n0,cat,0.5\n1,cat,0.1\n2,dog,0.9\n3,dog,0.3\n"


def table(text: str = TABLE) -> Callable[[Path], object]:
    return lambda at: (at / "t.csv").write_text(text)


def selected(
    *options: str, name: str = "t.csv", density: str = "0.5", quota: str = "balanced"
) -> Any:
    fixed = ("--density", density, "--quota", quota, "--out", "kept.parquet")
    return lambda at: command("select", name, *fixed, *options, at=at)


def parquet(at: Path) -> None:
    (at / "t.parquet").write_bytes(b"PAR1 and nothing more PAR1")


def existing(at: Path) -> None:
    table()(at)
    (at / "kept.parquet").write_text("precious")


def recall(text: str) -> Callable[[Path], object]:
    def write(at: Path) -> None:
        table()(at)
        (at / "r.csv").write_text(text)

    return write


def run(at: Path, name: str = "run", classes: int = 2, data: str = "val") -> None:
    counts = lfp.ClassCounts(torch.arange(classes), torch.full((classes,), 10))
    lfp.RecallHistory((Evaluation(data, 1, 100, False, counts),)).save(at / name / "fairprune")


def reported(*options: str) -> Any:
    return lambda at: command("report", *options, "--out", "page", at=at)


def two_runs(at: Path) -> None:
    run(at)
    run(at, "other", classes=3)


def other_data(at: Path) -> None:
    run(at)
    run(at, "other", data="test")


def damaged(at: Path) -> None:
    run(at)
    (at / "run" / "fairprune" / "recalls.safetensors").write_bytes(b"\x80\x04no")


def page_is_file(at: Path) -> None:
    run(at)
    (at / "page").touch()


def config(text: str) -> Callable[[Path], object]:
    return lambda at: (at / "c.yaml").write_text(text)


def fitted(at: Path) -> None:
    command("fit", "--config", "c.yaml", at=at)


def escaping(at: Path) -> None:
    shipped = Path(lfp.__file__).parent / "experiments" / "configs" / "digits.yaml"
    (at / "c.yaml").write_text(shipped.read_text().replace("  random: {}", "  ../../etc: {}"))


def experiment(*options: str) -> Any:
    return lambda at: command("experiment", *options, "--out", "runs", "--dry_run", at=at)


CALLBACK = """\
trainer:
  logger: false
  max_epochs: 3
  callbacks:
    - class_path: lightning_fairprune.{name}
      init_args: {{{arguments}}}
model: {{class_path: users.Model}}
data: {{class_path: users.Data}}
"""


def callback(arguments: str = "density: 0.3, warmup_epochs: 1", name: str = "DataPruning") -> Any:
    return config(CALLBACK.format(name=name, arguments=arguments))


# fmt: off
ROWS = [
    Bad("table that is not there", selected(name="nowhere.csv"), SystemExit, "There is no file", r"'nowhere\.csv'"),
    Bad("table that is a picture", selected(name="t.png"), SystemExit, r"tables must be \.parquet or \.csv files", r"got t\.png", given=lambda at: (at / "t.png").touch()),
    Bad("table that is empty", selected(), SystemExit, "the tables have no column 'id'", "for the id, only column0", "name it with `id`", given=table("")),
    Bad("table without rows", selected(), SystemExit, "the tables must have rows", "got none", given=table("id,label,score\n")),
    Bad("table that is broken Parquet", selected(name="t.parquet"), SystemExit, "the tables cannot be read", r"Footer length error in file 't\.parquet'", "copy or write them again", given=parquet),
    Bad("table without a label", selected(), SystemExit, "the tables have no column 'label'", "for the label, only id, score", "name it with `label`", given=table("id,score\n1,0.5\n")),
    Bad("table without a score", selected("--keep", "hard"), SystemExit, "the tables have no column 'score'", "for the score, only id, label", "name it with `score`", given=table("id,label\n1,cat\n2,dog\n")),
    Bad("table with the same id twice", selected(), SystemExit, "column 'id' must be unique", "but 3 occurs 2 times", given=table(TABLE + "3,dog,0.3\n")),
    Bad("table with a NaN score", selected("--keep", "hard"), SystemExit, "rows have no score", r"or NaN\), first id 4", "score every row, or give those to leave out", given=table(TABLE + "4,dog,nan\n")),
    Bad("table with an empty label", selected(), SystemExit, "rows have no label", r"'label' is NULL\), first id 4", "give those to leave out the label -1", given=table(TABLE + "4,,0.2\n")),
    Bad("table with labels below -1", selected(), SystemExit, "column 'label' must be >= -1", "got -5", given=table("id,label\n0,-5\n1,2\n")),
    Bad("table with float labels", selected(), SystemExit, "column 'label' must hold integers or strings for the", "got DOUBLE", given=table("id,label\n0,0.5\n1,1.5\n")),
    Bad("table with scores as text", selected("--keep", "hard"), SystemExit, "column 'score' must hold numbers for the score", "got VARCHAR", given=table("id,label,score\n0,cat,good\n1,cat,bad\n")),
    Bad("table with ids as text, at random", selected(), SystemExit, "keep='random' draws a key for each integer id", "but column 'id' holds strings", "number the rows, or choose keep='hard' or", given=table("id,label\na,cat\nb,cat\n")),
    Bad("select with a density of 2", selected(density="2"), SystemExit, "`density` must be above 0 and at most 1", r"got 2\.0", given=table()),
    Bad("select with a density as text", selected(density="much"), SystemExit, "argument --density:", "invalid float value", "'much'", given=table()),
    Bad("select by recalls that are not given", selected(quota="drop"), SystemExit, "quota 'drop' follows the", "recall of each class", "pass `recall`, a CSV file or the folder of a", given=table()),
    Bad("select by recalls of other classes", selected("--recall", "r.csv", quota="drop"), SystemExit, r"r\.csv has a recall for class 'bird', which is not in", "it has 'cat', 'dog'", given=recall("label,recall\ncat,0.5\nbird,0.4\n")),
    Bad("select by recalls in percent", selected("--recall", "r.csv", quota="drop"), SystemExit, r"recalls must be in \[0, 1\], or NaN for a class", r"seen in validation, r\.csv has 50 for class 'cat'", given=recall("label,recall\ncat,50\ndog,40\n")),
    Bad("select by recalls that are words", selected("--recall", "r.csv", quota="drop"), SystemExit, r"line 2 of r\.csv must name a class of the table, such", "got cat, low", given=recall("label,recall\ncat,low\ndog,high\n")),
    Bad("select by recalls that are no UTF-8", selected("--recall", "r.csv", quota="drop"), SystemExit, "must be text in UTF-8", r"byte 0xff in position 16: invalid start byte\)", "save it as such", given=lambda at: (table()(at), (at / "r.csv").write_bytes(b"label,recall\ncat\xff,0.5\n"))),
    Bad("select over what is there", selected(), SystemExit, r"kept\.parquet", "already exists", "remove it or choose another `out`", given=existing),
    Bad("select with too little memory", selected("--memory", "1kB"), SystemExit, "`memory` must be at least 256MiB, such as 2GiB", "got '1kB'", given=table()),
    Bad("report on nothing", reported(), SystemExit, "the following arguments are", "required: RUN"),
    Bad("report on a folder that is not there", reported("nowhere"), SystemExit, "There is no folder", "'nowhere'"),
    Bad("report on a folder without recalls", reported("."), SystemExit, "There are no recalls", r"in '\.' or below", "train or test with RecallMonitor and a logger"),
    Bad("report on a file", reported("t.csv"), SystemExit, "There is no folder", r"'t\.csv'", given=table()),
    Bad("report on damaged recalls", reported("run"), SystemExit, r"'run/fairprune/recalls\.safetensors' cannot be loaded:", r"it is not a safetensors file, or it is truncated \(Error", "copy or write it again", given=damaged),
    Bad("report on runs of other classes", reported("run", "other"), SystemExit, "all runs must have the same classes: 'run'", "has 2, 'other' 3", given=two_runs),
    Bad("report on runs of other data", reported("run", "other"), SystemExit, "the runs must share an evaluation", "'run' has val", "'other' has test", given=other_data),
    Bad("report with an evaluation that is not there", reported("run", "--data", "test"), SystemExit, "all runs must have an evaluation of", "evaluation of 'test'", "'run' has val", given=run),
    Bad("report at a level of 95", reported("run", "--level", "95"), SystemExit, "`level` must be between 0 and 1", "got 95", given=run),
    Bad("report with a data set that cannot be imported", reported("run", "--dataset", "no.module:data"), SystemExit, r"`dataset` 'no\.module:data' cannot", "be loaded: ModuleNotFoundError", "No module named 'no'", given=run),
    Bad("report with a data set that is no name", reported("run", "--dataset", "import os"), SystemExit, r"`dataset` must be written as package\.module:name", "got 'import os'", given=run),
    Bad("report into a file", reported("run"), SystemExit, "`out` 'page' cannot", "be written to", "File exists", given=page_is_file),
    Bad("experiment that is not there", experiment("nowhere"), SystemExit, "there is no config 'nowhere'", "give the path of a YAML file", "or one of those that come with this package"),
    Bad("experiment with an unknown key", experiment("digits", "--densitees", "[0.5]"), SystemExit, "unrecognized", "arguments", r"--densitees \[0\.5\]"),
    Bad("experiment with an unknown class", experiment("digits", "--model", "no.Such"), SystemExit, "model", "no.Such"),
    Bad("experiment with a density of 3", experiment("digits", "--densities", "[3.0]"), SystemExit, r"`densities` must be in \(0, 1\)", r"got 3\.0", "a model on all the data is one of `baselines`"),
    Bad("experiment with a density as text", experiment("digits", "--densities", "[much]"), SystemExit, "densities", "much"),
    Bad("experiment that is no YAML", experiment("c.yaml"), SystemExit, "config", "flow node", given=config("{a: [")),
    Bad("experiment with a method that leaves the folder", experiment("c.yaml"), SystemExit, "letters, digits", "also used as a folder name", r"use only letters, digits and \. _ \+ -", given=escaping),
    Bad("YAML with an unknown class", fitted, SystemExit, "callbacks", "DataPruner", given=callback(name="DataPruner")),
    Bad("YAML with an unknown argument", fitted, SystemExit, "callbacks", "warmup", given=callback("density: 0.3, warmup: 1")),
    Bad("YAML with a wrong type", fitted, SystemExit, "density", "float", given=callback("density: [1, 2], warmup_epochs: 1")),
    Bad("YAML with an object of Python's", fitted, SystemExit, "config", "constructor for the tag", given=config('model: !!python/object/apply:os.mkdir ["owned"]\n')),
    Bad("YAML that is none", fitted, SystemExit, "config", "flow node", given=config("trainer: {a: [")),
    Bad("command that is unknown", lambda at: command("prune"), SystemExit, "invalid choice", "prune", "fit"),
    Bad("demo with an option that is unknown", lambda at: command("demo", "--fast"), SystemExit, "unrecognized", "arguments", "--fast"),
]
# fmt: on
