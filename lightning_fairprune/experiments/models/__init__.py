"""The papers' networks and the module that trains them; all can be written in YAML."""

from lightning_fairprune.experiments.models._cifar import VGG, CifarResNet
from lightning_fairprune.experiments.models._classifier import Classifier, lr_factor
from lightning_fairprune.experiments.models._resnet import ResNet
from lightning_fairprune.experiments.models._resnet9 import ResNet9
from lightning_fairprune.experiments.models._small import LeNet5, LeNet300100, SmallCNN

__all__ = [
    "VGG",
    "CifarResNet",
    "Classifier",
    "LeNet5",
    "LeNet300100",
    "ResNet",
    "ResNet9",
    "SmallCNN",
    "lr_factor",
]
