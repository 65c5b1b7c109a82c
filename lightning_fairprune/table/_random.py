"""Random keys that are the same in SQL and torch: a polynomial of (seed, id) modulo a prime.

It uses only CAST, +, * and MOD of 64-bit integers below 2**63: databases raise an error where an
integer overflows, and differ in the names of shifts, exclusive or and hash functions.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# The largest primes below 2**31 that are 2 modulo 3: x -> x**3 is a permutation of their residues,
# so that rounds of adding a constant and cubing are bijective and mix quickly.
PRIME, OTHER = 2147483579, 2147483549
ROUNDS = 5
# x + constant stays below 2**31.5, and its square and its product with a residue below 2**63.
LARGEST = 800_000_000


def random_key(index: Tensor, seed: int = 0) -> Tensor:
    r"""Return the key by which ``keep="random"`` orders the rows of a table, lowest first.

    With :math:`p = 2^{31} - 69` and constants :math:`c_i` derived from the seed,

    .. math:: x_1 = (i + c_1)^3, \quad x_2 = (x_1 + i + c_2)^3, \quad x_{j+1} = (x_j + c_{j+1})^3
        \pmod p,

    and :math:`x_5` is the key. The second round takes i modulo another prime, so that ids that are
    equal modulo p get different keys.

    Args:
        index: int64 [N], the ids of the rows, any integers.
        seed: seed of the order, any int.

    Returns:
        int64 [N] in [0, 2**31 - 69) on the CPU.

    Raises:
        TypeError: ids that are not integer.

    Example:
        >>> random_key(torch.tensor([0, 1, 2]), seed=0)
        tensor([1629149368, 1280943031, 1532746286])

        `select_table` keeps the rows of lowest key:

        >>> from lightning_fairprune import select
        >>> target = torch.tensor([0, 0, 0])
        >>> select(target, [1], score=random_key(torch.arange(3)), keep="easy").indices
        tensor([1])
    """
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"`index` must hold integers, got {index.dtype}.")
    index = index.detach().cpu().long()
    other = index.remainder(OTHER)
    key = index.remainder(PRIME)
    for i, constant in enumerate(_constants(seed)):
        if i == 1:
            key = (key + other).remainder_(PRIME)
        key = key + constant
        key = (key * key).remainder_(PRIME).mul_(key).remainder_(PRIME)
    return key


def random_key_sql(columns: str, source: str, id: str, seed: int) -> str:
    """Return a SELECT of columns of ``source`` and of `random_key` of ``id`` as ``random``."""
    number = f"CAST({id} AS BIGINT)"

    def residue(prime: int) -> str:  # MOD has the sign of its first argument
        return f"MOD(MOD({number}, {prime}) + {prime}, {prime})"

    def cube(i: int) -> str:
        return f"MOD(MOD(x{i} * x{i}, {PRIME}) * x{i}, {PRIME})"

    first, *rest = _constants(seed)
    start = f"{residue(PRIME)} + {first} AS x0, {residue(OTHER)} AS other"
    query = f"SELECT {columns}, {start}\n  FROM {source}"
    for i, constant in enumerate(rest):
        power = cube(i) if i else f"MOD({cube(i)} + other, {PRIME})"
        query = (
            f"SELECT {columns}, {power} + {constant} AS x{i + 1}, other FROM (\n{query}) AS r{i}"
        )
    last = len(rest)
    return f"SELECT {columns}, {cube(last)} AS random FROM (\n{query}) AS r{last}"


def _constants(seed: int) -> list[int]:
    digest = hashlib.sha512(str(int(seed)).encode()).digest()
    words = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]
    return [word % LARGEST for word in words]
