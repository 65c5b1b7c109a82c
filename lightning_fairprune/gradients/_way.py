"""Which way the samples of a batch take: together where that is exact, one by one elsewhere."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.trees import leaves
from lightning_fairprune.gradients._alone import Start, alone
from lightning_fairprune.gradients._loss import Loss
from lightning_fairprune.gradients._together import TooLarge, together


class Way:
    """The samples of all batches of one model; remembers what it found out about the model."""

    def __init__(
        self, model: nn.Module, chosen: Iterable[nn.Parameter], loss: Loss, memory: int
    ) -> None:
        self.model, self.chosen, self.loss, self.memory = model, list(chosen), loss, memory
        model.requires_grad_(False)
        for parameter in self.chosen:
            parameter.requires_grad_(True)
        self._start = Start(model)
        self._one_by_one = False
        self._failure: Exception | None = None  # until the user is told
        self._at_once: int | None = None
        self._checked = False

    def norms2(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns losses and squared gradient norms, [B] each, of the samples as if each were alone."""
        device = self.chosen[0].device
        before = _random_states(device)
        with _uncompiled():
            found = self._found(batch)
            if batch.size > 1 and not self._checked:
                self._checked = True
                self._check_pair(batch.rows(slice(2)), found[0][:2])
            if _random_states(device) != before:
                self._check_same(found, self._found(batch))
            self._start.put_back()
        if self._failure is not None:
            _say_slow(self._failure)
            self._failure = None
        return found

    def _found(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self._together(batch) if batch.size > 1 and not self._one_by_one else None
        return found or alone(self.model, self.chosen, batch, self.loss, self._start)

    def _check_same(self, *twice: tuple[Tensor, Tensor]) -> None:
        """Raises if random numbers, which were drawn, change losses or norms."""
        tolerance = max(_tolerance(value.dtype) for value in (twice[0][0], *self.chosen))
        for one, other in zip(*twice, strict=True):
            finite = one.isfinite() & other.isfinite()
            if not _close(
                one[finite], other[finite], tolerance, tolerance * one[finite].abs().mean()
            ):
                raise ValueError(
                    "every sample's loss must be the same whenever it is computed, but random numbers change "
                    "it. Look for randomness in eval mode, such as F.dropout without `training=self.training`."
                )

    def _together(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        pieces: list[tuple[Tensor, Tensor]] = []
        done = 0
        while done < batch.size:
            step = self._at_once or batch.size
            piece = batch.rows(slice(done, done + step))
            self._start.put_back()
            try:
                pieces.append(together(self.model, self.chosen, piece, self.loss, self.memory))
            except TooLarge:
                self._at_once = max(1, piece.size // 2)
                continue
            except Exception as error:  # vmap fails in many ways; the last resort does not
                self._one_by_one = True
                self._failure = error
                return None
            done += piece.size
        losses, norms2 = zip(*pieces, strict=True)
        return torch.cat(losses), torch.cat(norms2)

    def _check_pair(self, pair: Batch, alone: Tensor) -> None:
        """Raises if the losses of two samples together are others than those of each alone."""
        self._start.put_back()
        outputs = pair.through(self.model)
        raw = self.loss.raw(outputs, pair.target, 2).detach()
        losses = raw
        if raw.ndim == 0 and all(t.shape[:1] == (2,) for t in leaves(outputs)):
            rows = [Batch(outputs, pair.target, 2).rows(slice(i, i + 1)) for i in range(2)]
            each = [self.loss.of_one(row.inputs, row.target) for row in rows]
            losses = torch.stack(each).detach()
        if not alone.isfinite().all():
            return  # the caller says which sample
        tolerance = max(_tolerance(value.dtype) for value in (alone, *self.chosen))
        slack = tolerance * (1 + alone.abs().max())
        own = losses.ndim == 0 or _close(losses, alone, tolerance, slack)
        if raw.ndim == 0:  # a sum, or a mean with whatever weights
            summed = (raw - alone.sum()).abs() <= 2 * slack
            own &= bool(summed | (alone.min() - slack <= raw) & (raw <= alone.max() + slack))
        if not own:
            raise ValueError(
                "every sample's loss must depend on that sample alone, but the losses of two samples are "
                f"{alone.tolist()} one at a time and {raw.tolist()} together. Look for a loss that compares "
                "samples, for normalisation over the batch, and for randomness in eval mode."
            )


def _say_slow(error: Exception) -> None:
    why = next(iter(str(error).strip().splitlines()), "").strip().rstrip(".")
    warnings.warn(
        "`grad_norm` takes one backward pass per sample, which is right but slow: torch.vmap cannot do the "
        f"model or the loss ({type(error).__name__}: {why[:200]}).",
        stacklevel=4,
    )


def _close(found: Tensor, expected: Tensor, tolerance: float, slack: Tensor) -> bool:
    return bool(((found - expected).abs() <= tolerance * (expected.abs() + slack)).all())


def _tolerance(dtype: torch.dtype) -> float:
    """Returns the relative error allowed to rounding, far below that of a missing factor or use."""
    return float(min(0.1, 10 * torch.finfo(dtype).eps ** 0.5))


def _uncompiled() -> AbstractContextManager[object]:
    """Runs compiled parts eagerly, where the functions they call are seen; since torch 2.6."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def _random_states(device: torch.device) -> tuple[object, ...]:
    of_numpy: Any = np.random.get_state()  # noqa: NPY002 - what models use
    of_torch = [torch.get_rng_state()]
    if device.type == "cuda":
        of_torch.append(torch.cuda.get_rng_state(device))
    return (
        random.getstate(),
        of_numpy[1].tobytes(),
        of_numpy[2:],
        *(state.numpy().tobytes() for state in of_torch),
    )
