"""How alike two sets of features are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_fairprune.representation._products import Products, paired


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    r"""Returns the centred kernel alignment of two sets of features with a linear kernel.

    .. math:: \frac{\lVert Y^T X \rVert_F^2}{\lVert X^T X \rVert_F \lVert Y^T Y \rVert_F}

    of the centred features: Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019,
    arXiv 1905.00414), equation 4 with a linear kernel; from products of features, or of samples where these are fewer.
    Directions count by their variance, so that a few that vary most decide.

    Few samples make unrelated features seem alike: about D / (n + D) for noise of equal variance in D units. `debiased`
    replaces each of the three products by the unbiased estimate of Song et al., "Feature Selection via Dependence
    Maximization" (JMLR 2012), as Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?" (ICLR 2021, arXiv
    2010.15327) do: unrelated features then come out around 0, on either side of it.

    Args:
        x: Features [n, D1], or feature maps [n, C, ...] of which every position is a row; floating point.
        y: Features of the same samples, [n, D2] or alike.
        debiased: Whether to correct for few samples; takes at least 4 rows, and assumes that they are independent, which
            positions of one map are not.

    Returns:
        Float64 scalar in [0, 1], `debiased` in [-1, 1]: 1 for features that are equal up to a rotation, a
        factor and a shift. NaN if either are constant.

    Raises:
        ValueError: If `x` or `y` are no features, not finite, or not of the same rows, or there are fewer than 2.

    Example:
        Centred, x is (-1, 0, 1) and y is (-1, 1, 0): (1 * 1)^2 / (2 * 2).

        >>> linear_cka(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[3.0], [5.0], [4.0]]))
        tensor(0.2500, dtype=torch.float64)
    """
    x, y = paired(x, y, least=4 if debiased else 2)
    n, p, q = len(x), x.shape[1], y.shape[1]
    if n * (p + q) < p * p + p * q + q * q:
        first, second = x @ x.T, y @ y.T
        grams = ((first, first), (first, second), (second, second))
        products = torch.stack([(a * b).sum() for a, b in grams])
    else:
        products = torch.stack([(a.T @ b).square().sum() for a, b in ((x, x), (x, y), (y, y))])
    norms = torch.stack([x.square().sum(1), y.square().sum(1)])
    return _alignment(products, norms.sum(1), norms @ norms.T, n, debiased)


def svcca(x: Tensor, y: Tensor, *, variance: float = 0.99) -> Tensor:
    r"""Returns the mean canonical correlation of the directions in which features vary most.

    .. math:: \bar\rho = \frac{1}{\min(k_1, k_2)} \sum_i \sigma_i(U_x^T U_y)

    with U the first k left singular vectors of the centred features, as few as have `variance` of it: Raghu et al.,
    "SVCCA: Singular Vector Canonical Correlation Analysis for Deep Learning Dynamics and Interpretability"
    (NeurIPS 2017, arXiv 1706.05806), section 2. All these directions count alike, however little they vary; the published
    tool averages only the largest correlations that have 98 % of their sum. Of few samples, unrelated features seem alike:
    for noise it is about 0.85 times the square root of k / n.

    Args:
        x: As for `linear_cka`.
        y: As for `linear_cka`.
        variance: Fraction in (0, 1] of the variance of either that the directions that are kept must have.

    Returns:
        Float64 scalar in [0, 1]; NaN if either are constant.

    Raises:
        ValueError: As `linear_cka`; if `variance` is out of range, or there are no more rows than directions of both: then
            some correlations are 1, whatever the features.

    Example:
        Centred, x is (-1, 0, 1) and y is (-1, 1, 0), of correlation 1 / 2.

        >>> svcca(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[3.0], [5.0], [4.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    _check_variance(variance)
    x, y = paired(x, y, least=2)
    found = []
    for value in (x, y):
        u, s, _ = torch.linalg.svd(value, full_matrices=False)
        found.append(u[:, : _directions(s.square(), len(x), variance)])
    return _mean_correlation(found[0].T @ found[1], len(x))


def _cka_from(products: Products, *, debiased: bool = False) -> Tensor:
    if products.n < (least := 4 if debiased else 2):
        raise ValueError(f"there must be at least {least} rows, got {products.n}.")
    values = torch.stack([value.square().sum() for value in products.centred()])
    norms, norm_products = products.norms()
    return _alignment(values, norms, norm_products, products.n, debiased)


def _svcca_from(products: Products, *, variance: float = 0.99) -> Tensor:
    _check_variance(variance)
    xx, xy, yy = products.centred()
    whitening = []
    for value in (xx, yy):
        variances, vectors = torch.linalg.eigh(value)
        variances, vectors = variances.flip(0), vectors.flip(1)
        kept = _directions(variances, products.n, variance)
        whitening.append(vectors[:, :kept] / variances[:kept].sqrt())
    return _mean_correlation(whitening[0].T @ xy @ whitening[1], products.n)


# Measures that need no rows at once, with the function that takes the same keywords.
FROM_PRODUCTS: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    linear_cka: _cka_from,
    svcca: _svcca_from,
}


def _alignment(
    products: Tensor, norms: Tensor, norm_products: Tensor, n: int, debiased: bool
) -> Tensor:
    """Returns CKA of <K, K>, <K, L> and <L, L>; norms are the diagonals of the centred K and L."""
    if debiased:
        # Centred rows sum to 0, which leaves two of the four terms of Song et al.
        first, second = torch.triu_indices(2, 2)
        shared, outer = norm_products[first, second], norms[first] * norms[second]
        products = products - n / (n - 2) * shared + outer / ((n - 1) * (n - 2))
    xx, xy, yy = products
    # Clamping takes off rounding errors and leaves NaN.
    value: Tensor = xy / (xx.sqrt() * yy.sqrt())
    return value.clamp(-1.0 if debiased else 0.0, 1.0)


def _check_variance(variance: float) -> None:
    if not 0 < variance <= 1:
        raise ValueError(f"`variance` must be in (0, 1], got {variance}.")


def _directions(variances: Tensor, n: int, variance: float) -> int:
    """Returns how many of the sorted variances add up to a fraction of their sum; none of constant features."""
    # Above rounding errors.
    real = variances > variances[0] * max(n, len(variances)) * torch.finfo(variances.dtype).eps
    variances = variances * real
    shares = variances.cumsum(0) / variances.sum()
    short = (shares < variance - 1e-12) & real
    return min(int(short.sum()) + 1, int(real.sum()))


def _mean_correlation(products: Tensor, n: int) -> Tensor:
    first, second = products.shape
    if first == 0 or second == 0:
        return products.new_tensor(torch.nan)
    if n <= first + second:
        raise ValueError(
            f"`x` and `y` must have more rows than the {first} + {second} directions that are kept of them, "
            f"got {n}: give more samples, or keep less `variance`."
        )
    correlations: Tensor = torch.linalg.svdvals(products)
    return correlations.clamp(max=1.0).mean()
