"""Numbers and findings as text."""

from __future__ import annotations

import math

from lightning_fairprune import recalls
from lightning_fairprune.figures.words import listed
from lightning_fairprune.report._certificate import MOST, Certificate
from lightning_fairprune.report._compare import RATE, Comparison, Setting

NOTHING = "–"

HOW_TO_GET_DISTORTION = (
    "There is no reference, so distortion is not reported: name runs on all the data with "
    "--reference, or train with RecallMonitor(reference=...)."
)


def points(value: float) -> str:
    """Returns a fraction in percent with one decimal: 0.61 is ``61.0``; a dash for NaN."""
    return NOTHING if value != value else _no_minus_zero(f"{100 * value:.1f}")


def percent(level: float) -> str:
    """Returns a level as ``95 %``."""
    return f"{100 * level:g} %"


def signed(value: float) -> str:
    """Returns a change of a fraction in points with its sign: -0.082 is ``-8.2``."""
    return NOTHING if value != value else _no_minus_zero(f"{100 * value:+.1f}")


def ratio(value: float) -> str:
    """Returns a number with two decimals; a dash for NaN."""
    return NOTHING if value != value else _no_minus_zero(f"{value:.2f}")


def amount(value: float) -> str:
    """Returns a mean number of classes, with one decimal unless it is whole; a dash for NaN."""
    return NOTHING if value != value else f"{value:.1f}".removesuffix(".0")


def class_name(comparison: Comparison, k: int) -> str:
    return comparison.names[k] if comparison.names else f"class {k}"


def verdict(comparison: Comparison, most: int = 8) -> list[str]:
    """Returns which class lost most, in a sentence for each of the first `most` settings."""
    settings = comparison.settings
    if len(settings) == 1:
        text = _clause(comparison, settings[0]) + "."
        # The name of a class keeps its case.
        begins = text.startswith("no class ") or comparison.names is None
        return [text[0].upper() + text[1:] if begins else text]
    sentences = [f"{setting.label}: {_clause(comparison, setting)}." for setting in settings[:most]]
    rest = len(settings) - len(sentences)
    if rest:
        sentences.append(f"{rest} more {'settings' if rest > 1 else 'setting'} below.")
    return sentences


def compared_with(comparison: Comparison) -> str:
    """Returns a sentence on the reference of the runs."""
    reference = comparison.reference
    if reference is None:
        whole = [s for s in comparison.settings if all(run.record is None for run in s.runs)]
        if not whole or len(whole) == len(comparison.settings):
            return HOW_TO_GET_DISTORTION
        paths = [run.path.as_posix() for run in whole[0].runs]
        return f"{HOW_TO_GET_DISTORTION} Here these could be {listed(paths, 3)}."
    count = len(reference.recall)
    if not reference.runs:
        alone = [setting.label for setting in comparison.settings if setting.before is None]
        text = f"Distortion is relative to the reference that each run has kept ({count} in all)."
        return text + (f" None was kept by {', '.join(alone)}." if alone else "")
    models = f"{count} reference {'runs' if count > 1 else 'run'}"
    ways = {setting.pairing for setting in comparison.settings}
    if ways == {"seed"}:
        return f"Each run is compared with the one of equal seed among {models}."
    mean = f"the mean recall of {models}" if count > 1 else "the one reference run"
    if ways == {"mean"}:
        return f"Every run is compared with {mean}: seeds are unknown or do not match."
    seeded = ", ".join(s.label for s in comparison.settings if s.pairing == "seed")
    return (
        f"Runs of {seeded} are compared with the reference run of equal seed, others with {mean}."
    )


def certified(comparison: Comparison, most: int = MOST) -> list[str]:
    """Returns what each of the first `most` certificates says, in a sentence."""
    found = comparison.certificates
    if len(found) == 1:
        return [_certified(found[0])]
    of_one = {c.setting for c in found if sum(c.setting == o.setting for o in found) == 1}
    sentences = []
    for one in found[:most]:
        whose = "" if one.setting in of_one else f", {one.run.path.as_posix()}"
        against = "" if one.reference is None else f" against {one.reference.path.as_posix()}"
        text = _certified(one)
        sentences.append(f"{one.setting}{whose}{against}: {text[0].lower()}{text[1:]}")
    rest = len(found) - len(sentences)
    if rest:
        sentences.append(f"{rest} more {'pairs' if rest > 1 else 'pair'} on the page.")
    return sentences


def _certified(one: Certificate) -> str:
    bound, (few, many) = one.bounds.worst, one.samples
    # Rounded up: what is said must hold.
    lost = math.ceil(round(1000 * bound, 6)) / 1000
    samples = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    how = "" if one.bounds.paired else "; which of them changed is not known"
    says = f"no class lost more than {points(lost)} points against"
    if lost < 0:
        says = f"every class gained at least {points(-lost)} points over"
    return f"With {percent(one.bounds.level)} confidence {says} the reference ({samples} samples a class{how})."


def marks(setting: Setting) -> dict[int, str]:
    """Returns "lost" or "gained" for classes whose relative recall changed significantly."""
    if setting.test is None:
        return {}
    lost = dict.fromkeys(setting.test.lost(RATE).tolist(), "lost")
    return lost | dict.fromkeys(setting.test.gained(RATE).tolist(), "gained")


def findings(comparison: Comparison, setting: Setting) -> str:
    """Returns a sentence on the classes that changed significantly; "" without a test."""
    if setting.test is None:
        return ""
    found, parts = marks(setting), []
    if not found:
        return "No class changed significantly relative to the average."
    for kind in ("lost", "gained"):
        classes = [k for k in setting.order.tolist() if found.get(k) == kind]
        if classes:
            parts.append(f"{kind}: {listed([comparison.class_names[k] for k in classes])}")
    return f"Changed significantly relative to the average - {'; '.join(parts)}."


def _clause(comparison: Comparison, setting: Setting) -> str:
    mean = setting.mean
    if setting.before is None:
        k = setting.weakest
        below = setting.summaries["average"].mean - float(mean[k])
        return (
            f"{class_name(comparison, k)} has the lowest recall, {points(float(mean[k]))}, "
            f"{points(below)} points below the average"
        )
    k = int(setting.order[0])
    change, before = float(setting.change.nanmean(0)[k]), float(setting.mean_before[k])
    average = float((setting.values["average"] - setting.before.nanmean(1)).mean())
    numbers = f"({points(before)} → {points(float(mean[k]))})"
    # As shown, with one decimal.
    moved = "stayed" if abs(average) < 0.0005 else ("lost" if average < 0 else "gained")
    rest = f"the average {moved}" + ("" if moved == "stayed" else f" {points(abs(average))}")
    # The mean of the worst, as in the table, not the worst of the means.
    all_before = setting.before
    if setting.pairing == "mean" and comparison.reference is not None:
        all_before = comparison.reference.recall
    first, then = (float(recalls.worst(values).mean()) for values in (all_before, setting.recall))
    rest += f"; the worst class went from {points(first)} to {points(then)}"
    name = class_name(comparison, k)
    if change > -0.0005:
        return (
            f"no class lost recall, {name} gained least, {signed(change)} {numbers}, while {rest}"
        )
    return f"{name} lost {points(-change)} points {numbers} while {rest}"


def _no_minus_zero(text: str) -> str:
    return text.replace("-", "+" if "." in text else "") if float(text) == 0 else text
