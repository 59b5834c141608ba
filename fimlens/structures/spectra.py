"""Spectra: families that are diagonal in the coordinates they are given, and differ in which eigenvalues they allow.

F~ = Diag(vec L). With V = E[G^2], ||F~ - F||^2 = ||offdiag F||^2 + ||L - V||^2, so the nearest allowed L is
the projection of V. Each spectrum states what it averages (`moments`, linear in V), its `project`ion, and how to
`expand` coordinates into an L that broadcasts over (m, n). Put in a basis, it becomes another optimizer.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from fimlens._perron import perron
from fimlens.fisher import Fisher, vec
from fimlens.structure import Claim, Frame, Params, Structure, Symmetry, Tree, inverse_root, root

Matrix = Float[Array, "m n"]


@dataclass(frozen=True)
class Spectrum(Structure):
    """A structure that is diagonal where it stands: three sentences, and the rest follows.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> class Halves(fl.Spectrum):  # one number for the upper half of the rows, one for the lower
        ...     claim = fl.Claim.EXACT
        ...     def moments(self, V): return [half.mean(keepdims=True) for half in jnp.array_split(V, 2)]
        ...     def project(self, moments): return moments
        ...     def expand(self, coords, shape):
        ...         return jnp.concatenate([jnp.broadcast_to(c, h.shape) for c, h in zip(
        ...             coords, jnp.array_split(jnp.ones(shape), 2))])
        >>> fl.check(Halves()).ok
        True
    """

    @abc.abstractmethod
    def moments(self, V: Matrix) -> Tree:
        """What is averaged of the second moments V: linear in V."""

    @abc.abstractmethod
    def project(self, moments: Tree) -> Tree:
        """The coordinates of the allowed eigenvalues nearest to V."""

    @abc.abstractmethod
    def expand(self, coords: Tree, shape: tuple[int, int]) -> Float[Array, "#m #n"]:
        """The eigenvalues, non-negative, broadcasting over the (m, n) coordinates."""

    def measured_again(self, moments: Tree, rows: Float[Array, "m 1"] | None, columns: Float[Array, "1 n"] | None) -> Tree:
        """The moments in a basis that was turned under them, given the row and column means of V there (None on a side
        that was not turned). By default they are kept, as Adam and SOAP keep theirs: V itself is not known there."""
        del rows, columns
        return moments

    def frame(self, m: int, n: int) -> Frame:
        return Frame((), (m, n))

    def into(self, frame: Frame, G: Matrix) -> Matrix:
        del frame
        return G

    def out(self, frame: Frame, X: Matrix) -> Matrix:
        del frame
        return X

    def eigenvalues(self, params: Params) -> Float[Array, "#m #n"]:
        (m, n), values = params.frame.shape, self.expand(params.coords, params.frame.shape)
        if values.ndim != 2 or values.shape[0] not in (1, m) or values.shape[1] not in (1, n):
            raise ValueError(
                f"{self}: expand gave eigenvalues of shape {values.shape}, and they broadcast over the {m} x {n} matrix by two "
                f"axes, as ({m}, 1) for one a row. Keep both, as in V.mean(1, keepdims=True)."
            )
        return values

    def stats(self, fisher: Fisher, frame: Frame) -> Tree:
        del frame
        return self.moments(fisher.second_moment())

    def fit(self, stats: Tree, frame: Frame) -> Params:
        return Params(frame, self.project(stats))

    def carried_by(self, left: Float[Array, "m m"], right: Float[Array, "n n"] | None, stats: Tree) -> Tree:
        """Squares of the rotations, where there is an entry a row or column: exact if those of G are uncorrelated, as in
        their eigenbases."""

        def carried(V: Float[Array, "#m #n"]) -> Float[Array, "#m #n"]:
            V = left**2 @ V if len(V) == len(left) else V
            return V if right is None or V.shape[1] != len(right) else V @ (right**2).T

        return jax.tree.map(carried, stats)

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        return jnp.diag(vec(jnp.broadcast_to(self.eigenvalues(params), params.frame.shape)))


@dataclass(frozen=True)
class Diagonal(Spectrum):
    """Diag(v): v = E[g^2]. Adam. [G] Proposition 1.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> fl.fit(fl.Diagonal(), fisher).coords.tolist()  # the gradient's squares
        [[1.0, 4.0], [9.0, 16.0]]
    """

    claim: ClassVar[Claim] = Claim.EXACT
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("permutation", "permutation")

    def moments(self, V: Matrix) -> Matrix:
        return V

    def project(self, moments: Matrix) -> Matrix:
        return moments

    def expand(self, coords: Matrix, shape: tuple[int, int]) -> Matrix:
        del shape
        return coords


@dataclass(frozen=True)
class _Tied(Spectrum):
    """Eigenvalues equal along some axes: means of V along them. Linear in V, hence exact; and by Schur-Horn
    majorisation the eigenbasis of the covariances is the best basis for them, hence exact when rotated too."""

    claim: ClassVar[Claim] = Claim.EXACT
    axes: ClassVar[tuple[int, ...]]

    @property
    def rotated_claim(self) -> Claim:
        return Claim.EXACT

    def moments(self, V: Matrix) -> Float[Array, "#m #n"]:
        return V.mean(self.axes, keepdims=True)

    def project(self, moments: Float[Array, "#m #n"]) -> Float[Array, "#m #n"]:
        return moments

    def expand(self, coords: Float[Array, "#m #n"], shape: tuple[int, int]) -> Float[Array, "#m #n"]:
        del shape
        return coords


@dataclass(frozen=True)
class Rows(_Tied):
    """I_n (x) Diag(q), one number a row: q_i = E||G_i.||^2 / n. In the left eigenbasis: whitening, Muon ([G] Prop. 2).

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> fl.fit(fl.Rows(), fisher).coords.tolist()
        [[2.5], [12.5]]
        >>> fl.Rotated(fl.Rows(), "L").claim.name  # of whitening
        'EXACT'
    """

    axes: ClassVar[tuple[int, ...]] = (1,)
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("permutation", "orthogonal")

    def measured_again(self, moments: Tree, rows: Float[Array, "m 1"] | None, columns: Float[Array, "1 n"] | None) -> Tree:
        return moments if rows is None else rows

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        return jnp.kron(jnp.eye(params.frame.shape[1]), jnp.diag(params.coords[:, 0]))


@dataclass(frozen=True)
class Columns(_Tied):
    """Diag(s) (x) I_m, one number a column: s_j = E||g_j||^2 / m. Column normalisation. [G] Proposition 2.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> G = jnp.array([[1.0, 4.0], [1.0, -4.0]])
        >>> params = fl.fit(fl.Columns(), fl.Fisher.from_gradients(G[None]))
        >>> params.coords.tolist()
        [[1.0, 16.0]]
        >>> print(fl.Columns().apply(params, G, lambda x: x**-0.5).round())  # columns of one norm
        [[ 1.  1.]
         [ 1. -1.]]
    """

    axes: ClassVar[tuple[int, ...]] = (0,)
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("orthogonal", "permutation")

    def measured_again(self, moments: Tree, rows: Float[Array, "m 1"] | None, columns: Float[Array, "1 n"] | None) -> Tree:
        return moments if columns is None else columns

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        return jnp.kron(jnp.diag(params.coords[0]), jnp.eye(params.frame.shape[0]))


@dataclass(frozen=True)
class Scalar(_Tied):
    """c I: c = tr F / (mn). Gradient descent scaled by one number, as in LARS.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> fl.fit(fl.Scalar(), fisher).coords.tolist()  # ||G||^2 / 4
        [[7.5]]
    """

    axes: ClassVar[tuple[int, ...]] = (0, 1)
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("orthogonal", "orthogonal")

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        m, n = params.frame.shape
        return params.coords[0, 0] * jnp.eye(m * n)


@dataclass(frozen=True)
class _RankOne(Spectrum):
    """Eigenvalues that are a product of one factor a row and one a column."""

    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("permutation", "permutation")

    @abc.abstractmethod
    def factors(self, coords: Tree) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]]:
        """The two factors."""

    def expand(self, coords: Tree, shape: tuple[int, int]) -> Matrix:
        del shape
        rows, columns = self.factors(coords)
        return rows * columns

    def over_root(self, params: Params, X: Matrix, eps: Float[ArrayLike, ""]) -> Matrix:
        """Without eps the root is a product too: m + n roots and divisions, and not m n."""
        if not isinstance(eps, float) or eps != 0:
            return super().over_root(params, X, eps)
        rows, columns = self.factors(params.coords)
        return X * inverse_root(0.0)(rows) * inverse_root(0.0)(columns)


@dataclass(frozen=True)
class RowColumn(_RankOne):
    """Diag(s) (x) Diag(q): the best rank-one q s^T of V, its leading singular pair (Perron). RACS. [G] Proposition 3.

    Fitted to convergence, or by as many `sweeps` as are given, from ones along the shorter side: [G]'s Algorithm 1 takes five.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[10.0, 20.0], [30.0, 40.0]]]))
        >>> q, s = fl.fit(fl.RowColumn(), fisher).coords
        >>> print((q * s).round())  # of rank one, and nearest to [[100, 400], [900, 1600]]
        [[ 191.  350.]
         [ 880. 1611.]]
    """

    sweeps: Int[ArrayLike, ""] | None = None
    claim: ClassVar[Claim] = Claim.LIMIT

    def moments(self, V: Matrix) -> Matrix:
        return V

    def project(self, moments: Matrix) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]]:
        V = moments
        if self.sweeps is not None and len(V) > V.shape[1]:
            s, q = self.project(V.T)
            return q.T, s.T
        largest = V.max()
        scale = _over(jnp.ones([], V.dtype), largest)  # so that no square leaves float32

        def sweep(_: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            s = nearest_factor(V, pair[0], scale)
            return nearest_factor(V.T, s, scale), s

        q, s = jnp.ones(V.shape[0], V.dtype), jnp.ones(V.shape[1], V.dtype)
        if self.sweeps is None:
            s = jnp.abs(perron(lambda s: V @ s * scale, lambda q: q @ V * scale, s))
            q = nearest_factor(V.T, s, scale)
        else:
            q, s = jax.lax.fori_loop(0, self.sweeps, sweep, (q, s))
        s = s * largest
        return q[:, None], s[None]

    def factors(self, coords: tuple[Array, Array]) -> tuple[Array, Array]:
        return coords

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        q, s = params.coords
        return jnp.kron(jnp.diag(s[0]), jnp.diag(q[:, 0]))


@dataclass(frozen=True)
class _RowAndColumnMeans(_RankOne):
    """Spectra that keep the row means r and the column means c of V: m + n numbers."""

    def moments(self, V: Matrix) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]]:
        return Rows().moments(V), Columns().moments(V)

    def project(self, moments: tuple[Array, Array]) -> tuple[Array, Array]:
        return moments

    def measured_again(
        self, moments: tuple[Array, Array], rows: Float[Array, "m 1"] | None, columns: Float[Array, "1 n"] | None
    ) -> tuple[Array, Array]:
        r, c = moments
        return Rows().measured_again(r, rows, columns), Columns().measured_again(c, rows, columns)


@dataclass(frozen=True)
class Marginals(_RowAndColumnMeans):
    """The product of the marginals, r c^T / mean: Adafactor.

    The best rank-one q s^T of V in generalised Kullback-Leibler divergence, sum V log(V/L) - V + L; rotated on
    both sides, Shampoo squared, the best Kronecker product in von Neumann divergence, of which the former is
    the diagonal case: D(F || F~) = tr(F log F - F log F~ - F + F~). Not Frobenius-optimal.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[10.0, 20.0], [30.0, 40.0]]]))
        >>> params = fl.fit(fl.Marginals(), fisher)
        >>> [means.tolist() for means in params.coords]  # of rows and of columns of [[100, 400], [900, 1600]]
        [[[250.0], [1250.0]], [[500.0, 1000.0]]]
        >>> print(fl.Marginals().eigenvalues(params).round())
        [[ 167.  333.]
         [ 833. 1667.]]
    """

    claim: ClassVar[Claim] = Claim.OTHER

    def factors(self, coords: tuple[Array, Array]) -> tuple[Array, Array]:
        r, c = coords
        mean = root(r.mean()) * root(c.mean())  # equal at the fit, and apart only along the chart
        return _over(r, mean), c

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        L, V = self.eigenvalues(params), fisher.second_moment()
        seen = V > 0
        return jnp.sum(L - jnp.where(seen, V * jnp.log(jnp.where(seen, L, 1)), 0))

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        r, c = params.coords
        m, n = params.frame.shape
        total = jnp.sqrt(m * r.sum() * n * c.sum())
        return jnp.kron(jnp.diag(m * c[0]), jnp.diag(n * r[:, 0])) / jnp.where(total > 0, total, 1)


@dataclass(frozen=True)
class GeometricMarginals(_RowAndColumnMeans):
    """The geometric mean of the two marginals, sqrt(r c^T). Rotated on both sides: Shampoo. [G] Theorem 3.1.

    The theorem bounds ||F~ - F|| by a function that grows with the gaps of Diag(r) (x) I and I (x) Diag(c), each of
    which the marginals minimise. It is *not* Frobenius-optimal: even where F is a Kronecker product, this is
    not F.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 1.0], [7.0, 7.0]]]))
        >>> params = fl.fit(fl.GeometricMarginals(), fisher)
        >>> print(fl.GeometricMarginals().eigenvalues(params).round())  # not the product that E[G^2] is: [[1, 1], [49, 49]]
        [[ 5.  5.]
         [35. 35.]]
    """

    claim: ClassVar[Claim] = Claim.BOUND

    def factors(self, coords: tuple[Array, Array]) -> tuple[Array, Array]:
        r, c = coords
        return root(r), root(c)

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        rows, columns = params.coords
        return Rows().objective(Params(params.frame, rows), fisher) + Columns().objective(Params(params.frame, columns), fisher)

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        r, c = params.coords
        return jnp.kron(jnp.diag(c[0] ** 0.5), jnp.diag(r[:, 0] ** 0.5))


def nearest_factor(V: Matrix, q: Float[Array, " m"], scale: Float[ArrayLike, ""] = 1.0) -> Float[Array, " n"]:
    """The s of the q s^T nearest to scale * V, for this q: half a sweep."""
    return _over(q @ V * scale, q @ q)  # scale over a small square would leave float32


def _over(x: Array, size: Array) -> Array:
    """x / size, and 0 where size is."""
    return x / jnp.where(size == 0, 1, size)
