"""What an optimizer's step takes in products and decompositions, from shapes alone.

Of an m x n matrix, m <= n, at rank r; a multiplication and an addition are two. Passes over single elements are left out: some
twenty operations a weight, and bound by the memory's bandwidth and not by arithmetic. Decompositions by Golub and Van Loan,
Matrix Computations (4th ed.), sections 5.2, 8.3 and 8.6; on accelerators they run far from the peak that products reach.
"""

import inspect
from collections.abc import Callable

import jax
from jaxtyping import PyTree

import fimlens
from fimlens.transforms.stacking import sides

Count = Callable[[int, int, int], float]


def _eigh(m: int) -> float:
    return 9.0 * m**3


def _qr(m: int, r: int) -> float:
    return 4 * (m * r**2 - r**3 / 3)


def _left_singular(m: int, n: int) -> float:
    return 6.0 * m**2 * n + 20.0 * m**3


# At every step: gradients into a basis, covariances, updates out of it; Newton-Schulz; sweeps. Others take no products.
PRODUCTS: dict[str, Count] = {
    "racs": lambda m, n, r: 5 * 4 * m * n,
    "apollo-mini": lambda m, n, r: 2 * m * n,
    "muon": lambda m, n, r: 5 * (4 * m**2 * n + 2 * m**3),
    "swan": lambda m, n, r: 4 * m**2 * n + _left_singular(m, n),
    "shampoo": lambda m, n, r: 6 * m * n * (m + n),
    "osoap": lambda m, n, r: 6 * m**2 * n,
    "soap": lambda m, n, r: 6 * m * n * (m + n),
    "adadiag": lambda m, n, r: 4 * m**2 * n,
    "adadiag_pp": lambda m, n, r: 4 * m * n * (m + n),
    "adafacdiag": lambda m, n, r: 4 * m**2 * n,
    "alice": lambda m, n, r: 4 * m * n * r + 2 * n * r**2,
    "alice0": lambda m, n, r: 4 * m * n * r,
    "galore": lambda m, n, r: 4 * m * n * r,
    "fira": lambda m, n, r: 4 * m * n * r,
    "apollo": lambda m, n, r: 2 * m * n * r,
    "low_rank_soap": lambda m, n, r: 8 * m * n * r + 4 * (m + n) * r**2,
}


# At a refresh, besides: once in an optimizer's default update_interval.
REFRESH: dict[str, Count] = {
    "shampoo": lambda m, n, r: _eigh(m) + _eigh(n),
    "osoap": lambda m, n, r: _eigh(m),
    "soap": lambda m, n, r: 2 * (m**3 + n**3) + _qr(m, m) + _qr(n, n),
    "adadiag": lambda m, n, r: _left_singular(m, n),
    "adadiag_pp": lambda m, n, r: _left_singular(m, n) + _qr(n, n),
    "adafacdiag": lambda m, n, r: _left_singular(m, n),
    "alice": lambda m, n, r: 8 * m * n * r + _qr(m, r) + _eigh(r),
    "alice0": lambda m, n, r: 8 * m * n * r + _qr(m, r) + _eigh(r),
    "galore": lambda m, n, r: _left_singular(m, n),
    "fira": lambda m, n, r: _left_singular(m, n),
    "apollo": lambda m, n, r: _left_singular(m, n),
    "low_rank_soap": lambda m, n, r: 16 * m * n * r + _qr(m, r) + _qr(n, r) + 2 * _eigh(r),
}


def step_flops(name: str, matrices: PyTree, rank: int) -> float:
    """FLOPs of a step over a tree of matrices, refreshes shared out among the steps between them.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from fimlens.costs.flops import step_flops
        >>> step_flops("galore", jax.ShapeDtypeStruct((8, 16), jnp.float32), 2) > step_flops("adam", {}, 2)
        True
    """
    total = 0.0
    for leaf in jax.tree.leaves(matrices):
        m, n = sorted(sides(leaf.shape))
        r = min(rank, m)
        if name in PRODUCTS:
            total += PRODUCTS[name](m, n, r)
        if name in REFRESH:
            total += REFRESH[name](m, n, r) / inspect.signature(getattr(fimlens, name)).parameters["update_interval"].default
    return total
