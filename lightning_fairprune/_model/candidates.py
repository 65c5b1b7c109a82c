"""Logits and target that single losses and metrics of a step show."""

from __future__ import annotations

from dataclasses import replace
from weakref import ref

import torch
from torch import Tensor

from lightning_fairprune._model.answer import Answer, called, equal, fit, formed, place_of
from lightning_fairprune._model.flow import Event, Flow, Output
from lightning_fairprune._model.losses import IGNORED, REMEDY, Seen, ignoring, plain
from lightning_fairprune._model.targets import Target, is_whole, target_of

# Logits [B, C, ...], how they come out of a tensor, whether classes are its last axis, and a target of another shape.
Form = tuple[Tensor, str, bool, Tensor | None]


def of_losses(flow: Flow, size: int | None) -> list[Answer]:
    """Returns what each loss shows whose labels are of the batch; of all losses if none are."""
    found, blocked = [], None
    for number, event in flow.losses.items():
        target = target_of(flow, event)
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


def _is_of_batch(flow: Flow, said: Answer) -> int:
    """Returns 2 if the labels are integers of the batch, 1 if they are of the batch at all, else 0."""
    assert said.loss is not None
    of = [flow.leaves[leaf][1] for leaf in flow.losses[said.loss].target_trace.leaves]
    return 2 if any(not tensor.is_floating_point() for tensor in of) else int(bool(of))


def is_plain(event: Event) -> bool:
    assert event.loss is not None
    return event.loss.whole and event.loss.input.ndim == 2 and event.loss.target.ndim == 1


class _ChangedByLabelsError(Exception):
    """The loss was given logits that depend on the labels, and no module returned others."""


def _logits(
    flow: Flow, event: Event, target: Target, number: int, size: int | None
) -> Answer | None:
    loss = event.loss
    assert loss is not None
    given = plain(event.input)
    labels = target.labels
    behind = [flow.outputs[k] for k in sorted(event.trace.outputs) if k in flow.outputs]
    sources = event.target_trace.leaves if target.leaf is None else frozenset({target.leaf})
    of_labels = frozenset(leaf for leaf in sources if is_whole(flow.leaves[leaf][1]))
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
        same = out.itself is event.input and equal(out.value, given)
        return replace(
            base,
            seen=Seen(logits, labels if more is None else more, target.per_label, target.mixed),
            name=f"the output of {called(flow.module, out.module())}, {list(out.value.shape)}",
            output=(out.module, out.call, out.place),
            form=form,
            flat=flat,
            by_loss=same and is_plain(event),
        )
    depends = bool(of_labels) and of_labels <= event.trace.leaves
    if depends or (behind and not ours):
        raise _ChangedByLabelsError(
            f"{event.name} was given logits that depend on the labels, as of a margin, and no module returned "
            f"them without: {REMEDY}"
        )
    form_of = shaped(given, target, event)
    if form_of is None:
        return None
    logits, form, flat, more = form_of
    return replace(
        base,
        seen=Seen(logits, labels if more is None else more, target.per_label, target.mixed),
        form=form,
        flat=flat,
        by_loss=is_plain(event),
    )


def _fitting(outputs: list[Output], target: Target, event: Event) -> list[tuple[Output, Form]]:
    forms = [(out, shaped(out.value, target, event)) for out in outputs]
    return [(out, form) for out, form in forms if form is not None]


def _whole(flow: Flow, event: Event, target: Target) -> Target | None:
    """Returns the labels of the batch that the labels of a loss are a part of, if they are."""
    for leaf in sorted(event.target_trace.leaves):
        value = plain(flow.leaves[leaf][1])
        if not is_whole(value) or value.ndim == 0:
            continue
        labels = ignoring(value, target.ignore_index).long()
        if not target.per_label and bool(torch.isin(target.labels, labels).all()):
            return Target(labels, leaf, ignore_index=target.ignore_index)
    return None


def shaped(value: Tensor, target: Target, event: Event) -> Form | None:
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


def of_metrics(flow: Flow) -> list[Answer]:
    """Returns what each metric is updated with, or the network's output behind it."""
    found = []
    for event in flow.events:
        target = None if event.metric is None else target_of(flow, event)
        if target is None:
            continue
        said = _output(flow, event, target)
        if said is None and fit(event.input, target.labels):
            seen = Seen(plain(event.input), target.labels)
            said = Answer(seen, f"what {event.name} is given", ignore_index=event.ignore_index)
        if said is not None:
            assert event.metric is not None
            found.append(replace(said, metric=ref(event.metric)))
    return found


def of_softmax(flow: Flow) -> list[Answer]:
    """Reads a loss that is written by hand: the logits go through a softmax, the labels pick from the result."""
    found: list[Answer] = []
    for event in flow.events:
        if event.loss is not None or event.metric is not None:
            continue
        fitting: list[tuple[int, Answer]] = []
        for leaf, (_, value) in enumerate(flow.leaves):
            if not is_whole(value) or value.ndim == 0:
                continue
            said = _output(flow, event, Target(plain(value), leaf))
            if said is not None:
                fitting.append((leaf, said))
        used = [
            (leaf, said) for leaf, said in fitting if any(leaf in t.leaves for _, t in flow.picks)
        ]
        fitting = used or fitting
        changed = [leaf for leaf, _ in used if not _is_picked(flow, leaf)]
        if changed:
            raise ValueError(
                f"the loss picks classes by labels that the step makes from {place_of(flow.leaves[changed[0]][0])} of the "
                f"batch, which no known loss is given: {REMEDY}"
            )
        if len(fitting) > 1:
            names = " and ".join(place_of(flow.leaves[leaf][0]) for leaf, _ in fitting)
            raise ValueError(f"the labels of the step may be {names} of the batch: {REMEDY}")
        found += [said for _, said in fitting]
    return found


def _is_picked(flow: Flow, leaf: int) -> bool:
    """Whether classes are picked by a tensor of the batch as it is, apart from ignored labels."""
    value = plain(flow.leaves[leaf][1])
    for tensor, trace in flow.picks:
        if leaf not in trace.leaves or tensor.numel() != value.numel():
            continue
        picked = plain(tensor).reshape(value.shape)
        if bool(((picked == value) | (value == IGNORED)).all()):
            return True
    return False


def _output(flow: Flow, event: Event, target: Target) -> Answer | None:
    """Returns the network's output behind a tensor, for a target."""
    for number in sorted(event.trace.outputs, reverse=True):
        out = flow.outputs.get(number)
        if out is None or (target.leaf is not None and target.leaf in out.leaves):
            continue
        form_of = shaped(out.value, target, event)
        if form_of is not None:
            logits, form, flat, whole = form_of
            labels = target.labels if whole is None else whole
            return Answer(
                Seen(logits, labels),
                f"the output of {called(flow.module, out.module())}, {list(out.value.shape)}",
                output=(out.module, out.call, out.place),
                leaf=None if target.leaf is None else flow.leaves[target.leaf][0],
                form=form,
                flat=flat,
                ignore_index=target.ignore_index,
            )
    return None
