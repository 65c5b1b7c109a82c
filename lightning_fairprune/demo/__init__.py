"""A demonstration on real images that takes about a minute: `fairprune demo`.

It makes the handwritten digits of scikit-learn long-tailed, with the hardest classes rarest, and trains one
small network on data selected in five ways. As a library:

    from lightning_fairprune import demo

    records = demo.run(density=0.3, seeds=3)
    demo.write(records, "fairprune-demo")
"""

from lightning_fairprune.demo._command import main
from lightning_fairprune.demo._report import write
from lightning_fairprune.demo._runs import METHODS, Record, run

__all__ = ["METHODS", "Record", "main", "run", "write"]
