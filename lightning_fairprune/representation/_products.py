"""Cross-products of paired features: all that CKA and SVCCA need to know of any number of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(features: Tensor, channels: int = 1) -> Tensor:
    """Returns features with every position of a feature map as a row, [n * positions, C]."""
    return features.movedim(channels, -1).flatten(0, -2)


def paired(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Returns two sets of features as centred float64 rows, [n, D1] and [n, D2], on the device of the first."""
    found = []
    for name, value in (("x", x), ("y", y)):
        if value.ndim < 2 or not value.is_floating_point():
            raise ValueError(
                f"`{name}` must be floating point features [n, D] or [n, C, ...], got {value.dtype} of "
                f"shape {list(value.shape)}."
            )
        if not value.shape[1]:
            raise ValueError(
                f"`{name}` must have at least one unit, got shape {list(value.shape)}."
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
        found.append(rows_of(value))
    first, second = found
    if len(first) != len(second):
        raise ValueError(
            "`x` and `y` must have the same rows, one per sample and position, got "
            f"{len(first)} and {len(second)}."
        )
    if len(first) < least:
        raise ValueError(f"`x` and `y` must have at least {least} rows, got {len(first)}.")
    return _centred(first), _centred(second.to(first.device))


def _centred(rows: Tensor) -> Tensor:
    # Relative to a row first: features that are constant become exactly 0, not a rounding error.
    rows = rows.double() - rows[:1].double()
    return rows - rows.mean(0)


class Products:
    """Sums over rows that come batch by batch, equal to those of all rows at once, in at most (D1 + D2)^2 numbers.

    The first of the rows `x`, [m, D1], is the origin, so that a mean far from 0 costs no digits; `y`, [m, D2], are the
    same rows of the other features.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._origins = x[0].double(), y[0].double()
        both = [len(x[0]), len(y[0])]
        new = x.new_zeros
        self.n = 0
        self._x, self._y = (new(size, dtype=torch.float64) for size in both)
        self._xx, self._yy = (new(size, size, dtype=torch.float64) for size in both)
        self._xy = new(both, dtype=torch.float64)
        # Of |x|^2 and |y|^2 of every row: their sums, products with each other, and with the rows.
        self._norms = new(2, dtype=torch.float64)
        self._norm_products = new(2, 2, dtype=torch.float64)
        self._x_norms, self._y_norms = (new(size, 2, dtype=torch.float64) for size in both)
        self.add(x, y)

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double() - self._origins[0], y.double() - self._origins[1]
        norms = torch.stack([(x * x).sum(1), (y * y).sum(1)], 1)
        self.n += len(x)
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)
        self._yy.addmm_(y.T, y)
        self._norms += norms.sum(0)
        self._norm_products += norms.T @ norms
        self._x_norms += x.T @ norms
        self._y_norms += y.T @ norms

    def check_finite(self) -> None:
        if not bool(self._norms.isfinite().all()):
            raise ValueError("its features must be finite, got NaN or infinity.")

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns X'X, X'Y and Y'Y of the centred features, [D1, D1], [D1, D2] and [D2, D2]."""
        x, y, n = self._x, self._y, self.n
        return (
            self._xx - torch.outer(x, x) / n,
            self._xy - torch.outer(x, y) / n,
            self._yy - torch.outer(y, y) / n,
        )

    def norms(self) -> tuple[Tensor, Tensor]:
        r"""Returns sums over the rows of the squared norms of the centred features, and of their products.

        With :math:`a_i = |x_i|^2` relative to the origin and m the mean, that of a centred row is
        :math:`k_i = a_i - 2 m \cdot x_i + m \cdot m`: sums of k and l, [2], and of kk, kl, lk and ll, [2, 2].
        """
        n = self.n
        means = (self._x / n, self._y / n)
        squares = torch.stack([mean @ mean for mean in means])
        products = ((self._xx, self._xy), (self._xy.T, self._yy))
        sides = (self._x_norms, self._y_norms)
        found = torch.empty_like(self._norm_products)
        for i in (0, 1):
            for j in (0, 1):
                found[i, j] = (
                    self._norm_products[i, j]
                    - 2 * (means[i] @ sides[i][:, j] + means[j] @ sides[j][:, i])
                    + squares[i] * self._norms[j]
                    + squares[j] * self._norms[i]
                    + 4 * (means[i] @ products[i][j] @ means[j])
                    - 3 * n * squares[i] * squares[j]
                )
        return self._norms - n * squares, found
