"""The effect of pruning on each class: a page, figures and tables from the files of runs, `fairprune report`.

As a library:

    from lightning_fairprune.report import report

    report(["none=runs/full", "DRoP=runs/drop"], reference="runs/full", out="fairprune-report")
"""

from lightning_fairprune.report._build import report
from lightning_fairprune.report._command import main
from lightning_fairprune.report._compare import Comparison, ReferenceModels, Setting
from lightning_fairprune.report._gate import Check, Difference, check, check_main

__all__ = [
    "Check",
    "Comparison",
    "Difference",
    "ReferenceModels",
    "Setting",
    "check",
    "check_main",
    "main",
    "report",
]
