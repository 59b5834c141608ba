"""The polar factor of each matrix by Newton-Schulz iteration, and the scales that Muon gives it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_number
from fimlens.linalg.bases import short_side_first
from fimlens.linalg.decompositions import unit_of
from fimlens.transforms.drop_in import compiled_once
from fimlens.transforms.norms import Matrix, matrix_norm
from fimlens.transforms.stacking import Stack, sides, stack_matrices, unstack

# (a, b, c) of the steps X <- a X + b X X^T X + c (X X^T)^2 X. The last of a list serves all further steps.
COEFFICIENTS = {
    "jordan": ((3.4445, -4.7750, 2.0315),),
    # Amsel et al., 2025, of X over 1.02 times its norm: here the first step divides by 1.02 as well.
    "polar-express": (
        (8.156554524902461 / 1.02, -22.48329292557795 / 1.02**3, 15.878769915207462 / 1.02**5),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}

# What multiplies the polar factor of an m x n matrix, as in x @ W.
SCALES: dict[str, Callable[[float, float], float]] = {
    "width": lambda m, n: max(1, n / m) ** 0.5,
    "fisher": lambda m, n: max(m, n) ** 0.5,
    "rms": lambda m, n: 0.2 * max(m, n) ** 0.5,
}

Coefficients = str | Sequence[Any] | ArrayLike  # a name, (a, b, c), or a list of these


def orthogonalize(
    steps: Int[ArrayLike, ""] = 5, coefficients: Coefficients = "jordan", eps: Float[ArrayLike, ""] = 1e-8
) -> optax.GradientTransformation:
    """Replace each matrix by its polar factor U V^T, approximately. Use it after any direction, as Muon does after momentum.

    Each step is X <- a X + b X X^T X + c (X X^T)^2 X, from X = G / ||G||. Its result does not depend on the scale of G. All
    matrices of one shape, transposed or not, form one stack, with the shorter side first, and run one program. State: nothing.

    Args:
        steps: number of steps. Default: 5, as in Jordan.
        coefficients: (a, b, c), or a list with (a, b, c) for each step, whose last serves all further ones; or the name of
            such a list. "jordan" (2024) brings singular values from 1e-3 to 1 between 0.47 and 1.2 in five steps, and
            "polar-express" (Amsel et al., 2025) between 0.85 and 1.14. Default: "jordan".
        eps: number added to the norm. Default: 1e-8, as in Optax.

    Raises:
        ValueError: the coefficients have no such name or are no such list, or another option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> direction = optax.chain(optax.ema(0.95), fl.orthogonalize(coefficients="polar-express"))
        >>> G = jnp.array([[3.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
        >>> updates, _ = direction.update(G, direction.init(G))
        >>> print(updates.round(1))  # singular values near 1 for 3 and 50
        [[1.  0.  0. ]
         [0.  1.1 0. ]]
    """
    require_number("orthogonalize", "steps", steps, 1, whole=True)
    require_number("orthogonalize", "eps", eps, 0)
    factors = compiled_once(_polar_factors, steps, _table(coefficients), eps)
    return with_short_side_first(optax.stateless(lambda updates, params: factors(updates)))


def _table(coefficients: Coefficients) -> Any:
    """The coefficients as one (a, b, c) for each step."""
    if isinstance(coefficients, str):
        table = COEFFICIENTS.get(coefficients, ())
    elif isinstance(coefficients, jax.Array):  # it may be traced
        table = jnp.atleast_2d(coefficients)
    else:
        table = tuple(map(tuple, np.atleast_2d(coefficients).tolist()))  # what has a hash is compiled once
    if np.shape(table)[1:] != (3,):
        raise ValueError(
            f"orthogonalize: coefficients are {', '.join(map(repr, COEFFICIENTS))}, (a, b, c) or a list of (a, b, c) for each "
            f"step; got {coefficients!r}."
        )
    return table


def _polar_factors(steps: Int[ArrayLike, ""], coefficients: Any, eps: Float[ArrayLike, ""], updates: PyTree) -> PyTree:
    def factor(G: Matrix) -> Matrix:
        unit = unit_of(G, (-2, -1))
        X = G / unit  # before the norm, whose squares would leave float32 for very large or small entries
        size = matrix_norm(X) + eps / unit
        X = X / jnp.where(size == 0, 1, size)
        table = jnp.asarray(coefficients, X.dtype)

        def iterate(i: Array, X: Matrix) -> Matrix:
            a, b, c = table[jnp.minimum(i, len(table) - 1)]
            A = X @ X.mT
            return a * X + (b * A + c * A @ A) @ X

        # A traced number of steps, as under optax.inject_hyperparams, cannot be unrolled.
        return jax.lax.fori_loop(0, steps, iterate, X, unroll=True if isinstance(steps, int) else None)

    with jax.default_matmul_precision("highest"):
        return unstack(jax.tree.map(partial(_each, factor), stack_matrices(updates)), updates)


def _each(f: Callable[[Array], Array], stack: Stack) -> Stack:
    """f of each matrix, as one batch; on the CPU one at a time, since the matrices of a large batch do not stay in its cache.

    On a mesh the batch lies along the devices, and a loop over it would gather it.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        return f(stack)
    return jax.lax.platform_dependent(stack, cpu=partial(jax.lax.map, f), default=f)


def with_short_side_first(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Give the stateless `tx` every matrix with its shorter side first, and transpose its updates back."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        del params
        given = jax.tree.map(short_side_first, updates)
        moved, _ = tx.update(given, tx.init(given))
        return jax.tree.map(short_side_first, moved, updates)

    return optax.stateless(update)


def scale_by_shape(scale: str = "width") -> optax.GradientTransformation:
    """Scale each polar factor by a function of its matrix's shape (m, n), as in x @ W.

    The norm of a polar factor depends on the shorter side alone; each scale restores a dependence on the other side.

    Args:
        scale: "width" is sqrt(max(1, n/m)), as in Jordan's and Optax's Muon. "fisher" is the root of the longer side, which
            makes the update Mat(F~^{-1/2} Vec(G)) ([G] Proposition 2). "rms" is 0.2 times that, which gives about the root mean
            square of Adam's updates (Liu et al., 2025).

    Raises:
        ValueError: the scale is none of these.
    """
    require_scale("scale_by_shape", scale)

    def scaled(U: Array) -> Array:
        m, n = (max(1, side) for side in sides(U.shape))
        return U * SCALES[scale](m, n)

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates))


def require_scale(caller: str, scale: str) -> None:
    """Refuse a scale that is not in SCALES.

    Raises:
        ValueError: the scale has no such name.
    """
    if scale not in SCALES:
        raise ValueError(f'{caller}: scale is "width", "fisher" or "rms"; got {scale!r}')


def over_longer_side() -> optax.GradientTransformation:
    """Divide each matrix by the root of its longer side: this undoes the factor of `whiten`."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda U: U / max(1, *sides(U.shape)) ** 0.5, updates))
