"""One pass over a data set for every query model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_fairprune._lightning.outside_fit import logits_of, undisturbed
from lightning_fairprune._model.weights import weights_of
from lightning_fairprune._observe.moves import MOVE, moved
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.scoring._look import LOG_P, LogitsFn, Observer, look
from lightning_fairprune.scoring.file import PassFile
from lightning_fairprune.scoring.share import Share
from lightning_fairprune.scoring.wanted import Wanted, layer_of, scores_in, takes_target

__all__ = ["Passed", "features_pass", "run", "score_pass"]


def score_pass(
    model: nn.Module,
    loader: DataLoader[Any],
    score: Callable[..., Tensor],
    *,
    layer: str | None = None,
    checkpoints: Sequence[str | os.PathLike[str]] = (),
    logits_fn: LogitsFn | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tensor:
    """Return the score of every sample of a loader's data set, from one pass in evaluation mode.

    As in the papers for EL2N, GraNd and k-center: the query model is fixed, samples are not augmented (if the
    loader's data set does not), and each is seen once. The annotation of its first parameter says what a score is
    computed from:

    * a ``Dynamics``, or no annotation: any function of :mod:`lightning_fairprune.scores`. Each query model is one epoch of
      the :class:`~lightning_fairprune.Dynamics`, so that EL2N is averaged over them.
    * an ``nn.Module``, and batches: ``gradients.grad_norm``, or your own ``(model, batches) -> [n]``, averaged over query
      models. It may be called several times, with some of the batches each.
    * a ``Tensor`` of features [N, D], the input of `layer`, and by name ``target`` if it has that parameter:
      ``geometry.prototype_distance`` and others, or your own; averaged likewise.

    A LightningModule runs its own ``validation_step``, whose loss shows logits and targets; what it logs or counts
    is discarded. With several processes (torch.distributed) each takes its share of the batches and all get the same
    result, whatever their number. The model is left as it was.

    Args:
        model: The query model, on the device where it is to run.
        loader: Over a map-style data set of N samples; its batch size, collate function and workers are used, its
            order is not.
        score: See above; its other arguments must have defaults (`functools.partial` gives some).
        layer: Name of the layer whose input are the features; None takes the last linear layer.
        checkpoints: Files of query models with the weights of `model`, as the Trainer writes them or
            ``torch.save(model.state_dict(), ...)``; none takes the weights that `model` has.
        logits_fn: ``(model, batch) -> (logits [B, C], target [B])``, for models and batches of another form.
        resume: File that records what is done, every half a minute; a pass that was stopped continues from it, with the
            same weights. Processes and query models get files of their own next to it, which stay. Use one per data set.
        progress: Whether to show a bar on a terminal, on the first process.

    Returns:
        Scores [N] in the order of the data set, on the CPU, in the dtype of `score`: higher = harder.

    Raises:
        ValueError: If there is no such layer or file, weights do not fit, a score fails, or a batch has another form.
        TypeError: If samples have no index.

    Example:
        Logits 0 give both classes 1/2, so the error is (1/2, -1/2) for every sample.

        >>> from torch.utils.data import TensorDataset
        >>> from lightning_fairprune import scores
        >>> model = nn.Linear(3, 2)
        >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        >>> data = TensorDataset(torch.rand(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> score_pass(model, DataLoader(data, batch_size=2), scores.el2n, progress=False)
        tensor([0.7071, 0.7071, 0.7071, 0.7071])
    """
    wanted = Wanted.of(model, score, layer, checkpoints)
    return run(model, loader, wanted, logits_fn=logits_fn, resume=resume, progress=progress).score


class Passed(NamedTuple):
    """The result: scores [N], and labels and dynamics where the pass saw them."""

    score: Tensor
    target: Tensor | None = None
    dynamics: Dynamics | None = None


def run(
    model: nn.Module,
    loader: DataLoader[Any],
    wanted: Wanted,
    *,
    logits_fn: LogitsFn | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Passed:
    """Runs one pass over the data for every query model; see `score_pass`."""
    share = Share(loader)
    logits_fn = logits_fn or (logits_of(model) if wanted.kind != "model" else None)
    observer = Observer(model, wanted, logits_fn)
    rows: list[dict[str, Tensor]] = []
    before: Tensor | None = None
    sources: tuple[Path | None, ...] = wanted.checkpoints or (None,)
    console = Console(stderr=True)
    shown = progress and share.rank == 0 and (console.is_terminal or console.is_jupyter)
    bars = Progress(console=console, transient=True, disable=not shown)
    with bars as bar, undisturbed(model) as own:
        task = bar.add_task("scoring pass", total=share.batches * len(sources))
        step = partial(bar.advance, task)
        for m, source in enumerate(sources):
            file = None
            if resume is not None:
                file = PassFile(resume, f"{m}.rank{share.rank}of{share.world}")
                file.check()
            with weights_of(model, source, own):
                row = share.gathered(look(share, observer, file, step), model)
            if LOG_P in row:
                now = row.pop(LOG_P)
                row[MOVE] = moved(now if before is None else before, now)
                before = now
            rows.append(row)
    return _combine(wanted, rows)


def features_pass(
    model: nn.Module,
    loader: DataLoader[Any],
    layer: str | None = None,
    *,
    signals: tuple[str, ...] = (),
    logits_fn: LogitsFn | None = None,
) -> dict[str, Tensor]:
    """Returns `features` [N, D], the input of a layer, `target` [N] and some signals [N] from one pass in eval mode.

    In the order of the data set, on the CPU, and the same in all processes.
    """
    share = Share(loader)
    wanted = Wanted(lambda features: features, "features", signals, layer_of(model, layer), ())
    observer = Observer(model, wanted, logits_fn or logits_of(model))
    with undisturbed(model):
        return share.gathered(look(share, observer, None, lambda done: None), model)


def _combine(wanted: Wanted, rows: list[dict[str, Tensor]]) -> Passed:
    target = rows[0]["target"].long() if "target" in rows[0] else None
    if wanted.kind == "dynamics":
        assert target is not None
        found = {name: torch.stack([row[name] for row in rows]) for name in wanted.names}
        dynamics = Dynamics(target, found)
        return Passed(scores_in(wanted.score(dynamics)).cpu(), target, dynamics)
    if wanted.kind == "model":
        each = [row["score"] for row in rows]
    else:
        assert target is not None
        more = {"target": target} if takes_target(wanted.score) else {}
        each = [scores_in(wanted.score(row["features"], **more)).cpu() for row in rows]
    for value in each:
        if value.shape != each[0].shape or value.ndim != 1:
            raise ValueError(f"`score` must return one value per sample, got {list(value.shape)}.")
    if len(each) == 1:
        return Passed(each[0], target)
    whole = torch.stack(each)
    return Passed((whole if whole.is_floating_point() else whole.float()).mean(0), target)
