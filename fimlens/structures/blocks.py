"""Blocks: one member of a structure for each block of the matrix, independent of the others."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from fimlens.divergence import Divergence
from fimlens.fisher.fisher import Fisher, vec
from fimlens.member import BasisStep, Claim, EigenvalueBlock, Frame, Params, Statistics, Symmetry, Tree
from fimlens.structure import Combinator, require_structure
from fimlens.structures.move import Move

Matrix = Float[Array, "m n"]


@dataclass(frozen=True)
class Blocks(Combinator):
    """DiagB(inner_1, ..., inner_K) over a grid of `rows` x `columns` equal blocks of G.

    Per attention head, per column group; Blocks(Dense(), columns=n) is the free block diagonal, one full M_j a column.
    All blocks have one shape, so they are one stack, and every method is the inner one under `vmap`.

    Raises:
        TypeError: `inner` is not a Structure instance.
        ValueError: a count is not positive, or (at a matrix) does not divide its side.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]]))
        >>> heads = fl.Blocks(fl.Rows(), columns=2)
        >>> fl.fit(heads, fisher).coords[..., 0].tolist()  # one number a row, for each half of the columns
        [[0.5, 20.5], [6.5, 42.5]]
    """

    rows: int = 1
    columns: int = 1

    def __post_init__(self) -> None:
        require_structure("Blocks", self.inner)
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"Blocks: rows and columns are positive; got {self.rows} and {self.columns}")

    @property
    def claim(self) -> Claim:
        return self.inner.claim

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        left, right = self.inner.symmetry
        return left if self.rows == 1 else None, right if self.columns == 1 else None

    def _split(self, G: Shaped[Array, "m n"]) -> Shaped[Array, "K p q"]:
        m, n = G.shape
        p, q = m // self.rows, n // self.columns
        return G.reshape(self.rows, p, self.columns, q).swapaxes(1, 2).reshape(-1, p, q)

    def _join(self, blocks: Float[Array, "K p q"]) -> Matrix:
        _, p, q = blocks.shape
        grid = blocks.reshape(self.rows, self.columns, p, q).swapaxes(1, 2)
        return grid.reshape(self.rows * p, self.columns * q)

    def _fishers(self, fisher: Fisher) -> Fisher:
        """The Fishers of the blocks, stacked."""
        return jax.vmap(lambda k: fisher.map(lambda G: self._split(G)[k]))(jnp.arange(self.rows * self.columns))

    def _inner(self, params: Params) -> Params:
        return Params(params.frame.bases, params.coords)

    def frame(self, m: int, n: int) -> Frame:
        if m % self.rows or n % self.columns:
            raise ValueError(
                f"Blocks: a {m} x {n} matrix has no grid of {self.rows} x {self.columns} equal blocks. "
                "Take counts that divide its sides."
            )
        inner = self.inner.frame(m // self.rows, n // self.columns)
        count = self.rows * self.columns
        return Frame(jax.tree.map(lambda U: jnp.broadcast_to(U, (count, *U.shape)), inner), (m, n))

    def to_eigenbasis(self, frame: Frame, G: Matrix) -> Tree:
        return jax.vmap(self.inner.to_eigenbasis)(frame.bases, self._split(G))

    def from_eigenbasis(self, frame: Frame, X: Tree) -> Matrix:
        return self._join(jax.vmap(self.inner.from_eigenbasis)(frame.bases, X))

    def eigenvalues(self, params: Params) -> Tree:
        return jax.vmap(self.inner.eigenvalues)(self._inner(params))

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        return jax.vmap(self.inner.stats)(self._fishers(fisher), self._inner(member))

    def update_basis(self, stats: Statistics, frame: Frame, fisher: Fisher, step: BasisStep) -> tuple[Frame, Statistics]:
        def update(stats: Statistics, frame: Frame, fisher: Fisher, key: Array) -> tuple[Frame, Statistics]:
            return self.inner.update_basis(stats, frame, fisher, step._replace(key=key))

        keys = jax.random.split(step.key, self.rows * self.columns)
        moved, stats = jax.vmap(update)(stats, frame.bases, self._fishers(fisher), keys)
        return Frame(moved, frame.shape), stats

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        """By the inner rule along a side that is whole; along one that is cut, a rotation mixes blocks, and nothing moves."""
        within = Move(move.left if self.rows == 1 else None, move.right if self.columns == 1 else None)
        return jax.vmap(lambda stats: self.inner.transport(stats, within))(stats)

    def converged_basis(self, fisher: Fisher, key: Array) -> Frame:
        keys = jax.random.split(key, self.rows * self.columns)
        shape = self.frame(*fisher.shape).shape  # refuses a grid that does not fit
        return Frame(jax.vmap(self.inner.converged_basis)(self._fishers(fisher), keys), shape)

    def fit(self, stats: Statistics, frame: Frame) -> Params:
        members = jax.vmap(self.inner.fit)(stats, frame.bases)
        return Params(Frame(members.frame, frame.shape), members.coords)

    def retract(self, frame: Frame, z: Frame) -> Frame:
        if not jax.tree.leaves(frame):  # vmap refuses to map nothing
            return frame
        return Frame(jax.vmap(self.inner.retract)(frame.bases, z.bases), frame.shape)

    def eigenvalue_blocks(self, params: Params, fisher: Fisher) -> list[EigenvalueBlock]:
        static: list[float] = []

        def arrays(params: Params, fisher: Fisher) -> list[tuple[Array, Array]]:
            blocks = self.inner.eigenvalue_blocks(params, fisher)
            static[:] = [c for *_, c in blocks]
            return [(value, V) for value, V, _ in blocks]

        pairs = jax.vmap(arrays)(self._inner(params), self._fishers(fisher))
        return [EigenvalueBlock(value, V, c) for (value, V), c in zip(pairs, static, strict=True)]

    def no_minimum(self, params: Params, fisher: Fisher, divergence: Divergence) -> str | None:
        stacks = self._inner(params), self._fishers(fisher)
        blocks = (jax.tree.map(lambda x, k=k: x[k], stacks) for k in range(self.rows * self.columns))
        return next(filter(None, (self.inner.no_minimum(*block, divergence) for block in blocks)), None)

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(self.inner.objective)(self._inner(params), self._fishers(fisher)))

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        m, n = params.frame.shape
        places = jax.vmap(vec)(self._split(jnp.arange(m * n).reshape(n, m).T))  # of each block's Vec in Vec(G)
        F = jnp.zeros((m * n, m * n), jax.tree.leaves(params.coords)[0].dtype)
        for place, block in zip(places, jax.vmap(self.inner.dense)(self._inner(params)), strict=True):
            F = F.at[jnp.ix_(place, place)].set(block)
        return F
