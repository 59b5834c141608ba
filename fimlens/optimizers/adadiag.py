"""AdaDiag, AdaDiag++ and AdafacDiag: eigenbases of the current gradient."""

from collections.abc import Callable

from jax.typing import DTypeLike

from fimlens.optimizers.eigenbasis import Whole
from fimlens.optimizers.full_chain import Number, Transform, full_chain
from fimlens.structure import Structure
from fimlens.structures import Diagonal, Marginals, Rotated, Singular
from fimlens.transforms.structure_transform import scale_by_structure


def _of_current_gradient(name: str, structure: Structure, says: str, bases: str, averaged: str) -> Callable[..., Transform]:
    """[D]'s directions differ in their structure alone, and so in what they keep of a 3 x 4 matrix."""

    def direction(
        *,
        b1: Number = 0.9,
        b2: Number = 0.999,
        eps: Number = 1e-8,
        update_interval: Whole = 200,
        momentum_dtype: DTypeLike | None = None,
        second_moment_dtype: DTypeLike | None = None,
        factor_dtype: DTypeLike | None = None,
    ) -> Transform:
        return scale_by_structure(
            structure,
            b1=b1,
            b2=b2,
            eps=eps,
            update_interval=update_interval,
            momentum="rotated",
            momentum_dtype=momentum_dtype,
            second_moment_dtype=second_moment_dtype,
            factor_dtype=factor_dtype,
        )

    direction.__name__ = direction.__qualname__ = name
    direction.__doc__ = f"""{says}

    The basis is that of the singular vectors of the current gradient; no covariance is kept, and moments live in the
    rotated space. Repaired: the momentum is carried along when the basis turns.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state = fl.{name}(update_interval=100).init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state.frame)]  # the bases
        {bases}
        >>> [x.shape for x in jax.tree.leaves(state.averaged)]  # of what is fitted; no covariance
        {averaged}
    """
    return direction


scale_by_adadiag = _of_current_gradient(
    "scale_by_adadiag",
    Rotated(Diagonal(), "short", Singular()),
    "AdaDiag ([D]): `osoap`'s H, ONE_STEP. State: 2 m n + r^2.",
    bases="[(1, 3, 3)]",
    averaged="[(1, 3, 4)]",
)


scale_by_adadiag_pp = _of_current_gradient(
    "scale_by_adadiag_pp",
    Rotated(Diagonal(), "LR", Singular()),
    "AdaDiag++ ([D]): `soap`'s H, ONE_STEP. State: 2 m n + m^2 + n^2.",
    bases="[(1, 3, 3), (1, 4, 4)]",
    averaged="[(1, 3, 4)]",
)


scale_by_adafacdiag = _of_current_gradient(
    "scale_by_adafacdiag",
    Rotated(Marginals(), "short", Singular()),
    "AdafacDiag ([D]): `adadiag` with Adafactor's spectrum, OTHER: generalised KL. State: m n + m + n + r^2.",
    bases="[(1, 3, 3)]",
    averaged="[(1, 3, 1), (1, 1, 4)]",
)


adadiag = full_chain(scale_by_adadiag)


adadiag_pp = full_chain(scale_by_adadiag_pp)


adafacdiag = full_chain(scale_by_adafacdiag)
