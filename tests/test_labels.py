"""Labels that a data set keeps in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lightning_fairprune._loading.labels import fingerprint, labels_of

Y = [2, 0, 1, 1]


class Stored(Dataset[Any]):
    """Whoever asks for a sample has decoded it for nothing."""

    def __init__(self, length: int = 4, **attributes: Any) -> None:
        self.length = length
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        raise AssertionError("a sample was read")


KNOWN = {
    "targets_list": Stored(targets=Y),
    "targets_tensor": Stored(targets=torch.tensor(Y)),
    "targets_int32": Stored(targets=torch.tensor(Y, dtype=torch.int32)),
    "targets_numpy": Stored(targets=torch.tensor(Y).numpy()),
    "labels": Stored(labels=Y),
    "targets_before_labels": Stored(targets=Y, labels=[9, 9, 9, 9]),
    "no_target_transform": Stored(targets=Y, target_transform=None),
    "tensors": TensorDataset(torch.zeros(4, 2), torch.tensor(Y)),
    "subset": Subset(Stored(6, targets=[0, 1, 9, 2, 1, 9]), [3, 0, 1, 4]),
    "subset_of_subset": Subset(
        Subset(Stored(6, targets=[0, 1, 9, 2, 1, 9]), [1, 3, 0, 4]), [1, 2, 0, 3]
    ),
    "concat": ConcatDataset([Stored(1, targets=[2]), Stored(3, labels=[0, 1, 1])]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_labels_are_found_without_reading_a_sample(name: str) -> None:
    labels = labels_of(KNOWN[name])
    assert labels.dtype == torch.int64
    assert labels.tolist() == Y


def test_bool_labels_are_two_classes() -> None:
    labels = labels_of(Stored(2, targets=torch.tensor([True, False])))
    assert labels.tolist() == [1, 0]


UNKNOWN = {
    "nothing": Stored(),
    "strings": Stored(labels=["a", "b", "a", "b"]),
    "floats": Stored(targets=[0.5, 1.0, 2.0, 1.0]),
    "one_hot": Stored(targets=torch.eye(4).long()),
    "wrong_length": Stored(targets=[1, 2]),
    "boxes": Stored(targets=[{"boxes": 1}] * 4),
    "ragged": Stored(targets=[[1], [1, 2], [], [3]]),
    "transformed": Stored(targets=Y, target_transform=lambda y: 1 - y),
    "tensors_without_labels": TensorDataset(torch.zeros(4, 2)),
    "subset_of_unknown": Subset(Stored(), [0, 1]),
    "concat_with_unknown": ConcatDataset([Stored(targets=Y), Stored()]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_label_per_sample_is_left_alone(name: str) -> None:
    assert labels_of(UNKNOWN[name]) is None
    assert fingerprint(UNKNOWN[name]) == {"length": len(UNKNOWN[name]), "labels": None}


def test_fingerprint_depends_on_labels_and_order_not_on_their_type() -> None:
    original = fingerprint(Stored(targets=Y))
    assert original["length"] == 4
    assert fingerprint(Stored(labels=torch.tensor(Y, dtype=torch.int16))) == original
    assert fingerprint(Stored(targets=Y[::-1])) != original
    assert fingerprint(Stored(targets=[2, 0, 1, 0])) != original
    assert fingerprint(Stored(3, targets=Y[:3])) != original
