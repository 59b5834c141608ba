"""Switching: part of a subspace makes way for directions drawn at random, so that training sees all of the matrix in time."""

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.linalg.decompositions import complement, fix_signs, orthonormal

Basis = Float[Array, "m r"]
SWITCHES = ("complement", "full", "gaussian", "gaussian-mix", "none")


def switched(V: Basis, switch: str, leading: int, key: Array) -> Basis:
    """V with its last r - leading directions exchanged.

    - "complement" ([G]'s): for directions drawn uniformly, without replacement, from an orthonormal basis of the complement
      of all r;
    - "full": likewise, from those r - leading and that basis;
    - "gaussian-mix": for a uniformly random subspace of the complement of the leading ones;
    - "gaussian": all r directions are drawn at random, the leading ones as well;
    - "none": nothing is exchanged.

    A complement smaller than r - leading is taken whole, and more of V stays.
    """
    m, r = V.shape
    leading = min(leading, r)
    if switch == "none" or m == r:
        return V
    if switch.startswith("gaussian"):
        stay = V[:, : 0 if switch == "gaussian" else leading]
        drawn = jax.random.normal(key, (m, r - stay.shape[1]), V.dtype)
        return fix_signs(orthonormal(jnp.concatenate([stay, drawn], 1)))
    if switch == "full":
        drawn = jax.random.permutation(key, m - leading)[: r - leading]
        own = V[:, jnp.minimum(leading + drawn, r - 1)]
        return V.at[:, leading:].set(jnp.where(drawn < r - leading, own, complement(V, drawn - (r - leading))))
    count = min(r - leading, m - r)
    return V.at[:, r - count :].set(complement(V, jax.random.permutation(key, m - r)[:count]))


def require_switch(call: str, switch: str, leading: Any) -> None:
    """Refuse an unknown switch, and a number of leading directions that is none.

    Raises:
        TypeError: `leading` is not a whole number.
        ValueError: it is negative, or there is no such switch.
    """
    if switch not in SWITCHES:
        raise ValueError(f"{call}: switch is one of {', '.join(map(repr, SWITCHES))}; got {switch!r}")
    if isinstance(leading, bool) or not isinstance(leading, Integral):
        raise TypeError(f"{call}: leading is a whole number; got {leading!r}.")
    if leading < 0:
        raise ValueError(f"{call}: leading is a number of directions, at least 0; got {leading}")
