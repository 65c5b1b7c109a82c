"""How many labels of each class look wrong, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FIELDS = ("sizes", "confident", "suspects", "given", "likely")


@dataclass(frozen=True, slots=True, eq=False)
class LabelErrors:
    """An estimate of the wrong labels of each of K classes, and the S samples whose labels look wrong.

    A sample is confidently of a class if the model gives that class at least the probability that it gives, on
    average, to the samples labelled so (see `label_errors.confident_joint`). A suspect is confidently of another class
    than its label; the estimate is the share of suspects among the confident samples of a class.

    The model cannot tell a wrong label from a sample that truly looks like another class: look at suspects before
    removing them.

    Attributes:
        sizes: Samples labelled with each class, int64, [K].
        confident: Those of them that are confidently of any class, int64, [K].
        suspects: Indices of the samples whose labels look wrong, the most suspicious first, int64, [S].
        given: The label of each suspect, int64, [S].
        likely: The class that each suspect looks like, int64, [S].

    Raises:
        TypeError: If a tensor is not int64.
        ValueError: If shapes do not agree, a class is out of range, or counts contradict each other.

    Example:
        >>> errors = LabelErrors(
        ...     sizes=torch.tensor([10, 5]),
        ...     confident=torch.tensor([8, 4]),
        ...     suspects=torch.tensor([3, 7]),
        ...     given=torch.tensor([0, 0]),
        ...     likely=torch.tensor([1, 1]),
        ... )
        >>> errors.share
        tensor([0.2500, 0.0000], dtype=torch.float64)
        >>> errors.about(0)
        'about 25 % of its labels look wrong (7 to 59 %), most of these like class 1'
    """

    sizes: Tensor
    confident: Tensor
    suspects: Tensor
    given: Tensor
    likely: Tensor

    def __post_init__(self) -> None:
        for name in FIELDS:
            value = getattr(self, name)
            if value.dtype != torch.int64:
                raise TypeError(f"`{name}` must be int64, got {value.dtype}.")
            like = "sizes" if name == "confident" else "suspects" if name != "sizes" else name
            if value.ndim != 1 or value.shape != getattr(self, like).shape:
                raise ValueError(
                    f"`sizes` and `confident` must be [K], the others [S], got `{name}` of shape "
                    f"{list(value.shape)}."
                )
        num_classes = len(self.sizes)
        for name in ("given", "likely"):
            value = getattr(self, name)
            if ((value < 0) | (value >= num_classes)).any():
                raise ValueError(f"`{name}` must hold classes in [0, {num_classes}).")
        if not ((self.wrong <= self.confident) & (self.confident <= self.sizes)).all():
            raise ValueError(
                "each class must have at least as many samples as confident ones, and these as suspects."
            )

    def __repr__(self) -> str:
        return f"LabelErrors(num_classes={len(self.sizes)}, suspects={len(self.suspects)})"

    def tensors(self) -> dict[str, Tensor]:
        """Return the attributes by name."""
        return {name: getattr(self, name) for name in FIELDS}

    def readable(self) -> dict[str, Any]:
        """Return shares with bounds, null where unknown, and suspects by class, for JSON."""
        low, high = self.interval()
        known = (self.confident > 0).tolist()
        shares = {"share": self.share, "low": low, "high": high}
        return {
            **{
                name: [v if k else None for v, k in zip(values.tolist(), known, strict=True)]
                for name, values in shares.items()
            },
            "doubtful": self.doubtful.tolist(),
            "suspects": [self.suspects[self.given == k].tolist() for k in range(len(known))],
        }

    @property
    def wrong(self) -> Tensor:
        """Suspects of each class, int64, [K]."""
        return self.given.bincount(minlength=len(self.sizes))

    @property
    def share(self) -> Tensor:
        """Estimated share of wrong labels, float64, [K]; NaN for a class without confident samples."""
        n = self.confident.double()
        return self.wrong / n.where(n > 0, torch.nan)

    @property
    def count(self) -> Tensor:
        """Estimated number of wrong labels, `share` times `sizes`, float64, [K]; NaN like `share`."""
        return self.share * self.sizes

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return bounds on `share`, by Wilson's score interval for each class alone.

        `(f + z^2/2n -+ z sqrt(f (1 - f)/n + z^2/4n^2)) / (1 + z^2/n)` with a fraction f of suspects among n confident
        samples (JASA 1927). It says what chance does in a small class, not how far the model errs.

        Args:
            level: Probability that an interval covers the share, in (0, 1).

        Returns:
            Lower and upper bounds, float64, [K] each; 0 and 1 without confident samples.

        Raises:
            ValueError: If `level` is out of range.

        Example:
            >>> none = torch.tensor([], dtype=torch.int64)
            >>> LabelErrors(torch.tensor([10]), torch.tensor([10]), none, none, none).interval()
            (tensor([0.], dtype=torch.float64), tensor([0.2775], dtype=torch.float64))
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must be in (0, 1), got {level}.")
        z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
        n, wrong = self.confident.double(), self.wrong.double()
        # Multiplied by n, so that a class without samples gets (0, 1).
        middle = wrong + z * z / 2
        half = z * (wrong * (n - wrong) / n.clamp(min=1) + z * z / 4).sqrt()
        low, high = (middle - half) / (n + z * z), (middle + half) / (n + z * z)
        return low.clamp(min=0).where(wrong > 0, 0.0), high.clamp(max=1).where(wrong < n, 1.0)

    @property
    def doubtful(self) -> Tensor:
        """Classes whose labels look worse than chance and than those of the others, the worst first, int64, [M].

        Those whose lower bound at 95 % is above .05 and above twice the median share of the classes. The median allows for a
        task in which all classes look alike; two classes that overlap each other alone are named, too.
        """
        low, _ = self.interval()
        found = low > (2 * self.share.nanmedian()).clamp(min=0.05)
        worst = self.share.nan_to_num(0).argsort(descending=True, stable=True)
        return worst[found[worst]]

    def about(self, label: int, names: Sequence[str] | None = None) -> str:
        """Return the estimate for one class in words; "" for a class without confident samples.

        Args:
            label: The class, in [0, K).
            names: Names of the classes; None gives their numbers.
        """
        if not self.confident[label]:
            return ""
        low, high = (round(100 * float(bound[label])) for bound in self.interval())
        share = round(100 * float(self.share[label]))
        text = f"about {share} % of its labels look wrong ({low} to {high} %)"
        of_class = self.likely[self.given == label]
        if not len(of_class):
            return text
        most = int(of_class.bincount().argmax())
        name = f"class {most}" if names is None else names[most]
        return f"{text}, most of these like {name}"
