"""Clusters inside each class, of features and of how well samples are learnt."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_fairprune.geometry.clusters import lloyd, means
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.scores import el2n


def discover(
    dynamics: Dynamics,
    features: Tensor,
    target: Tensor | None = None,
    *,
    most: int = 2,
    min_size: int = 20,
    separation: float = 0.65,
    gap: float = 0.2,
) -> Tensor:
    r"""Return groups: the classes, each split where a part of it lies apart and is learnt worse.

    A sample is its features, standardised inside its class and divided by the square root of their number, and its mean
    EL2N over the recorded epochs, standardised likewise: what it looks like counts as much as how hard it is. These are
    clustered by k-means, for each class and each k from 2 to `most`, from a start without chance: the sample nearest to
    the mean, then always the one farthest from all centres. Clusters of fewer than `min_size` samples are outliers: they
    are set aside, the others clustered again, and join the nearest group in the end. A split counts if

    * its clusters lie apart: the mean over clusters of the mean simplified silhouette :math:`1 - a_i / b_i`, with a the
      distance of a sample to its own centroid and b to the nearest other one, is at least `separation`,
    * each differs in correctness, the mean of `correct` over samples and epochs, from the next better one by at least
      `gap`.

    Of the splits that count, the one that lies most apart is taken; without one the class is a group. In a class whose
    samples range from easy to hard without a break, 2 clusters have a silhouette of .4 to .6.

    The idea to find hidden groups as clusters inside a class and to train on them as if they were labelled is that of
    Sohoni et al., "No Subclass Left Behind" (NeurIPS 2020, arXiv 2011.12945).

    Args:
        dynamics: Record of N samples with the signals `el2n` and `correct`, of the first epochs of training: those in
            which a shortcut is learnt and what contradicts it is not.
        features: Finite floats [N, D], such as the input of the last linear layer after these epochs.
        target: Class of each sample, int64 [N], -1 for a sample of no class; None takes that of the record.
        most: Largest number of groups in a class, at least 1.
        min_size: Fewest samples in a group, at least 2.
        separation: Smallest silhouette of a split, in [0, 1].
        gap: Smallest difference in correctness, in [0, 1].

    Returns:
        Groups int64 [N], numbered over the classes that occur without a gap, inside a class from the best learnt to the
        worst; -1 where the class is -1.

    Raises:
        ValueError: If shapes differ, features are not finite, a signal is missing or an option is out of range.

    Example:
        Two samples of class 0 are far from the others and never right.

        >>> correct = torch.tensor([[True, True, True, False, False, True, True]])
        >>> seen = Dynamics(
        ...     torch.tensor([0, 0, 0, 0, 0, 1, 1]),
        ...     {"correct": correct, "el2n": torch.where(correct, 0.1, 1.2)},
        ... )
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [0.0], [0.2]])
        >>> discover(seen, features, min_size=2)
        tensor([0, 0, 0, 1, 1, 2, 2])
    """
    check_options(most, min_size, separation, gap)
    target = dynamics.target if target is None else target
    features = _checked(features, target, dynamics.num_samples)
    right, hard = _correctness(dynamics), el2n(dynamics).double()
    group, count = torch.full_like(target, -1), 0
    for members in _members(target):
        known = members[~hard[members].isnan()]
        split = _best(features[known], hard[known], right[known], most, min_size, separation, gap)
        group[known] = count + split
        unseen = members[hard[members].isnan()]
        if len(known):
            given = features[known], group[known]
            group[unseen] = _nearest(*given, features[unseen])
        else:
            group[unseen] = count
        count += int(split.max()) + 1 if len(known) else 1
    return group


def assign(
    features: Tensor, target: Tensor, group: Tensor, others: Tensor, others_target: Tensor
) -> Tensor:
    """Return the groups of other samples: in its class, the group whose mean features are nearest.

    Distances are between features that are standardised inside each class, as `discover` does.

    Args:
        features: Finite floats [N, D] of the samples whose groups are known.
        target: Their classes, int64 [N].
        group: Their groups, int64 [N], from `discover`; -1 is left out.
        others: Features [M, D] of the other samples, of the same network.
        others_target: Their classes, int64 [M].

    Returns:
        Groups int64 [M]; the lowest of equally near ones, -1 for a class without a group.

    Raises:
        ValueError: If shapes differ or features are not finite.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
        >>> known = features, torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
        >>> assign(*known, torch.tensor([[2.0], [6.0], [6.0]]), torch.tensor([0, 0, 5]))
        tensor([ 0,  1, -1])
    """
    features = _checked(features, target, len(group))
    others = _checked(others, others_target, len(others_target))
    if others.shape[1] != features.shape[1]:
        raise ValueError(
            f"`others` must have the {features.shape[1]} features of the known samples, got {others.shape[1]}."
        )
    found = torch.full_like(others_target, -1)
    for members in _members(target.masked_fill(group < 0, -1)):
        asked = (others_target == target[members[0]]).nonzero().squeeze(1)
        found[asked] = _nearest(features[members], group[members], others[asked])
    return found


def check_options(most: int, min_size: int, separation: float, gap: float) -> None:
    """Raise a ValueError if an option of `discover` is out of range."""
    for name, value, least in (("most", most, 1), ("min_size", min_size, 2)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    for name, share in (("separation", separation), ("gap", gap)):
        if not 0 <= share <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {share}.")


def _checked(features: Tensor, target: Tensor, count: int) -> Tensor:
    if target.dtype != torch.int64 or target.shape != (count,):
        raise ValueError(
            f"`target` must be int64 [{count}], one class for each sample, got {target.dtype} {list(target.shape)}."
        )
    if features.ndim != 2 or len(features) != count or not features.is_floating_point():
        raise ValueError(
            f"`features` must be floats [{count}, D], got {features.dtype} {list(features.shape)}."
        )
    if not bool(features.isfinite().all()):
        raise ValueError("`features` must be finite, got NaN or infinity: the training diverged.")
    return features.detach()


def _correctness(dynamics: Dynamics) -> Tensor:
    """Return the fraction of its epochs in which each sample was right, float64 [N]; NaN if it was never observed."""
    right = dynamics.signal("correct") & dynamics.observed
    return right.double().sum(0) / dynamics.observed.double().sum(0)


def _members(target: Tensor) -> list[Tensor]:
    """Return the samples of each class that occurs, ascending."""
    order = target.argsort(stable=True)
    classes: tuple[Tensor, ...] = torch.split(order, torch.bincount(target + 1).tolist())
    return [members for members in classes[1:] if len(members)]


def _standardising(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and factor, float64 [D], so that the mean square of a standardised sample is 1."""
    features = features.double()
    mean = features.mean(0)
    varies = features.amax(0) > features.amin(0)
    deviation = (features - mean).square().mean(0).sqrt()
    return mean, torch.where(varies, 1 / deviation, 0.0) / varies.sum().clamp(min=1).sqrt()


def _nearest(features: Tensor, group: Tensor, others: Tensor) -> Tensor:
    """Return for other samples of the class of some the group with the nearest mean."""
    mean, factor = _standardising(features)
    ids = torch.bincount(group).nonzero().squeeze(1)
    own = torch.searchsorted(ids, group)
    centroid = means((features.double() - mean) * factor, own, len(ids))[0]
    return ids[torch.cdist((others.double() - mean) * factor, centroid).argmin(1)]


def _best(
    features: Tensor,
    hard: Tensor,
    right: Tensor,
    most: int,
    min_size: int,
    separation: float,
    gap: float,
) -> Tensor:
    """Return the parts of a class, int64 [n], 0 the best learnt; all 0 if no split counts."""
    best, found = separation, torch.zeros(len(hard), dtype=torch.int64, device=hard.device)
    if most < 2 or len(hard) < 2 * min_size:
        return found
    columns = []
    for column in (features, hard[:, None]):
        mean, factor = _standardising(column)
        columns.append((column.double() - mean) * factor)
    samples = torch.cat(columns, 1)
    for k in range(2, most + 1):
        part, apart = _clusters(samples, k, min_size)
        if part is None or apart < best:
            continue
        learnt, order = (
            means(right[:, None], part, k)[0].squeeze(1).sort(descending=True, stable=True)
        )
        if bool((learnt.diff() <= -gap).all()):
            best, found = apart, order.argsort()[part]
    return found


def _clusters(samples: Tensor, k: int, min_size: int) -> tuple[Tensor | None, float]:
    """Return k clusters of at least `min_size` samples, int64 [n], and their silhouette; None if there are none."""
    inside = torch.arange(len(samples), device=samples.device)
    while len(inside) >= k * min_size:
        some = samples[inside]
        centroid, cluster, _ = lloyd(some, some[_farthest_first(some, k)])
        size = torch.bincount(cluster, minlength=k)
        if bool((size >= min_size).all()):
            distance = torch.cdist(samples, centroid)
            near = distance.topk(2, largest=False).values
            part = distance.argmin(1)
            silhouette = 1 - near[:, 0] / near[:, 1].clamp(min=torch.finfo(near.dtype).tiny)
            return part, float(means(silhouette[:, None], part, k)[0].mean())
        inside = inside[(size >= min_size)[cluster]]
    return None, 0.0


def _farthest_first(samples: Tensor, k: int) -> list[int]:
    """Return the sample nearest to the mean, then always the one farthest from those before; the first of equals."""
    chosen = [int((samples - samples.mean(0)).square().sum(1).argmin())]
    distance = torch.full((len(samples),), torch.inf, dtype=samples.dtype, device=samples.device)
    while len(chosen) < k:
        distance = distance.minimum((samples - samples[chosen[-1]]).square().sum(1))
        chosen.append(int(distance.argmax()))
    return chosen
