"""Running the model on samples and recording what a score needs of each."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._lightning.outside_fit import to_device
from lightning_fairprune._model.losses import IGNORED
from lightning_fairprune._observe.moves import MOVE, log_p, one_each
from lightning_fairprune._observe.positions import sample_labels, sample_signals
from lightning_fairprune.geometry import features_of
from lightning_fairprune.scoring.file import PassFile, digest, text_of
from lightning_fairprune.scoring.share import Share
from lightning_fairprune.scoring.wanted import Wanted, scores_in

LOG_P = "log_p"
"""What a pass keeps of each sample, [N, C], for the move to the next pass."""
LogitsFn = Callable[[Any, Any], tuple[Tensor, Tensor]]
_SECONDS_BETWEEN_FILES = 30.0
_TIMES_A_WRITE = 20.0  # features may be many gigabytes: scoring gets most of the time
_BATCHES_AT_ONCE = 32


class Observer:
    """Computes from some batches what the score needs of every sample."""

    def __init__(self, model: nn.Module, wanted: Wanted, logits_fn: LogitsFn | None) -> None:
        self.model, self.wanted, self.logits_fn = model, wanted, logits_fn

    def __call__(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        if self.wanted.kind == "model":
            try:
                values = self.wanted.score(self.model, batches)
            except NotImplementedError as error:
                raise ValueError(
                    f"`score` calls {type(self.model).__name__}, which must have a forward(input) that "
                    "returns logits: write one, or wrap the score in your own function that "
                    "calls what the model has."
                ) from error
            return {"score": scores_in(values)}
        targets: list[Tensor] = []
        names = [name for name in self.wanted.names if name != MOVE]
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        if self.wanted.kind == "features":

            def forward(_: nn.Module, batch: Any) -> None:
                logits, target = self._read(batch)
                targets.append(sample_labels(target))
                for name in names:
                    parts[name].append(sample_signals([name], logits, target)[name].float())

            with _uncompiled():
                rows = features_of(
                    self.model, batches, self.wanted.layer, at="input", forward=forward
                )
            target = torch.cat(targets).cpu()
            found = {"features": rows.float(), "target": target.masked_fill(target == IGNORED, -1)}
            return found | {name: torch.cat(part).cpu() for name, part in parts.items()}
        if MOVE in self.wanted.names:
            parts[LOG_P] = []
        with torch.no_grad():
            for batch in batches:
                logits, target = self._read(batch)
                # A label out of range must not crash the device; it is named below.
                for name, value in sample_signals(names, logits, target).items():
                    parts[name].append(value.float())
                if LOG_P in parts:
                    parts[LOG_P].append(log_p(one_each(logits)).half())
                targets.append(sample_labels(target))
        target = torch.cat(targets)
        known = target[target != IGNORED]
        outside = known[(known < 0) | (known >= logits.shape[1])]
        if len(outside):
            raise ValueError(
                f"targets must be class indices in [0, {logits.shape[1]}), got {int(outside[0])} for "
                f"{len(outside)} of {len(target)} samples: remove them, or give `logits_fn`."
            )
        target = target.masked_fill(target == IGNORED, -1)
        return {name: torch.cat(part) for name, part in parts.items()} | {"target": target}

    def _read(self, batch: Any) -> tuple[Tensor, Tensor]:
        assert self.logits_fn is not None
        logits, target = self.logits_fn(self.model, batch)
        fits = logits.ndim > 1 and logits.shape[:1] + logits.shape[2:] == target.shape
        if not fits or target.is_floating_point():
            raise ValueError(
                "a scoring pass needs logits [B, C] and one class index per sample [B], got "
                f"{list(logits.shape)} and {target.dtype} {list(target.shape)}: pass `logits_fn`."
            )
        return logits, target


def _uncompiled() -> AbstractContextManager[object]:
    """Runs compiled parts eagerly, with the hooks that they have now; since torch 2.6."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def look(
    share: Share, observer: Observer, file: PassFile | None, step: Callable[[int], object]
) -> dict[str, Tensor]:
    """Returns values [N, ...] with the rows of this process filled in, and 0 elsewhere."""
    values: dict[str, Tensor] = {}
    done, at_once, fingerprint = 0, max(1, share.batches), ""
    if file is not None:
        wanted = observer.wanted
        facts = (share.size, share.world, share.batch_size, wanted.kind, wanted.names, wanted.layer)
        fingerprint = digest(observer.model, *facts, text_of(wanted.score))
        values, done = file.read(fingerprint)
        at_once = _BATCHES_AT_ONCE
    step(done)
    stream, write_at = share.iterate(done), time.monotonic() + _SECONDS_BETWEEN_FILES
    for _ in range(math.ceil((share.batches - done) / at_once)):
        indices: list[Tensor] = []

        def batches(indices: list[Tensor] = indices) -> Iterator[Any]:
            for batch, samples in itertools.islice(stream, at_once):
                indices.append(samples)
                yield to_device(observer.model, batch)
                step(1)

        found = observer(batches())
        _put(values, found, torch.cat(indices) if indices else torch.tensor([]), share.size)
        done += len(indices)
        began = time.monotonic()
        if file is not None and (done >= share.batches or began > write_at):
            file.write(fingerprint, values, done)
            now = time.monotonic()
            write_at = now + max(_SECONDS_BETWEEN_FILES, _TIMES_A_WRITE * (now - began))
    return values


def _put(
    values: dict[str, Tensor], found: Mapping[str, Tensor], indices: Tensor, size: int
) -> None:
    for name, rows in found.items():
        if rows.shape[:1] != indices.shape:
            raise ValueError(
                f"a scoring pass needs one value per sample, got {list(rows.shape)} for {len(indices)} "
                "samples: `score` must use every batch once, in order, and collate function and step "
                "must neither drop nor repeat samples."
            )
        if name not in values:
            values[name] = rows.new_zeros(size, *rows.shape[1:])
        whole = values[name]  # on the host, if they come from a file
        whole.index_copy_(0, indices.to(whole.device), rows.to(whole))
