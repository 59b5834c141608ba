"""A basis that turns with the matrix it is given and with what a structure makes of it: ARO's tracker, as a transform."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_number, require_real
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import short_side_first, tree_above_rounding
from fimlens.linalg.decompositions import determined_basis, unit_of
from fimlens.solver.fit import fit
from fimlens.structure import Structure, require_structure
from fimlens.transforms.drop_in import PLACEHOLDER, drop_in
from fimlens.transforms.matrix_step import refresh_if_due
from fimlens.transforms.stacking import clip_for_squaring, matrix_shapes, stack_matrices, unstack
from fimlens.transforms.state import state_layout, state_of_others

Matrix = Float[Array, "m n"]
Basis = Float[Array, "m m"]


class TurningState(NamedTuple):
    """The steps made, and the bases of each stack of matrices.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fl.scale_in_turning_basis(fl.Rows()).init({"w": jnp.ones((4, 3))}).bases["3 x 4"].shape
        (1, 3, 3)
    """

    count: Int[Array, ""]
    bases: dict[str, Float[Array, "k m m"]]


def scale_in_turning_basis(
    inner: Structure, *, eps: Float[ArrayLike, ""] = 1e-8, update_interval: Int[ArrayLike, ""] = 1
) -> optax.GradientTransformation:
    """Scale each matrix M in a basis R that turns to raise the gain <update, M>. Use it on a momentum, as `fl.aro` does.

    H = {R inner R^T}, of M alone: R <- QR( M f(R^T M)^T ), and the update is R f(R^T M). Here f(X) scales X by the inner
    structure's member nearest to X alone. M has its shorter side first: m <= n. State: m^2.

    With `fl.Rows()` as the inner structure f(X) = D X with D diagonal, and R takes a step of subspace iteration on M M^T. For
    one M the update converges to sqrt(n) times the polar factor.

    R starts at the identity, and vectors enter QR by their part of the gain. Directions that M does not have are fixed vectors,
    and coordinates that are only rounding get no update. But f brings all others to full size. Where the singular values of M
    span a factor of c, the least of them are known to c eps, and runs that sum in another order differ by that.

    Args:
        inner: the structure in the rotated coordinates, such as fl.RowColumn(5, divergence=fl.LogDet()) for SinkGD's sweeps,
            fl.Diagonal() for the sign, or fl.Rows().
        eps: added to the root of each eigenvalue.
        update_interval: steps between updates of R, the first at the first step.

    Raises:
        TypeError: `inner` is no structure, or (at init) a parameter is not of real floating point.
        ValueError: `inner` has bases, an option is out of its range, or (at a step) the state was made for other matrices.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, M = fl.scale_in_turning_basis(fl.Rows()), jnp.array([[3.0, 0.0], [1.0, 2.0]])
        >>> state = tx.init(M)
        >>> for _ in range(30):
        ...     updates, state = tx.update(M, state)
        >>> print(jnp.linalg.svd(updates)[1].round(3))  # the polar factor, times the root of n
        [1.414 1.414]
    """
    require_structure("scale_in_turning_basis", inner)
    if state_layout(inner, "statistics").stacked:
        raise ValueError(f"scale_in_turning_basis: {inner} has bases of its own. Give one without, such as fl.Rows().")
    require_number("scale_in_turning_basis", "eps", eps, 0)
    require_number("scale_in_turning_basis", "update_interval", update_interval, 1, whole=True)
    return drop_in(_init, _update, inner, eps, update_interval)


def _init(inner: Structure, eps: Float[ArrayLike, ""], interval: Int[ArrayLike, ""], params: PyTree) -> TurningState:
    del inner, eps, interval
    require_real("scale_in_turning_basis", params)
    if isinstance(params, PLACEHOLDER):
        return TurningState(jnp.zeros([], jnp.int32), jnp.zeros([]))  # no basis has the shape of a parameter
    stacks = matrix_shapes(jax.eval_shape(partial(jax.tree.map, short_side_first), params))
    bases = jax.tree.map(lambda M: jnp.tile(jnp.eye(M.shape[1], dtype=M.dtype), (len(M), 1, 1)), stacks)
    return TurningState(jnp.zeros([], jnp.int32), bases)


def _update(
    inner: Structure, eps: Float[ArrayLike, ""], interval: Int[ArrayLike, ""], updates: PyTree, state: TurningState
) -> tuple[PyTree, TurningState]:
    given = jax.tree.map(short_side_first, updates)
    with jax.default_matmul_precision("highest"):
        stacks = jax.tree.map(clip_for_squaring, stack_matrices(given))
        if jax.tree.map(lambda M: (len(M), M.shape[1]), stacks) != jax.tree.map(lambda R: R.shape[:2], state.bases):
            raise state_of_others("scale_in_turning_basis", stacks)
        turn, move = (jax.vmap(partial(step, inner, eps)) for step in (_turned, _moved))
        bases = refresh_if_due(
            state.count, interval, state.bases, lambda first: {name: turn(R, stacks[name]) for name, R in state.bases.items()}
        )
        moved = {name: move(R, stacks[name]) for name, R in bases.items()}
    scaled = jax.tree.map(short_side_first, unstack(moved, given), updates)
    return scaled, TurningState(optax.safe_increment(state.count), bases)


def _turned(inner: Structure, eps: Float[ArrayLike, ""], R: Basis, M: Matrix) -> Basis:
    """QR( M f(R^T M)^T )."""
    X, M = tree_above_rounding(R.T @ M), M / unit_of(M)  # eps is absolute in f, and the size of the product means nothing
    Y = _scaled(inner, eps, X)
    return determined_basis((M @ Y.T)[:, jnp.argsort(-jnp.sum(X / unit_of(X) * Y, axis=1))])


def _moved(inner: Structure, eps: Float[ArrayLike, ""], R: Basis, M: Matrix) -> Matrix:
    """R f(R^T M)."""
    return R @ _scaled(inner, eps, tree_above_rounding(R.T @ M))


def _scaled(inner: Structure, eps: Float[ArrayLike, ""], X: Matrix) -> Matrix:
    """f(X): what the inner structure makes of X alone."""
    member = fit(inner, Fisher.of_one(X))
    return inner.from_eigenbasis(member.frame, inner.precondition(member, inner.to_eigenbasis(member.frame, X), eps))
