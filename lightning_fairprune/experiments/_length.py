"""The length of trainings."""

from __future__ import annotations

from typing import NamedTuple

from lightning_fairprune.experiments._parts import Final


class Training(NamedTuple):
    """The training set: how many samples, in which batches."""

    total: int
    batch_size: int
    drop_last: bool = False


class Length(NamedTuple):
    """Length of one training; `steps` may end inside the last epoch."""

    epochs: int
    steps: int
    warmup: int = 0  # epochs of them on all the data


def epoch_correction(epochs: int, density: float) -> int:
    r"""Returns the epochs of a model on part of the data, as in the published code of DRoP.

    .. math:: E_d = \lfloor (0.5 + 0.5 d) \, E / d \rfloor

    That is between half of and all the E / d epochs that take as many steps as E on all the data. From the
    code of Vysogorets, Ahuja and Kempe (github avysogorets/fair-data-pruning, 2024), not
    in their paper.

    Args:
        epochs: of a model on all the data, E.
        density: fraction that is kept, d in (0, 1].

    Example:
        >>> epoch_correction(160, 0.1), epoch_correction(200, 0.5), epoch_correction(160, 1.0)
        (880, 300, 160)
    """
    return int((0.5 + 0.5 * density) * epochs / density)


def final_length(final: Final, kept: int, density: float, training: Training) -> Length:
    """Returns the length of a training on `kept` samples, selected for `density`.

    Raises:
        ValueError: If `kept` samples are less than a batch, with `drop_last`.

    Example:
        100 samples 3 times are 25 samples 12 times, each time in 3 batches of at most 10.

        >>> final_length(Final(epochs=3), 25, 0.25, Training(100, 10))
        Length(epochs=12, steps=36, warmup=0)
        >>> final_length(Final(3, length="epoch_correction"), 25, 0.25, Training(100, 10))
        Length(epochs=7, steps=21, warmup=0)
        >>> final_length(Final(epochs=3), 70, 0.7, Training(100, 10))  # 4 times and 20 samples
        Length(epochs=5, steps=30, warmup=0)
    """
    batches = _batches(kept, training)
    if final.length == "epoch_correction" and kept < training.total:
        epochs = epoch_correction(final.epochs, density)
        return Length(epochs, epochs * batches)
    return _until(final.epochs * training.total, kept, training.batch_size, batches)


def one_fit_length(
    final: Final, warmup: float, kept: int, density: float, training: Training
) -> Length:
    """Returns the length of a fit with a warm-up on all samples and the rest on `kept` of them.

    It sees as many samples as a final model of the same density; `warmup` is the fraction of them that
    goes to the warm-up.

    Raises:
        ValueError: If the warm-up leaves nothing, or as in `final_length`.

    Example:
        Of 600 samples 225 may go to the warm-up: 2 epochs. The 400 that are left are 16 times 25.

        >>> one_fit_length(Final(epochs=6), 0.375, 25, 0.25, Training(100, 10))
        Length(epochs=18, steps=68, warmup=2)
    """
    total = training.total
    seen = final.epochs * total
    if final.length == "epoch_correction":
        seen = epoch_correction(final.epochs, density) * kept
    epochs = max(1, int(warmup * seen) // total)
    rest = seen - epochs * total
    if rest <= 0:
        raise ValueError(
            f"`warmup` must leave something to train on, but {seen} samples are no more "
            f"than one epoch over all {total}: raise final.epochs."
        )
    after = _until(rest, kept, training.batch_size, _batches(kept, training))
    full = epochs * _batches(total, training)
    return Length(epochs + after.epochs, full + after.steps, epochs)


def _until(samples: int, kept: int, batch_size: int, batches: int) -> Length:
    epochs, rest = divmod(samples, kept)
    return Length(epochs + (rest > 0), epochs * batches + min(batches, -(-rest // batch_size)))


def _batches(samples: int, training: Training) -> int:
    size = training.batch_size
    found = samples // size if training.drop_last else -(-samples // size)
    if found < 1:
        raise ValueError(
            f"{samples} samples are less than a batch of {size}, which the training loader "
            "drops (drop_last): raise the density or lower the batch size."
        )
    return found
