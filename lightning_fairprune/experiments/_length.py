"""How long the models of the table are trained."""

from __future__ import annotations

from typing import NamedTuple

from lightning_fairprune.experiments._parts import Final

__all__ = ["Length", "epoch_correction", "final_length", "one_fit_length"]


class Length(NamedTuple):
    """Length of one training.

    Attributes:
        epochs: that are begun.
        steps: batches, after which training ends, maybe inside the last epoch.
        warmup: epochs of them on all the data.
    """

    epochs: int
    steps: int
    warmup: int = 0


def epoch_correction(epochs: int, density: float) -> int:
    r"""Return the epochs of a model on part of the data, as DRoP's published code has them.

    .. math:: E_d = \lfloor (0.5 + 0.5 d) \, E / d \rfloor

    Between the E / d epochs that take as many steps as E on all the data, and half of them. In the
    code of Vysogorets, Ahuja and Kempe (github avysogorets/fair-data-pruning, 2024); we did not find
    it in their paper.

    Args:
        epochs: of a model on all the data, E.
        density: fraction that is kept, d in (0, 1].

    Returns:
        Epochs over the kept samples.

    Example:
        >>> epoch_correction(160, 0.1), epoch_correction(200, 0.5), epoch_correction(160, 1.0)
        (880, 300, 160)
    """
    return int((0.5 + 0.5 * density) * epochs / density)


def final_length(
    final: Final, kept: int, total: int, density: float, batch_size: int, *, drop_last: bool = False
) -> Length:
    """Return how long a model is trained on `kept` of `total` samples.

    Args:
        final: length on all the data, and the rule.
        kept: samples that are trained on, at least 1.
        total: samples of the training set.
        density: what `kept` was asked for as.
        batch_size: samples of a batch.
        drop_last: whether an epoch leaves out an incomplete batch.

    Returns:
        Epochs and steps.

    Raises:
        ValueError: If `kept` samples are less than a batch and `drop_last` leaves that out.

    Example:
        100 samples 3 times are 25 samples 12 times, each time in 3 batches of at most 10.

        >>> final_length(Final(epochs=3), 25, 100, 0.25, 10)
        Length(epochs=12, steps=36, warmup=0)
        >>> final_length(Final(epochs=3, length="epoch_correction"), 25, 100, 0.25, 10)
        Length(epochs=7, steps=21, warmup=0)
        >>> final_length(Final(epochs=3), 70, 100, 0.7, 10)  # 4 times, and 20 samples more
        Length(epochs=5, steps=30, warmup=0)
    """
    batches = _batches(kept, batch_size, drop_last)
    if final.length == "epoch_correction" and kept < total:
        epochs = epoch_correction(final.epochs, density)
        return Length(epochs, epochs * batches)
    return _until(final.epochs * total, kept, batch_size, batches)


def one_fit_length(
    final: Final,
    warmup: float,
    kept: int,
    total: int,
    density: float,
    batch_size: int,
    *,
    drop_last: bool = False,
) -> Length:
    """Return the length of a fit that begins with all samples and goes on with part of them.

    It sees as many samples as a final model of the same density.

    Args:
        final: see `final_length`.
        warmup: fraction of the samples seen that the warm-up takes, in (0, 1).
        kept: samples after the warm-up.
        total: samples of the training set.
        density: what `kept` was asked for as.
        batch_size: samples of a batch.
        drop_last: whether an epoch leaves out an incomplete batch.

    Returns:
        Epochs and steps, with those of the warm-up.

    Raises:
        ValueError: If the warm-up leaves nothing, or as in `final_length`.

    Example:
        Of 600 samples 225 may go to the warm-up: 2 epochs. The 400 that are left are 16 times 25.

        >>> one_fit_length(Final(epochs=6), 0.375, 25, 100, 0.25, 10)
        Length(epochs=18, steps=68, warmup=2)
    """
    seen = final.epochs * total
    if final.length == "epoch_correction":
        seen = epoch_correction(final.epochs, density) * kept
    epochs = max(1, int(warmup * seen) // total)
    rest = seen - epochs * total
    if rest <= 0:
        raise ValueError(
            f"`warmup` must leave something to train on, but one epoch over all {total} samples is "
            f"all that {seen} samples are: raise final.epochs."
        )
    after = _until(rest, kept, batch_size, _batches(kept, batch_size, drop_last))
    full = epochs * _batches(total, batch_size, drop_last)
    return Length(epochs + after.epochs, full + after.steps, epochs)


def _until(samples: int, kept: int, batch_size: int, batches: int) -> Length:
    epochs, rest = divmod(samples, kept)
    return Length(epochs + (rest > 0), epochs * batches + min(batches, -(-rest // batch_size)))


def _batches(samples: int, batch_size: int, drop_last: bool) -> int:
    found = samples // batch_size if drop_last else -(-samples // batch_size)
    if found < 1:
        raise ValueError(
            f"{samples} samples are less than a batch of {batch_size}, which the training loader "
            "drops (drop_last): raise the density or lower the batch size."
        )
    return found
