"""What the network predicts in a step, and the class of each sample, found from the first step.

In this order: what the step returns; what the module's own metrics are updated with; the output of the network that the
loss was computed from. Where a loss is given other logits than the network's output, the network's output counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_fairprune._model.flow import Event, Flow, Output, Path
from lightning_fairprune._model.losses import LossCall, Seen, ignoring, plain, two_classes

REMEDY = "return {'loss': ..., 'logits': [B, C], 'target': [B]} from the step or pass `logits_fn`."
_PREDICTIONS = ("logits", "preds", "pred", "predictions", "y_hat", "y_pred")
_TARGETS = ("target", "targets", "labels", "label", "y", "y_true")


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Logits and target of a step, and where the next steps have them.

    Args:
        seen: of the step.
        name: what they are, in words.
        returned: keys of predictions and target in what the step returns; the second None for a target elsewhere.
        output: the module that returned the logits, the number of its call and the place of the tensor.
        loss: number of the loss call that has the logits (without `output`) or the target (without `leaf`).
        leaf: where the target is in the batch.
        metric: the metric that is updated with the target, or with both.
        form: what the logits are: of two classes in one number, as a logit or a probability.
        flat: whether the logits hold positions before classes, as [B, T, C].
        ignore_index: of the target.
        by_loss: whether they are what the first loss of a batch was given, logits [B, C] and class indices [B].
    """

    seen: Seen
    name: str
    returned: tuple[Any, Any] | None = None
    output: tuple[ref[nn.Module], int, int] | None = None
    loss: int | None = None
    leaf: Path | None = None
    metric: ref[Metric] | None = None
    form: str = "classes"
    flat: bool = False
    ignore_index: int | None = None
    by_loss: bool = False


# Logits [B, C, ...], how they come out of a tensor, whether classes are its last axis, and a target of another shape.
_Form = tuple[Tensor, str, bool, Tensor | None]


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    labels: Tensor
    leaf: int | None
    per_label: bool = False
    ignore_index: int | None = None
    mixed: Tensor | None = None


def answer(flow: Flow, outputs: Any, size: int | None = None) -> Answer | None:
    """Returns what one observed step says, or None if it says nothing.

    Raises:
        ValueError: If it says two things, or shows only logits that the loss has changed by the labels.
    """
    with torch.no_grad(), torch._C.DisableTorchFunction():
        said = _returned(flow, outputs)
        if said is not None:
            return said
        found = _of_losses(flow, size)
        if not found:
            found = _of_metrics(flow) or _of_softmax(flow)
        if not found:
            return None
        said = _agreed(flow, found)
        if size is not None and said.leaf is None and said.loss is not None:
            _check_order(flow, said)
        first = _first_plain(flow, len(said.seen.target))
        return replace(said, by_loss=said.by_loss and said.loss == first)


# -------------------------------------------------------------------------------------- what the step returns


def _returned(flow: Flow, outputs: Any) -> Answer | None:
    if has_logits(outputs):  # what is documented, so that faults are named
        seen = Seen(outputs["logits"], outputs["target"])
        return Answer(seen, "the returned 'logits'", returned=("logits", "target"))
    if not isinstance(outputs, Mapping):
        return None
    for preds in _PREDICTIONS:
        for target in _TARGETS:
            logits, labels = outputs.get(preds), outputs.get(target)
            if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
                continue
            exact = (preds, target) == (
                "logits",
                "target",
            )  # what is documented, so that faults are named
            if exact or _fit(logits, labels):
                seen = Seen(plain(logits), plain(labels))
                return Answer(seen, f"the returned {preds!r}", returned=(preds, target))
    return None


def has_logits(outputs: Any) -> bool:
    """Whether a step returned logits and target under these names."""
    return isinstance(outputs, Mapping) and {"logits", "target"} <= outputs.keys()


def _fit(logits: Any, labels: Any) -> bool:
    """Whether these are logits [B, C, ...] and one class index per sample or position."""
    return bool(
        logits.is_floating_point()
        and not labels.is_floating_point()
        and logits.ndim == labels.ndim + 1 > 1
        and logits.shape[1] > 1
        and logits.shape[:1] + logits.shape[2:] == labels.shape
    )


# --------------------------------------------------------------------------------------------- losses


def _of_losses(flow: Flow, size: int | None) -> list[Answer]:
    found, number, blocked = [], -1, None
    for event in flow.events:
        if event.loss is None:
            continue
        number += 1
        target = _target(flow, event)
        if target is None:
            continue
        try:
            said = _logits(flow, event, target, number, size)
        except _ChangedByLabelsError as error:
            blocked = blocked or error
            continue
        if said is not None:
            found.append(said)
    if not found and blocked is not None:
        raise ValueError(str(blocked))
    if size is None:
        size = next((len(tensor) for _, tensor in flow.leaves if tensor.ndim), None)
    found = [said for said in found if len(said.seen.target) == size] or found
    best = max((_is_of_batch(flow, said) for said in found), default=0)
    return [said for said in found if _is_of_batch(flow, said) == best]


def _check_order(flow: Flow, said: Answer) -> None:
    """Raises if the labels are those of the batch in another order, so that samples have those of others."""
    losses = [event for event in flow.events if event.loss is not None]
    labels = said.seen.target
    for leaf in losses[said.loss or 0].target_trace.changed:
        value = plain(flow.leaves[leaf][1])
        if value.shape != labels.shape or value.ndim != 1 or value.is_floating_point():
            continue
        pairs = torch.stack([value.long(), labels.long()])
        pairs = torch.unique(pairs, dim=1)
        is_function = pairs.shape[1] == len(
            torch.unique(value)
        )  # the step gives classes other numbers
        if not is_function and torch.equal(value.long().sort().values, labels.long().sort().values):
            raise ValueError(
                f"the step changes the order of its samples: the loss is given {_place(flow.leaves[leaf][0])} of the "
                f"batch in another order, so that each sample would get the label of another: {REMEDY}"
            )


def _is_plain(event: Event) -> bool:
    assert event.loss is not None
    return event.loss.whole and event.loss.input.ndim == 2 and event.loss.target.ndim == 1


def _first_plain(flow: Flow, size: int) -> int | None:
    """Returns the number of the loss that `LossCapture.pick` takes."""
    losses = [event for event in flow.events if event.loss is not None]
    fitting = [i for i, e in enumerate(losses) if _is_plain(e) and len(e.input) == size]
    return fitting[0] if fitting else None


def _is_of_batch(flow: Flow, said: Answer) -> int:
    """Returns 2 if the labels are integers of the batch, 1 if they are of the batch at all, else 0."""
    assert said.loss is not None
    losses = [event for event in flow.events if event.loss is not None]
    of = [flow.leaves[leaf][1] for leaf in losses[said.loss].target_trace.leaves]
    return 2 if any(not tensor.is_floating_point() for tensor in of) else int(bool(of))


def _target(flow: Flow, event: Event) -> _Target | None:
    """Returns the class indices that a loss or metric was given."""
    loss, target = event.loss, event.target
    assert target is not None
    whole = not target.is_floating_point()
    if loss is None or loss.whole:
        if not whole:
            return None
        labels = ignoring(plain(target), event.ignore_index)
        return _Target(labels, _leaf_like(flow, event, labels), ignore_index=event.ignore_index)
    size = len(target) if target.ndim else 0
    for leaf in sorted(event.target_trace.leaves - event.target_trace.changed):
        value = flow.leaves[leaf][1]
        if _is_whole(value) and value.shape == (size,):
            labels = plain(value).long()
            if _belongs(plain(target), labels):
                return _Target(labels, leaf)
    values = plain(target)
    many = loss.kind != "classes" and values.ndim == 2 and values.shape[1] > 1
    per_label = many and not bool(_is_one(values).all())
    found = labels_in(loss, per_label)
    if found is None:
        return None
    mixed = values if values.ndim == 2 and not per_label and _is_mixed(values) else None
    return _Target(found, None, per_label, mixed=mixed)


def labels_in(loss: LossCall, per_label: bool = False) -> Tensor | None:
    """Returns the class indices [B, ...] that a loss was given, or with `per_label` which labels hold, [B, C].

    Of class probabilities the highest counts, of one probability its rounded value. A row of several labels has no
    class: it gets one that does not exist.
    """
    if loss.whole:
        return loss.labels()
    values = plain(loss.target)
    if per_label:
        return (values > 0.5).long()
    if loss.kind != "classes" and values.ndim and _is_single(values):
        held = values > 0.5
        return (held.squeeze(1) if values.ndim > 1 and values.shape[1] == 1 else held).long()
    if values.ndim < 2:
        return None
    highest = values.argmax(1)
    if loss.kind == "classes" or values.ndim > 2:
        return highest
    return highest.masked_fill(~_is_one(values), values.shape[1])


def _is_single(values: Tensor) -> bool:
    """Whether probabilities are of one class for each sample or position, [B], [B, 1, ...] or [B, H, W]."""
    return values.ndim in (1, 3) or values.shape[1] == 1


def _is_one(values: Tensor) -> Tensor:
    """Whether each row has one label in total, as one-hot, smoothed and mixed rows do."""
    return (values.float().sum(1) - 1).abs() < 0.5


def _is_mixed(values: Tensor) -> bool:
    """Whether a row holds more than one class to unequal parts, as smoothed labels do not."""
    if values.shape[1] < 3:
        return bool(((values > 1e-6) & (values < 1 - 1e-6)).any())
    highest, second, *_ = values.topk(3, 1).values.unbind(1)
    return bool((second - values.amin(1) > 1e-6).any() and (highest - second > 1e-6).any())


def _belongs(target: Tensor, labels: Tensor) -> bool:
    """Whether a target [B, C] or [B] is made from the labels [B]: one-hot, smoothed, or mixed with others'."""
    if target.numel() == len(labels):
        return bool(torch.equal((target.reshape(-1) > 0.5).long(), labels))
    inside = labels.clamp(0, target.shape[1] - 1)
    mine = target.gather(1, inside.unsqueeze(1)).squeeze(1)
    good = (mine > 0) & (labels == inside)
    return bool(good.float().mean() > 0.5)


def _leaf_like(flow: Flow, event: Event, labels: Tensor) -> int | None:
    """Returns the tensor of the batch that has these class indices, if there is one."""
    for leaf in sorted(event.target_trace.leaves - event.target_trace.changed):
        value = plain(flow.leaves[leaf][1])
        if not _is_whole(value):
            continue
        if (
            value.shape == labels.shape
            and value.ndim
            and torch.equal(ignoring(value, event.ignore_index).long(), labels.long())
        ):
            return leaf
    return None


class _ChangedByLabelsError(Exception):
    """The loss was given logits that depend on the labels, and no module returned others."""


def _logits(
    flow: Flow, event: Event, target: _Target, number: int, size: int | None
) -> Answer | None:
    loss = event.loss
    assert loss is not None
    given = plain(event.input)
    labels = target.labels
    behind = [flow.outputs[k] for k in sorted(event.trace.outputs) if k in flow.outputs]
    sources = event.target_trace.leaves if target.leaf is None else frozenset({target.leaf})
    of_labels = frozenset(leaf for leaf in sources if _is_whole(flow.leaves[leaf][1]))
    ours = [out for out in behind if not of_labels or not of_labels <= out.leaves]
    fitting = _fitting(ours, target, event)
    if not fitting:
        # One class of several; in training, where every sample counts, also some samples or several views of them.
        rows = {len(out.value) for out in ours if size is not None or len(out.value) == len(labels)}
        whole = _whole(flow, event, target) if rows else None
        if whole is not None and (fitting := _fitting(ours, whole, event)):
            target, labels = whole, whole.labels
    base = Answer(
        Seen(given, labels, target.per_label, target.mixed),
        f"what {event.name} was given, {list(given.shape)}",
        loss=number,
        leaf=None if target.leaf is None else flow.leaves[target.leaf][0],
        ignore_index=target.ignore_index,
    )
    if len(fitting) == 1:
        out, (logits, form, flat, more) = fitting[0]
        same = out.itself is event.input and _equal(out.value, given)
        return replace(
            base,
            seen=Seen(logits, labels if more is None else more, target.per_label, target.mixed),
            name=f"the output of {_called(flow.module, out.module())}, {list(out.value.shape)}",
            output=(out.module, out.call, out.place),
            form=form,
            flat=flat,
            by_loss=same and _is_plain(event),
        )
    depends = bool(of_labels) and of_labels <= event.trace.leaves
    if depends or (behind and not ours):
        raise _ChangedByLabelsError(
            f"{event.name} was given logits that depend on the labels, as of a margin, and no module returned "
            f"them without: {REMEDY}"
        )
    shaped = _shaped(given, target, event)
    if shaped is None:
        return None
    logits, form, flat, more = shaped
    return replace(
        base,
        seen=Seen(logits, labels if more is None else more, target.per_label, target.mixed),
        form=form,
        flat=flat,
        by_loss=_is_plain(event),
    )


def _fitting(outputs: list[Output], target: _Target, event: Event) -> list[tuple[Output, _Form]]:
    forms = [(out, _shaped(out.value, target, event)) for out in outputs]
    return [(out, form) for out, form in forms if form is not None]


def _whole(flow: Flow, event: Event, target: _Target) -> _Target | None:
    """Returns the labels of the batch that the labels of a loss are a part of, if they are."""
    for leaf in sorted(event.target_trace.leaves):
        value = plain(flow.leaves[leaf][1])
        if not _is_whole(value) or value.ndim == 0:
            continue
        labels = ignoring(value, target.ignore_index).long()
        if not target.per_label and bool(torch.isin(target.labels, labels).all()):
            return _Target(labels, leaf, ignore_index=target.ignore_index)
    return None


def _shaped(value: Tensor, target: _Target, event: Event) -> _Form | None:
    """Returns logits [B, C, ...] for a target [B, ...], how they come out of `value`, and a target of another shape."""
    labels = target.labels
    each = event.loss is not None and event.loss.kind != "classes"
    if each and target.leaf is None and event.input.numel() == labels.numel() != value.numel():
        return None  # one class of several
    if target.per_label:
        return (value, "classes", False, None) if value.shape == labels.shape else None
    if each and value.numel() == labels.numel() and value.shape[0] == labels.shape[0]:
        probability = event.loss is not None and event.loss.kind == "probabilities_each"
        form = "probability" if probability and not event.trace.normalised else "logit"
        return formed(value, form, flat=False), form, False, None
    positions = labels.shape[1:]
    if value.ndim == labels.ndim + 1 and value.shape[:1] + value.shape[2:] == labels.shape:
        return (value, "classes", False, None) if value.shape[1] > 1 else None
    if value.ndim == labels.ndim + 1 > 2 and value.shape[:-1] == labels.shape:
        return value.movedim(-1, 1), "classes", True, None
    # [B T, C] and [B T] for outputs [B, T, C] and labels [B, T]
    if not positions and value.ndim > 2 and value.shape[:-1].numel() == len(labels):
        return value.movedim(-1, 1), "classes", True, labels.reshape(value.shape[:-1])
    return None


def formed(value: Tensor, form: str, *, flat: bool) -> Tensor:
    """Returns logits [B, C, ...] from the output of a module or the input of a loss."""
    value = plain(value)
    if form == "probability":
        value, form = value.logit(), "logit"
    if form == "logit":
        return two_classes(value)
    return value.movedim(-1, 1) if flat else value


# --------------------------------------------------------------------- metrics, and losses written by hand


def _of_metrics(flow: Flow) -> list[Answer]:
    found = []
    for event in flow.events:
        target = None if event.metric is None else _target(flow, event)
        if target is None:
            continue
        said = _output(flow, event, target)
        if said is None and _fit(event.input, target.labels):
            seen = Seen(plain(event.input), target.labels)
            said = Answer(seen, f"what {event.name} is given", ignore_index=event.ignore_index)
        if said is not None:
            assert event.metric is not None
            found.append(replace(said, metric=ref(event.metric)))
    return found


def _of_softmax(flow: Flow) -> list[Answer]:
    """Reads a loss that is written by hand: the logits go through a softmax, the labels pick from the result."""
    found: list[Answer] = []
    for event in flow.events:
        if event.loss is not None or event.metric is not None:
            continue
        fitting: list[tuple[int, Answer]] = []
        for leaf, (_, value) in enumerate(flow.leaves):
            if not _is_whole(value) or value.ndim == 0:
                continue
            said = _output(flow, event, _Target(plain(value), leaf))
            if said is not None:
                fitting.append((leaf, said))
        picks = [trace for _, trace in flow.picks]
        used = [(leaf, said) for leaf, said in fitting if any(leaf in p.leaves for p in picks)]
        fitting = used or fitting
        changed = [
            leaf for leaf, _ in used if all(leaf in p.changed for p in picks if leaf in p.leaves)
        ]
        if changed:
            raise ValueError(
                f"the loss picks classes by labels that the step makes from {_place(flow.leaves[changed[0]][0])} of the "
                f"batch, which no known loss is given: {REMEDY}"
            )
        if len(fitting) > 1:
            names = " and ".join(_place(flow.leaves[leaf][0]) for leaf, _ in fitting)
            raise ValueError(f"the labels of the step may be {names} of the batch: {REMEDY}")
        found += [said for _, said in fitting]
    return found


def _output(flow: Flow, event: Event, target: _Target) -> Answer | None:
    """Returns the network's output behind a tensor, for a target."""
    for number in sorted(event.trace.outputs, reverse=True):
        out = flow.outputs.get(number)
        if out is None or (target.leaf is not None and target.leaf in out.leaves):
            continue
        shaped = _shaped(out.value, target, event)
        if shaped is not None:
            logits, form, flat, whole = shaped
            labels = target.labels if whole is None else whole
            return Answer(
                Seen(logits, labels),
                f"the output of {_called(flow.module, out.module())}, {list(out.value.shape)}",
                output=(out.module, out.call, out.place),
                leaf=None if target.leaf is None else flow.leaves[target.leaf][0],
                form=form,
                flat=flat,
                ignore_index=target.ignore_index,
            )
    return None


# ------------------------------------------------------------------------------------------- agreement


def _agreed(flow: Flow, found: list[Answer]) -> Answer:
    """Returns the answer that the others and the metrics do not contradict."""
    first = found[0]
    others = [said for said in found if not _alike(first.seen, said.seen)]
    metrics = [
        (event, target)
        for event in flow.events
        if event.metric is not None and (target := _target(flow, event)) is not None
    ]
    if others:
        confirmed = [
            said
            for said in found
            if any(_confirms(event, target, said) for event, target in metrics)
        ]
        if confirmed and all(_alike(confirmed[0].seen, said.seen) for said in confirmed):
            return confirmed[0]
        raise ValueError(
            f"the step has two predictions, for other labels: {first.name}, and {others[0].name}: {REMEDY}"
        )
    # Of mixed labels those of the batch.
    own = (said for said in found if said.leaf is not None and _same_logits(said, first))
    first = next(own, first)
    same = [(event, target) for event, target in metrics if _same_labels(target.labels, first.seen)]
    if same:
        for said in found:
            if _same_logits(said, first) and any(_confirms(*of, first) for of in same):
                return first
            if any(_confirms(*of, said) for of in same):
                return said
        event = same[0][0]
        raise ValueError(
            f"two answers disagree: {event.name} is given other predictions than {first.name}, for the same "
            f"labels: {REMEDY}"
        )
    return first


def _same_logits(one: Answer, other: Answer) -> bool:
    return _equal(one.seen.logits, other.seen.logits)


def _alike(one: Seen, other: Seen) -> bool:
    """Whether two answers are of the same classes; of two heads for the same labels the first counts."""
    if one.logits.shape != other.logits.shape or one.per_label != other.per_label:
        return False
    return (
        one.logits is other.logits
        or _equal(one.logits, other.logits)
        or _equal(one.target, other.target)
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one.to(other.dtype), other))


def _same_labels(labels: Tensor, seen: Seen) -> bool:
    return _equal(labels.reshape(-1), seen.target.reshape(-1))


def _confirms(event: Event, target: _Target, said: Answer) -> bool:
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
        edge = 0.0 if bool(((preds < 0) | (preds > 1)).any()) else 0.5
        return bool(((preds.reshape(-1) > edge).long() == chosen).all()) or edge == 0.5
    return preds.numel() == len(chosen) and bool((preds.reshape(-1) == chosen).all())


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def _called(module: nn.Module, part: nn.Module | None) -> str:
    names = {id(other): name for name, other in module.named_modules()}
    name = names.get(id(part), "")
    if part is None:
        return "a module that is gone"
    return f"`{name}` ({type(part).__name__})" if name else type(part).__name__


def _place(path: Path) -> str:
    return "".join(f"[{key!r}]" if way == "item" else f".{key}" for way, key in path) or "itself"
