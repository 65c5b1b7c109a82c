"""The papers' experiments, and ours beyond them, by one command.

An experiment is a grid of methods, densities and seeds: query models are trained on all the data and show which
classes and samples are hard, each method selects a subset by that, a final model is trained on it from scratch and
tested. `fairprune experiment CONFIG` runs it; as a library:

    from lightning_fairprune import experiments

    settings = experiments.read_config("digits.yaml")
    experiments.run(settings | {"densities": [0.2]}, out="digits", jobs=2)
"""

from lightning_fairprune.experiments._cells import Cell, cells_of
from lightning_fairprune.experiments._claim import Claim
from lightning_fairprune.experiments._claims import claims_of
from lightning_fairprune.experiments._command import main, read_config, run
from lightning_fairprune.experiments._config import build
from lightning_fairprune.experiments._length import epoch_correction
from lightning_fairprune.experiments._parts import (
    Baseline,
    Final,
    Finetune,
    Hardware,
    Method,
    OneFit,
    Query,
    WeightMethod,
)
from lightning_fairprune.experiments._records import Experiment

__all__ = [
    "Baseline",
    "Cell",
    "Claim",
    "Experiment",
    "Final",
    "Finetune",
    "Hardware",
    "Method",
    "OneFit",
    "Query",
    "WeightMethod",
    "build",
    "cells_of",
    "claims_of",
    "epoch_correction",
    "main",
    "read_config",
    "run",
]
