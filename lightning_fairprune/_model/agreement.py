"""What the network predicts in a step, and the class of each sample, found from the first step.

In this order: what the step returns; what the module's own metrics are updated with; the output of the network that the
loss was computed from. Where a loss is given other logits than the network's output, the network's output counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._model.answer import Answer, equal, fit, has_logits, place_of
from lightning_fairprune._model.candidates import is_plain, of_losses, of_metrics, of_softmax
from lightning_fairprune._model.capture import LossCapture
from lightning_fairprune._model.flow import Event, Flow
from lightning_fairprune._model.losses import REMEDY, Seen, plain
from lightning_fairprune._model.targets import Target, target_of

_DOCUMENTED = ("logits", "target")
_PREDICTIONS = ("logits", "preds", "pred", "predictions", "y_hat", "y_pred")
_TARGETS = ("target", "targets", "labels", "label", "y", "y_true")


def first_answer(flow: Flow, capture: LossCapture, outputs: Any, size: int | None = None) -> Answer:
    """Returns what a step says that `flow` and, around it, `capture` have observed; raises if it says nothing.

    Losses in compiled code are seen by the capture alone.
    """
    said = answer(flow, outputs, size)
    if said is not None:
        return said
    logits, labels = capture.pick(size)
    return Answer(Seen(logits, labels), "what a compiled loss was given", by_loss=True)


def answer(flow: Flow, outputs: Any, size: int | None = None) -> Answer | None:
    """Returns what one observed step says, or None if it says nothing.

    Raises:
        ValueError: If it says two things, or shows only logits that the loss has changed by the labels.
    """
    with torch.no_grad(), torch._C.DisableTorchFunction():
        returned = _returned(outputs)
        if returned is not None and returned.returned == _DOCUMENTED:
            return returned
        found = of_losses(flow, size) or of_metrics(flow) or of_softmax(flow)
        if not found:
            return returned
        said = _agreed(flow, found)
        if returned is not None:
            # Logits or probabilities: the network's output is the former.
            _check_same(returned, said)
        if size is not None and said.leaf is None and said.loss is not None:
            _check_order(flow, said)
        first = _first_plain(flow, len(said.seen.target))
        return replace(said, by_loss=said.by_loss and said.loss == first)


def _returned(outputs: Any) -> Answer | None:
    if has_logits(outputs):  # whatever they are, so that faults are named
        seen = Seen(outputs["logits"], outputs["target"])
        return Answer(seen, "the returned 'logits'", returned=_DOCUMENTED)
    if not isinstance(outputs, Mapping):
        return None
    for preds in _PREDICTIONS:
        for target in _TARGETS:
            logits, labels = outputs.get(preds), outputs.get(target)
            if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
                continue
            if fit(logits, labels):
                seen = Seen(plain(logits), plain(labels))
                return Answer(seen, f"the returned {preds!r}", returned=(preds, target))
    return None


def _check_same(returned: Answer, said: Answer) -> None:
    one, other = returned.seen, said.seen
    same = one.logits.shape == other.logits.shape and not other.per_label
    if not same or not equal(one.logits.argmax(1), other.logits.argmax(1)):
        raise ValueError(
            f"two answers disagree: {returned.name}, {list(one.logits.shape)}, are other predictions than {said.name}: "
            f"{REMEDY}"
        )


def _check_order(flow: Flow, said: Answer) -> None:
    """Raises if the labels are those of the batch in another order, so that samples have those of others."""
    assert said.loss is not None
    labels = said.seen.target
    for leaf in flow.losses[said.loss].target_trace.changed:
        value = plain(flow.leaves[leaf][1])
        if value.shape != labels.shape or value.ndim != 1 or value.is_floating_point():
            continue
        pairs = torch.unique(torch.stack([value.long(), labels.long()]), dim=1)
        # Then the step only gives the classes other numbers.
        is_function = pairs.shape[1] == len(torch.unique(value))
        if not is_function and torch.equal(value.long().sort().values, labels.long().sort().values):
            raise ValueError(
                f"the step changes the order of its samples: the loss is given {place_of(flow.leaves[leaf][0])} of the "
                f"batch in another order, so that each sample would get the label of another: {REMEDY}"
            )


def _first_plain(flow: Flow, size: int) -> int | None:
    """Returns the number of the loss that `LossCapture.pick` takes."""
    fitting = (i for i, e in flow.losses.items() if is_plain(e) and len(e.input) == size)
    return next(fitting, None)


def _agreed(flow: Flow, found: list[Answer]) -> Answer:
    """Returns the answer that the others and the metrics do not contradict."""
    first = found[0]
    others = [said for said in found if not _alike(first.seen, said.seen)]
    metrics = [
        (event, target)
        for event in flow.events
        if event.metric is not None and (target := target_of(flow, event)) is not None
    ]
    if others:
        confirmed = [said for said in found if any(_confirms(*of, said) for of in metrics)]
        if confirmed and all(_alike(confirmed[0].seen, said.seen) for said in confirmed):
            return confirmed[0]
        raise ValueError(
            f"the step has two predictions, for other labels: {first.name}, and {others[0].name}: {REMEDY}"
        )
    # Of mixed labels those of the batch.
    own = (said for said in found if said.leaf is not None and _same_logits(said, first))
    first = next(own, first)
    same = [(event, target) for event, target in metrics if _same_labels(target.labels, first.seen)]
    if not same:
        return first
    for said in (first, *found):
        if any(_confirms(*of, said) for of in same):
            return said
    raise ValueError(
        f"two answers disagree: {same[0][0].name} is given other predictions than {first.name}, for the same "
        f"labels: {REMEDY}"
    )


def _same_logits(one: Answer, other: Answer) -> bool:
    return equal(one.seen.logits, other.seen.logits)


def _alike(one: Seen, other: Seen) -> bool:
    """Whether two answers are of the same classes; of two heads for the same labels the first counts."""
    if one.logits.shape != other.logits.shape or one.per_label != other.per_label:
        return False
    return (
        one.logits is other.logits
        or equal(one.logits, other.logits)
        or equal(one.target, other.target)
    )


def _same_labels(labels: Tensor, seen: Seen) -> bool:
    return equal(labels.reshape(-1), seen.target.reshape(-1))


def _confirms(event: Event, target: Target, said: Answer) -> bool:
    """Whether a metric is given the predictions and labels of an answer."""
    preds, logits = plain(event.input), said.seen.logits
    if said.seen.per_label or not _same_labels(target.labels, said.seen):
        return False
    chosen = logits.argmax(1).reshape(-1)
    if preds.is_floating_point() and preds.numel() == logits.numel():
        return bool((preds.reshape(logits.shape).argmax(1).reshape(-1) == chosen).all())
    if preds.is_floating_point():  # of two classes: a logit or a probability
        if preds.numel() != len(chosen) or logits.shape[1] != 2:
            return False
        # Numbers between 0 and 1 may be either.
        return any(equal((preds.reshape(-1) > edge).long(), chosen) for edge in (0.0, 0.5))
    return preds.numel() == len(chosen) and bool((preds.reshape(-1) == chosen).all())
