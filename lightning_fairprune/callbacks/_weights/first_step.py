"""What the first step of a fit computes with: the weights that are pruned, or others made of them, and which are not."""

from __future__ import annotations

import functools
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_fairprune import criteria
from lightning_fairprune._model.compiled import has_compiled_parts, is_compiled
from lightning_fairprune._model.hidden import check_uses
from lightning_fairprune._model.matrices import is_matrix, lookups_of
from lightning_fairprune._model.uses import Uses
from lightning_fairprune.callbacks._weights.masks import matching, outside_metrics
from lightning_fairprune.callbacks._weights.settings import WeightSettings

_SMALL = 0.01  # share of all parameters that is not worth a word
_MOST = 5  # names in a warning


class FirstStep:
    """Observes the functions of one training step, once; compiled steps are not observed."""

    def __init__(self, settings: WeightSettings, names: Collection[str]) -> None:
        self._settings, self._names = settings, names
        self._uses: Uses | None = None
        self._put_back = ExitStack()
        self.opened = False

    def open(self, module: pl.LightningModule, batch: Any) -> None:
        """Has the next call of the training step observed, and checked when it returns."""
        self.opened = True
        if is_compiled(module) or has_compiled_parts(module):
            return
        uses = Uses(outside_metrics(module), batch)
        own, step = vars(module), module.training_step
        if "training_step" in own:
            self._put_back.callback(own.__setitem__, "training_step", step)
        self._put_back.callback(own.pop, "training_step", None)

        @functools.wraps(step)
        def observed(*args: Any, **kwargs: Any) -> Any:
            self.close()
            with uses:
                out = step(*args, **kwargs)
            self._check(module, uses)
            return out

        own["training_step"] = observed
        self._uses = uses

    def stop(self) -> None:
        """Stops before the backward pass, which a step with manual optimisation calls itself."""
        if self._uses is not None:
            self._uses.paused = True

    def close(self) -> None:
        """Gives the module its step back."""
        self._put_back.close()

    def _check(self, module: pl.LightningModule, uses: Uses) -> None:
        self._uses = None
        check_uses(module, self._names, uses.through, masked=True)
        mixed = [name for name in self._names if name in uses.mixed]
        if mixed:
            raise ValueError(
                f"`{mixed[0]}` is not the weight that its layer computes with, which is a sum of several kernels with weights of "
                "each sample, and has zeros only where all of them have: leave it out with `exclude`"
                f"{f', and {len(mixed) - 1} more like it' if len(mixed) > 1 else ''}."
            )
        if self._settings.include is None:
            self._warn(module, uses)

    def _warn(self, module: pl.LightningModule, uses: Uses) -> None:
        """Warns of matrices that are used and that neither the user nor the callback has left out on purpose."""
        parameters = outside_metrics(module)
        found = uses.direct.union(*(made.roots for made in uses.through))
        left_out = {*self._names, *criteria.prunable(module)}
        if self._settings.exclude is not None:
            left_out |= matching("exclude", self._settings.exclude, list(parameters))
        looked_up = {id(p) for part in module.modules() for p in lookups_of(part)}
        dense = {
            name: p.numel()
            for name, p in parameters.items()
            if name in found - left_out and is_matrix(p) and id(p) not in looked_up
        }
        every = sum(p.numel() for p in parameters.values())
        if sum(dense.values()) < _SMALL * every:
            return
        largest = sorted(dense, key=lambda name: -dense[name])
        listed = ", ".join(f"`{name}` ({dense[name] / every:.1%})" for name in largest[:_MOST])
        more = f" and {len(largest) - _MOST} more" if len(largest) > _MOST else ""
        pruned = sum(parameters[name].numel() for name in self._names)
        rank_zero_warn(
            f"WeightPruning prunes layers that have {pruned / every:.1%} of the parameters; others are multiplied with "
            f"activations, too, and stay dense: {listed}{more}. Name all weights to prune in `include`, or these in `exclude`."
        )
