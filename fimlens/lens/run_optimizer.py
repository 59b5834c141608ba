"""Run the optimizer of a structure on the gradients of a Fisher, and see whether it arrives at the same F~."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from fimlens.fisher.fisher import Fisher, unvec, vec
from fimlens.fisher.sample_form import SampleFisher
from fimlens.linalg.decompositions import eigh
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.structure import Frame, Params, Structure
from fimlens.transforms.state import members, start_from
from fimlens.transforms.structure_transform import scale_by_structure

DENSE_UP_TO = 1024  # entries of the largest matrix whose F~ is written out


class Deviations(NamedTuple):
    """How far an optimizer ends from F~ and from the update that F~ makes; None if that was not measured.

    Attributes:
        state: distance of the F~ in its state from the fit, relative to the fit, if it is given the fit's basis.
        update: distance of its last update from F~^{-1/2} Vec(G) computed from the dense F~, relative to the latter.
        free: as `state`, if it finds its own basis and forgets as optimizers do.
    """

    state: float | None = None
    update: float | None = None
    free: float | None = None


def optimizer_deviations(structure: Structure, fisher: Fisher, fitted: Params) -> Deviations:
    """Compare `scale_by_structure`, fed the samples of a Fisher one by one, with the fit to that Fisher.

    Nothing is measured if the Fisher has no samples, or if its matrix is too large to write F~ out.
    """
    if not isinstance(fisher, SampleFisher) or np.prod(fisher.shape) > DENSE_UP_TO:
        return Deviations()
    return Deviations(*map(float, _deviations(structure, fisher.samples, fitted)))


@partial(jax.jit, static_argnums=0)
def _deviations(structure: Structure, G: Float[Array, "N m n"], fitted: Params) -> Deviations:
    """Return the deviations of a matrix that is small enough for F~ to be written out."""
    F = structure.dense(fitted)
    # eps is as large as the largest root: eigh knows small eigenvalues, so their roots, to few digits, which would show in an
    # update that divides by them alone.
    values, Q = eigh(F)
    eps = jnp.sqrt(values.max())
    nonzero = values > len(F) * jnp.finfo(F.dtype).eps * values.max()  # the root of rounding is not of rounding size
    scales = inverse_root(eps)(jnp.where(nonzero, values, 0))
    if any(c is None for c in jax.tree.leaves(structure.eigenvalues(fitted), is_leaf=lambda x: x is None)):
        scales = jnp.where(nonzero, scales, 0)  # here eigenvalue zero is outside the family's range, where no update goes
    expected = unvec(Q @ (scales * (Q.T @ vec(G[-1]))), fitted.frame.shape)
    member, update = _run(structure, G, eps, fitted.frame)
    free, _ = _run(structure, G, eps, None)
    size = _or_one(jnp.linalg.norm(F))
    return Deviations(
        state=jnp.linalg.norm(structure.dense(member) - F) / size,
        update=jnp.abs(update - expected).max() / _or_one(jnp.abs(expected).max()),
        free=jnp.linalg.norm(structure.dense(free) - F) / size,
    )


def _or_one(size: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(size > 0, size, 1)


@partial(jax.jit, static_argnums=0)
def _run(
    structure: Structure, G: Float[Array, "N m n"], eps: Float[ArrayLike, ""], frame: Frame | None
) -> tuple[Params, Float[Array, "m n"]]:
    """Return the member in the state, and the last update, after the transform has seen the gradients in order.

    If a frame is given, the transform keeps it, weighs all gradients alike and has no momentum: it then averages what `fit`
    averages. Otherwise it runs as an optimizer does.
    """
    if frame is None:
        tx = scale_by_structure(structure, eps=eps, update_interval=10)
        state = tx.init(G[0])
    else:
        tx = scale_by_structure(structure, b1=None, b2=lambda t: 1 - 1 / t, eps=eps, update_interval=None)  # a plain mean
        state = start_from(tx.init(G[0]), frame)

    def step(carry: tuple[Any, Array], g: Array) -> tuple[tuple[Any, Array], None]:
        update, state = tx.update(g, carry[0])
        return (state, update), None

    state, update = jax.lax.scan(step, (state, jnp.zeros_like(G[0])), G)[0]
    return members(structure, state, G[0]), update
