"""The lens: every structure before one Fisher. Error, optimum, memory, the claim, the optimizer, and a verdict on each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from fimlens._validate import finite
from fimlens.fisher.fisher import Fisher, SampleFisher, unvec, vec
from fimlens.linalg.decompositions import eigh
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.solver.fit import fit, gap, is_member, least_eigenvalue, require, state_size
from fimlens.solver.newton import solve, stationarity
from fimlens.structure import Claim, Frame, Params, Structure
from fimlens.structures import (
    Columns,
    Dense,
    Diagonal,
    DiagonalKronecker,
    Drop,
    GeometricMarginals,
    Kronecker,
    LowRank,
    Marginals,
    Rotated,
    RowColumn,
    Rows,
    Scalar,
)
from fimlens.transforms.state import members, start_from
from fimlens.transforms.structure_transform import scale_by_structure

SOLVE_UP_TO = 256  # entries of a matrix, for the numeric optimum


DENSE_UP_TO = 1024  # entries of a matrix, for the comparison with F~ written out


TOLERANCE = 1e-8


STRUCTURES: dict[str, Structure] = {
    "sgd": Scalar(),
    "rows": Rows(),
    "columns": Columns(),
    "adafactor": Marginals(),
    "racs": RowColumn(),
    "adam": Diagonal(),
    "muon": Rotated(Rows(), "L"),
    "right whitening": Rotated(Columns(), "R"),
    "s x m": DiagonalKronecker(),
    "galore": LowRank(Diagonal(), 4, Drop()),
    "alice": LowRank(Diagonal(), 4, Columns()),
    "osoap": Rotated(Diagonal(), "L"),
    "shampoo": Rotated(GeometricMarginals(), "LR"),
    "shampoo squared": Rotated(Marginals(), "LR"),
    "kronecker": Kronecker(),
    "soap": Rotated(Diagonal(), "LR"),
    "dense": Dense(),
}


class Row(NamedTuple):
    """One structure before one Fisher. Errors are relative to ||F||^2; None stands for what was not measured.

    `elements` are the numbers that the structure's optimizer keeps when it averages statistics, `fit_elements` when it
    averages fits, without momentum. `streamed` and `update` say how far the transform, fed the same gradients from the
    fit's basis, ends from F~ and from F~^{-1/2} Vec(G) written out; `free` how far F~ is when it runs with its own basis,
    refresh and decay. `least` is the least eigenvalue of the fit in units of the largest; `doubts` say why a verdict failed.
    """

    name: str
    structure: str
    claim: str
    relative: float
    basis: float
    spectrum: float
    optimum: float | None
    ratio: float | None
    starts: int | None
    reached: int | None
    slope: float
    least: float
    elements: int
    fit_elements: int
    bytes: int
    streamed: float | None
    update: float | None
    free: float | None
    claim_holds: bool
    optimizer_holds: bool
    doubts: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every verdict is good."""
        return self.claim_holds and self.optimizer_holds


@dataclass(frozen=True)
class Comparison:
    """All rows of one matrix, and the structures that do not suit its shape, with the reason.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> comparison = fl.compare([fl.Diagonal(), fl.Rows(), fl.LowRank(fl.Diagonal(), 9)], fisher)
        >>> [(row.name, row.claim, row.claim_holds) for row in comparison.rows]
        [('Diagonal()', 'EXACT', True), ('Rows()', 'EXACT', True)]
        >>> list(comparison.unsuited)
        ['LowRank(Diagonal(), 9)']
    """

    matrix: str
    fisher: str
    shape: tuple[int, int]
    rows: tuple[Row, ...]
    unsuited: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether there are rows, and every verdict of each is good."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Every number, as plain data; None for what is not finite."""
        rows = [{key: finite(value) for key, value in row._asdict().items()} | {"ok": row.ok} for row in self.rows]
        return {
            "matrix": self.matrix,
            "fisher": self.fisher,
            "shape": list(self.shape),
            "rows": rows,
            "unsuited": dict(self.unsuited),
        }


def compare(
    structures: Mapping[str, Structure] | Iterable[Structure],
    fisher: Fisher,
    *,
    matrix: str = "",
    key: Array | None = None,
    solve_up_to: int = SOLVE_UP_TO,
    dtype: Any = jnp.float32,
    progress: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Put structures before a Fisher: their errors, optima, sizes, and what their optimizers make of the same gradients.

    Args:
        structures: by name, or plain; named as they print then, which must tell them apart.
        matrix: a name for the matrix.
        key: for random starts and bases; jax.random.key(0) by default.
        solve_up_to: the numeric optimum is sought where m n is at most this.
        dtype: of the optimizer's state, for `bytes`.
        progress: called with each structure's name when its row is done.

    Raises:
        TypeError: `fisher` is not a Fisher, or something is not a Structure instance.
        ValueError: there are no structures, or two of the same name.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> fl.compare([fl.Diagonal(), fl.Rows()], fisher).ok
        True
    """
    named = list(structures.items()) if isinstance(structures, Mapping) else [(str(s), s) for s in structures]
    if not named:
        raise ValueError("compare: there are no structures. Give some, such as [fl.Diagonal(), fl.Rows()].")
    for k, (name, structure) in enumerate(named):
        require("compare", structure, fisher)
        if any(name == other for other, _ in named[:k]):
            raise ValueError(
                f"compare: two structures are named {name}. Give them names, as in {{'first': ..., 'second': ...}}."
            )
    key_data = jax.random.key_data(jax.random.key(0) if key is None else key)
    rows, unsuited = [], {}
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64), fisher)
        for name, structure in named:
            try:
                jax.eval_shape(lambda s=structure: s.frame(*fisher.shape))
            except ValueError as error:
                unsuited[name] = str(error)
                progress(name)
                continue
            rows.append(_row(name, structure, exact, jax.random.wrap_key_data(key_data), solve_up_to, dtype))
            progress(name)
    return Comparison(matrix, repr(fisher), fisher.shape, tuple(rows), unsuited)


def _row(name: str, structure: Structure, fisher: Fisher, key: Array, solve_up_to: int, dtype: Any) -> Row:
    fitted = fit(structure, fisher, key=key)
    error = gap(structure, fitted, fisher)
    norm = float(fisher.norm_squared) or 1.0
    slope, least = stationarity(structure, fisher, fitted), float(least_eigenvalue(structure, fitted))
    solution = None
    member = bool(is_member(structure, fitted))
    if member and np.prod(fisher.shape) <= solve_up_to and float(error.relative) > 1e-12:  # at zero there is nothing to beat
        solution = solve(structure, fisher, key=key, starts=1)
    exact = structure.claim in (Claim.EXACT, Claim.LIMIT)
    excess = solution.certificate.excess if solution is not None and exact else 0.0
    deviations = _streamed(structure, fisher, fitted) if isinstance(fisher, SampleFisher) else (None, None, None)
    of_claim = _of_claim(slope, excess) if member else [_outside(least)]
    of_optimizer = _of_optimizer(*deviations[:2])
    optimum = None if solution is None else solution.value / norm
    elements = state_size(structure, fisher.shape)
    return Row(
        name=name,
        structure=str(structure),
        claim=structure.claim.name,
        relative=float(error.relative),
        basis=float(error.basis) / norm,
        spectrum=float(error.spectrum) / norm,
        optimum=optimum,
        ratio=None if optimum is None or optimum < 1e-12 else float(error.relative) / optimum,
        starts=None if solution is None else len(solution.certificate.values),
        reached=None if solution is None else solution.certificate.reached,
        slope=slope,
        least=least,
        elements=elements,
        fit_elements=state_size(structure, fisher.shape, average="fits"),
        bytes=elements * jnp.dtype(dtype).itemsize,
        streamed=deviations[0],
        update=deviations[1],
        free=deviations[2],
        claim_holds=not of_claim,
        optimizer_holds=not of_optimizer,
        doubts=(*of_claim, *of_optimizer),
    )


def _outside(least: float) -> str:
    return f"its fit is no member: an eigenvalue is {least:.2g} of the largest, and no Fisher has a negative one"


def _of_claim(slope: float, excess: float) -> list[str]:
    """Why a claim does not hold, in words; nothing where it does."""
    found = [f"its objective has a slope of {slope:.0e} at the fit, and is not least there"] if not slope <= TOLERANCE else []
    return found + ([f"the solver found a member nearer by {excess:.2g} of ||F||^2"] if not excess <= TOLERANCE else [])


def _of_optimizer(streamed: float | None, update: float | None) -> list[str]:
    """Why an optimizer does not hold."""
    said = (streamed, "its state ends {:.0e} off F~"), (update, "its update is {:.0e} off the one written out")
    return [words.format(off) for off, words in said if off is not None and not off <= TOLERANCE]


def _streamed(structure: Structure, fisher: SampleFisher, fitted: Params) -> tuple[float | None, float | None, float | None]:
    """How far the transform ends from F~, its last update from the one written out, and F~ when it runs freely."""
    if np.prod(fisher.shape) > DENSE_UP_TO:
        return None, None, None
    state, update, free = _deviations(structure, fisher.samples, fitted)
    return float(state), float(update), float(free)


@partial(jax.jit, static_argnums=0)
def _deviations(
    structure: Structure, G: Float[Array, "N m n"], fitted: Params
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """`_streamed` of a matrix that is small enough to be written out."""
    F = structure.dense(fitted)
    values, Q = eigh(F)
    eps = jnp.sqrt(values.max())  # so large that small roots, to half the digits by eigh, move the update by rounding
    seen = values > len(F) * jnp.finfo(F.dtype).eps * values.max()
    scales = inverse_root(eps)(jnp.where(seen, values, 0))  # the root of rounding is no rounding
    member, update = _run(structure, G, eps, fitted.frame)
    if any(c is None for c in jax.tree.leaves(structure.eigenvalues(fitted), is_leaf=lambda x: x is None)):
        scales = jnp.where(seen, scales, 0)  # eigenvalue zero is outside the range there
    written = unvec(Q @ (scales * (Q.T @ vec(G[-1]))), fitted.frame.shape)
    free, _ = _run(structure, G, eps, None)

    def or_one(size: Array) -> Array:
        return jnp.where(size > 0, size, 1)

    size = or_one(jnp.linalg.norm(F))
    return (
        jnp.linalg.norm(structure.dense(member) - F) / size,
        jnp.abs(update - written).max() / or_one(jnp.abs(written).max()),
        jnp.linalg.norm(structure.dense(free) - F) / size,
    )


@partial(jax.jit, static_argnums=0)
def _run(
    structure: Structure, G: Float[Array, "N m n"], eps: Float[ArrayLike, ""], frame: Frame | None
) -> tuple[Params, Float[Array, "m n"]]:
    """The member, and the last update, after the transform has seen the gradients in order.

    In a given frame: never turned, all gradients weighed alike, no momentum. Otherwise as an optimizer runs, freely.
    """
    if frame is None:
        tx = scale_by_structure(structure, eps=eps, update_interval=10)
        state = tx.init(G[0])
    else:
        tx = scale_by_structure(structure, b1=None, b2=lambda t: 1 - 1 / t, eps=eps, update_interval=None)
        state = start_from(tx.init(G[0]), frame)

    def step(carry: tuple[Any, Array], g: Array) -> tuple[tuple[Any, Array], None]:
        update, state = tx.update(g, carry[0])
        return (state, update), None

    state, update = jax.lax.scan(step, (state, jnp.zeros_like(G[0])), G)[0]
    return members(structure, state, G[0]), update
