"""The papers' data sets as LightningDataModules that can be written in YAML.

All have `num_classes`, `class_names`, `targets` (labels of the training set, int64 [N]), `groups`
and `group_names` (None where there are none), and besides the usual loaders a `plain_dataloader`:
the training set in its order, not augmented.
"""

from lightning_fairprune.experiments.data._disk import ImageFiles, ImageNet, Waterbirds
from lightning_fairprune.experiments.data._memory import Images, ImagesInMemory
from lightning_fairprune.experiments.data._sets import (
    CIFAR10,
    CIFAR100,
    MNIST,
    Digits,
    FashionMNIST,
    TinyImageNet,
)
from lightning_fairprune.experiments.data._split import long_tailed, long_tailed_sizes, stratified

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Digits",
    "FashionMNIST",
    "ImageFiles",
    "ImageNet",
    "Images",
    "ImagesInMemory",
    "TinyImageNet",
    "Waterbirds",
    "long_tailed",
    "long_tailed_sizes",
    "stratified",
]
