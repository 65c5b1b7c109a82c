"""Which validations a resumed fit lacks: due at the end of the epoch that it was resumed in, and not done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_fairprune._observe.validation import CountsValidation, Validation


class Double:
    """Has what is given, and can be referred to weakly."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)


def trainer(**options: Any) -> Any:
    defaults: dict[str, Any] = {
        "global_step": 22,
        "callbacks": [],
        "check_val_every_n_epoch": 1,
        "num_training_batches": 11,
        "val_check_batch": 11,
        "enable_validation": True,
        "fit_loop": SimpleNamespace(
            total_batch_idx=21,
            epoch_loop=SimpleNamespace(val_loop=SimpleNamespace(_combined_loader=None)),
        ),
        "state": SimpleNamespace(fn="fit"),
        "num_val_batches": [3, 2],
        "sanity_checking": False,
        "testing": False,
        "world_size": 1,
    }
    return Double(**(defaults | options))


def validate(validation: Validation, trainer: Any, seen: list[int]) -> bool:
    """Runs a validation of so many batches of each loader; returns whether its counts were wanted."""
    hooks: Any = CountsValidation()
    module: Any = torch.nn.Module()
    module.device = torch.device("cpu")
    outputs = {"logits": torch.zeros(4, 2), "target": torch.zeros(4, dtype=torch.int64)}
    validation.begin(trainer)
    for loader, batches in enumerate(seen):
        for i in range(batches):
            hooks.on_validation_batch_start(trainer, module, None, i, loader)
            hooks.on_validation_batch_end(trainer, module, outputs, None, i, loader)
    return validation.is_whole(trainer)


@pytest.mark.parametrize(
    ("lacks", "options"),
    [
        (True, {}),
        (True, {"check_val_every_n_epoch": 2}),  # epoch 1 is the second
        (False, {"check_val_every_n_epoch": 3}),
        (True, {"val_check_batch": 1}),
        (False, {"val_check_batch": 5}),  # after batches 5 and 10 of 11
        (True, {"val_check_batch": 2, "check_val_every_n_epoch": None}),  # of 22 batches in all
        (False, {"val_check_batch": 4, "check_val_every_n_epoch": None}),
        (True, {"val_check_batch": float("inf"), "num_training_batches": float("inf")}),
        (False, {"val_check_batch": None}),  # by the clock
        (False, {"enable_validation": False}),
        (False, {"global_step": 11}),  # done
    ],
    ids=str,
)
def test_a_validation_that_was_due_and_is_not_done_is_lacking(
    lacks: bool, options: dict[str, Any]
) -> None:
    validation = Validation()
    validation.step = 11
    assert not validation.lacks(trainer(**options), 1)  # not resumed
    validation.resumed(1)
    assert validation.lacks(trainer(**options), 1) == lacks
    assert not validation.lacks(trainer(**options), 2)  # the user's doing


@pytest.mark.parametrize(
    ("seen", "loader", "whole"),
    [
        ([3, 2], None, True),
        ([3, 1], None, False),
        ([3, 1], 0, True),
        ([3, 1], 1, False),
        ([0, 0], 0, False),
        ([3, 2], 5, True),  # no such loader; others say so
    ],
)
def test_only_the_first_validation_of_a_resumed_fit_may_be_cut(
    seen: list[int], loader: int | None, whole: bool
) -> None:
    for resumed in (False, True):
        validation, fit = Validation(loader), trainer()
        if resumed:
            validation.resumed(1)
        for turn in (1, 2):
            fit.global_step = turn
            expected = whole or not resumed or turn == 2
            assert validate(validation, fit, seen) == expected
            assert validation.step == (turn if expected else -1)


def test_a_loader_without_a_length_is_never_cut() -> None:
    validation = Validation()
    validation.resumed(0)
    assert validate(validation, trainer(num_val_batches=[float("inf")]), [0])
