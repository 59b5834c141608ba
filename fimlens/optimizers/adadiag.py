"""AdaDiag, AdaDiag++ and AdafacDiag: eigenbases of the current gradient."""

from collections.abc import Callable
from dataclasses import replace

from jax.typing import DTypeLike

from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Diagonal, Marginals, Rotated, Singular
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.structure_transform import scale_by_structure


def _in_basis_of_gradient(name: str, structure: Rotated, summary: str, bases: str, averaged: str) -> Callable[..., Transform]:
    """The direction of [D] for a structure; `bases` and `averaged` are the shapes of its state for a 3 x 4 matrix."""

    def direction(
        *,
        b1: Number = 0.9,
        b2: Number = 0.999,
        eps: Number = 1e-8,
        update_interval: Whole = 200,
        max_basis_dim: Whole | None = 10_000,
        dtypes: StateDtypes | DTypeLike | None = None,
    ) -> Transform:
        return scale_by_structure(
            replace(structure, max_dim=max_basis_dim),
            b1=b1,
            b2=b2,
            eps=eps,
            update_interval=update_interval,
            momentum="rotated",
            dtypes=dtypes,
        )

    direction.__name__ = direction.__qualname__ = name
    direction.__doc__ = f"""{summary}

    The basis is that of the singular vectors of the current gradient, so no covariance is stored; momentum and second moments
    are those of the coordinates. Unlike in [D], both change basis at a refresh, the second moments by the squared entries of
    the rotation.

    Args:
        b1: decay of the momentum. Default: 0.9, as in Adam.
        b2: decay of the second moments. Default: 0.999, as in Adam.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        update_interval: steps between refreshes of the basis, the first at the first step. Default: 200.
        max_basis_dim: a side longer than this is not rotated, such as the vocabulary of a head. Default: 10000, as in SOAP's
            code; None for no limit.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state = fl.{name}(update_interval=100).init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state.bases)]  # the bases
        {bases}
        >>> [x.shape for x in jax.tree.leaves(state.averaged)]  # the second moments; no covariance
        {averaged}
    """
    return direction


scale_by_adadiag = _in_basis_of_gradient(
    "scale_by_adadiag",
    Rotated(Diagonal(), "short", Singular()),
    """AdaDiag ([D]): Adam in a basis of the shorter side. Use it where `osoap`'s covariance is too large.

    H is `osoap`'s, ONE_STEP. State: 2 m n + r^2.""",
    bases="[(1, 3, 3)]",
    averaged="[(1, 3, 4)]",
)


scale_by_adadiag_pp = _in_basis_of_gradient(
    "scale_by_adadiag_pp",
    Rotated(Diagonal(), "LR", Singular()),
    """AdaDiag++ ([D]): Adam in bases of both sides. Use it where `soap`'s covariances are too large.

    H is `soap`'s, ONE_STEP. State: 2 m n + m^2 + n^2.""",
    bases="[(1, 3, 3), (1, 4, 4)]",
    averaged="[(1, 3, 4)]",
)


scale_by_adafacdiag = _in_basis_of_gradient(
    "scale_by_adafacdiag",
    Rotated(Marginals(), "short", Singular()),
    """AdafacDiag ([D]): Adafactor in a basis of the shorter side. Use it where `adadiag`'s second moments are too large.

    H = {(I (x) U) (Diag(s) (x) Diag(q)) (I (x) U)^T}, EXACT under von Neumann where U diagonalises
    the side's covariance. State: m n + m + n + r^2.""",
    bases="[(1, 3, 3)]",
    averaged="[(1, 3, 1), (1, 1, 4)]",
)


adadiag = full_chain(scale_by_adadiag)


adadiag_pp = full_chain(scale_by_adadiag_pp)


adafacdiag = full_chain(scale_by_adafacdiag)
