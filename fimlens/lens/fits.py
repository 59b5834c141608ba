"""Fits to folds and the second moments of samples in their bases: computed once for all structures that have those bases."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fimlens.fisher.fisher import Fisher
from fimlens.lens.held_out import Moments, moments_along
from fimlens.lens.split import Split
from fimlens.solver.fit import fit
from fimlens.structure import Frame, Params, Structure
from fimlens.structures.combinator import Combinator
from fimlens.structures.rotated import Rotated
from fimlens.structures.spectra import Diagonal, Spectrum


def widest(structure: Structure, shape: tuple[int, int]) -> Structure:
    """Return the family of all eigenvalues in the bases of a structure; the structure itself where its bases are its own.

    What a structure asks of F in given bases, it asks of the second moments there, which are the fit of the widest family.

    Args:
        structure: a structure, such as Shampoo's; then the widest family is SOAP's.
        shape: that of the matrix.
    """
    if isinstance(structure, Spectrum):
        return Diagonal()
    if isinstance(structure, Rotated) and isinstance(inner := structure.inner, Spectrum):
        one, frame = jax.ShapeDtypeStruct(shape, jnp.float32), inner.frame(*shape)
        if jax.eval_shape(lambda G: inner.side_weights(Fisher.of_one(G), Params(frame, None)), one) is None:
            return replace(structure, inner=Diagonal())
    return structure


def narrowed(structure: Structure, wide: Params) -> Params:
    """Return the fit of a structure, given that of its widest family."""
    seen = Fisher.of_one(jnp.sqrt(wide.coords))  # a Fisher of the same second moments
    if not isinstance(structure, Rotated):
        return fit(structure, seen)
    inner = fit(structure.inner, seen)
    return Params(Frame(wide.frame.bases._replace(inner=inner.frame), wide.frame.shape), inner.coords)


class WideFits:
    """The fits of one family to folds, and the moments of samples in their bases. Each is computed once, for whatever asks."""

    def __init__(self, structure: Structure, split: Split, key: Array) -> None:
        self.structure, self.split, self.key = structure, split, key
        self._fits: dict[tuple[int, ...], Params] = {}
        self._moments: dict[tuple[tuple[int, ...], ...], Moments] = {}

    def without(self, *folds: int) -> Params:
        """Return the fit to all samples but those of these folds."""
        if folds not in self._fits:
            # Combinators alone ask for covariances, which are two thirds of the work.
            fisher = self.split.without(*folds, covariances=isinstance(self.structure, Combinator))
            self._fits[folds] = fit(self.structure, fisher, key=self.key)
        return self._fits[folds]

    def moments(self, tested: tuple[int, ...], *left_out: int) -> Moments:
        """Return the moments of the samples of some folds (of all, if none is named) in the bases of a fit."""
        if (tested, left_out) not in self._moments:
            folds, params = self.split.folds, self.without(*left_out)
            chosen = folds.inside(*tested) if tested else folds.outside()
            fisher, unit = self.split.fisher.take(chosen), folds.unit[chosen]
            starts = np.append(True, unit[1:] != unit[:-1])
            pairs = len(unit) ** 2 - np.sum(np.unique(unit, return_counts=True)[1] ** 2)
            found = moments_along(
                self.structure, params, fisher, jnp.asarray(starts), jnp.asarray(float(pairs)), self.split.fisher.unit
            )
            self._moments[tested, left_out] = found
        return self._moments[tested, left_out]


class Fits:
    """The fits of one structure to folds, made from those of its widest family."""

    def __init__(self, structure: Structure, wide: WideFits) -> None:
        self.structure, self.wide = structure, wide
        self._known: dict[tuple[int, ...], Params] = {}

    def without(self, *folds: int) -> Params:
        """Return the fit to all samples but those of these folds."""
        if self.structure == self.wide.structure:
            return self.wide.without(*folds)
        if folds not in self._known:
            self._known[folds] = narrowed(self.structure, self.wide.without(*folds))
        return self._known[folds]
