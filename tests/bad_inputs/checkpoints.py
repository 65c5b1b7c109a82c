"""Checkpoints that do not belong to the fit, or are none."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_fairprune as lfp
from bad_inputs import Bad, fit

NAME = "last.ckpt"


class Wider(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = torch.nn.Linear(16, 7)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path / "owned",)


def callbacks(**options: Any) -> list[Any]:
    return [
        lfp.DataPruning(**({"density": 0.4, "warmup_epochs": 2} | options)),
        lfp.RecallMonitor(),
    ]


@lru_cache
def trained() -> bytes:
    """Returns a checkpoint after the third of four epochs, of which two were warm-up."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save = ModelCheckpoint(folder, filename="last")
        fit(
            *callbacks(),
            lfp.WeightPruning(sparsity=0.5),
            save,
            max_epochs=3,
            enable_checkpointing=True,
        )
        return Path(folder, NAME).read_bytes()


def saved(at: Path) -> None:
    (at / NAME).write_bytes(trained())


def changed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A checkpoint in which something was changed."""

    def write(at: Path) -> None:
        saved(at)
        content = torch.load(at / NAME, weights_only=True)
        torch.save(change(copy.deepcopy(content)), at / NAME)

    return write


def resumed(model: Any = None, data: Any = None, weights: Any = None, **options: Any) -> Any:
    def resume(at: Path) -> None:
        pruning = lfp.WeightPruning(**({"sparsity": 0.5} | (weights or {})))
        fit(*callbacks(**options), pruning, model=model, data=data, ckpt_path=at / NAME)

    return resume


def disguised(at: Path) -> None:
    (at / NAME).write_bytes(pickle.dumps({"state_dict": Payload(at)}))


def disguised_as_torch(at: Path) -> None:
    torch.save({"state_dict": Payload(at)}, at / NAME)


def truncated(at: Path) -> None:
    (at / NAME).write_bytes(trained()[:1000])


def flipped(at: Path) -> None:
    content = trained()
    place = content.index(b"state_dict")
    (at / NAME).write_bytes(content[:place] + b"\xff" + content[place + 1 :])


def passed(at: Path) -> None:
    lfp.score_pass(
        users.Model(),
        DataLoader(users.Blobs(), 10),
        lfp.scores.el2n,
        checkpoints=[at / NAME],
        progress=False,
    )


def compared(at: Path) -> None:
    fit(lfp.RecallMonitor(reference=at / NAME))


def emptied(content: Any) -> Any:
    return {key: value for key, value in content.items() if key != "state_dict"}


FORMS: dict[str, Callable[[Path], object]] = {
    "that is a pickle": disguised,
    "that is a pickle inside a zip": disguised_as_torch,
    "that was cut short": truncated,
    "with a flipped byte": flipped,
    "that is empty": lambda at: (at / NAME).touch(),
    "that is a folder": lambda at: (at / NAME).mkdir(),
    "without weights": changed(emptied),
    "that holds a list": changed(lambda content: [1, 2]),
    "of another model": lambda at: torch.save({"state_dict": Wider().state_dict()}, at / NAME),
}
WHERE = {"query model": passed, "reference": compared}
PLAIN = "must load with weights_only=True, as tensors and primitives do"
BROKEN = (PLAIN, "it is damaged or holds something else")
SENTENCES = {
    "that is a folder": ("there is no file", "last.ckpt"),
    "of another model": (
        "must fit the model",
        r"net.2.weight is \[7, 16\] there and \[4, 16\] in the model",
    ),
    "query model without weights": ("must fit the model", "it has no net.0.weight and 3 more"),
    "query model that holds a list": ("must hold weights by name", "got list"),
    "reference without weights": (
        "must be a checkpoint of the Trainer",
        "it holds no 'state_dict'",
    ),
    "reference that holds a list": (
        "must be a checkpoint of the Trainer",
        "it holds no 'state_dict'",
    ),
}
THEN = "give a checkpoint of this model|save the model's state_dict|If you trust the file|[Gg]ive (one|a checkpoint of the Trainer), or"


def said(where: str, form: str) -> tuple[type[Exception], str, str, str]:
    """The error and the three parts of the sentence."""
    must, found = SENTENCES.get(f"{where} {form}") or SENTENCES.get(form) or BROKEN
    if form != "that is a folder":
        return ValueError, must, found, THEN
    return (FileNotFoundError if where == "reference" else ValueError), must, found, ""


# fmt: off
ROWS = [
    Bad("checkpoint of another number of samples", resumed(data=users.Data(90)), ValueError, "the training set has 90 samples", "and had 103 when the checkpoint was written", "resume with the same data", given=saved),
    *(
        Bad(f"checkpoint of another {name}", resumed(**{name: value} | more), ValueError, "a resumed fit must use the arguments of the original fit", f"but DataPruning has `{name}`=", "give the same, or start a new fit from the", given=saved)
        for name, value, more in (
            ("score", lfp.scores.el2n, {"keep": "hard"}),
            ("density", 0.3, {}),
            ("warmup_epochs", 1, {}),
            ("quota", lfp.quotas.balanced, {}),
            ("seed", 7, {}),
            ("floor", 1, {}),
        )
    ),
    Bad("checkpoint of another sparsity", resumed(weights={"sparsity": 0.9}), ValueError, "a resumed fit must use the arguments of the original fit", r"but WeightPruning has `sparsity`=0\.9 where the", "give the same, or start a new fit from the", given=saved),
    *(Bad(f"{where} {form}", do, *said(where, form), given=given) for where, do in WHERE.items() for form, given in FORMS.items()),
]
# fmt: on
