"""Do two networks compute the same: linear CKA and SVCCA of their layers, such as of a dense and a pruned network.

    from lightning_fairprune import representation

    found = representation.compare_layers(dense, pruned, val_loader)
    representation.save("lightning_logs/version_1", found)

Features are [n, D]: n samples, or samples and positions of feature maps, and D units, or channels. Both measures are 1
for features that are equal up to a rotation and a factor, compare the units of a layer together, not one by one, and
are computed in float64.
"""

from lightning_fairprune.representation._layers import compare_layers
from lightning_fairprune.representation._measures import linear_cka, svcca
from lightning_fairprune.representation._saved import Similarity, load, save

__all__ = ["Similarity", "compare_layers", "linear_cka", "load", "save", "svcca"]
