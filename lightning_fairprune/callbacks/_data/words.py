"""What the log says of a selection."""

from __future__ import annotations

from lightning_fairprune.selection import Selection


def kept_in_words(selection: Selection) -> str:
    """Returns how many samples are kept, and of which class fewest and most.

    Example:
        >>> import torch
        >>> from lightning_fairprune import select
        >>> kept_in_words(select(torch.tensor([0, 0, 0, 1]), torch.tensor([2, 1])))
        '3 of 4 samples; class 1 keeps fewest (1 of 1), class 0 most (2 of 3).'
    """
    kept, sizes, distinct = selection.quota, selection.sizes, selection.distinct
    repeats = ""
    if distinct < len(selection):
        repeats = f", {distinct} distinct, drawn up to {selection.repeat} times"
    few, many = int(kept.argmin()), int(kept.argmax())
    return (
        f"{len(selection)} of {selection.num_samples} samples{repeats}; class {few} keeps fewest "
        f"({int(kept[few])} of {int(sizes[few])}), class {many} most ({int(kept[many])} of {int(sizes[many])})."
    )
