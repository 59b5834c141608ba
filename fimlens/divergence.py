"""In which sense a member is nearest to the Fisher: a spectral Bregman divergence is one convex function phi.

    D(F, F~) = tr[ phi(F) - phi(F~) - phi'(F~) (F - F~) ]

phi = x^2 is the Frobenius norm, x log x - x is von Neumann's divergence, and -log x is LogDet, twice the Gaussian
Kullback-Leibler divergence. With F~'s eigenvalues lambda and the second moments V of F in F~'s eigenbasis, D is tr phi(F) and
one term for each direction:

    D(F, F~) = tr phi(F) + sum of  -phi(lambda) - phi'(lambda) (V - lambda)
"""

import abc
import math
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens._validate import OnlyFields
from fimlens.fisher.fisher import Fisher
from fimlens.member import EigenvalueBlock

Numbers = Float[Array, "..."]


@dataclass(frozen=True)
class Divergence(OnlyFields, abc.ABC):
    """Base class of the divergences; subclass it to ask `gap` and `solve` in a sense of your own: phi is enough.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> class Exponential(fl.Divergence):
        ...     def phi(self, x): return jnp.exp(x)
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 1.0]]]) / 10)
        >>> print(f"{fl.gap(fl.Rows(), fl.fit(fl.Rows(), fisher), fisher, divergence=Exponential()).total:.4f}")
        0.0087
    """

    @property
    def degree(self) -> float | None:
        """The b of D(tF, tF~) = t^b D(F, F~), with which phi'' is a multiple of x^(b-2). Default: None, no such law."""
        return None

    @abc.abstractmethod
    def phi(self, x: Numbers) -> Numbers:
        """The convex function, of each number x >= 0. It may be infinite at 0."""

    def slope(self, x: Numbers) -> Numbers:
        """phi'(x). Default: the automatic derivative of `phi`."""
        return jax.grad(lambda x: self.phi(x).sum())(x)

    def curvature(self, x: Numbers) -> Numbers:
        """phi''(x). Default: the automatic derivative of `slope`."""
        return jax.grad(lambda x: self.slope(x).sum())(x)

    @cached_property  # every fit asks
    def at_zero(self) -> float:
        """phi(0)."""
        with jax.ensure_compile_time_eval():
            return float(self.phi(jnp.zeros([])))

    @property
    def finite_at_zero(self) -> bool:
        """Whether phi(0) is finite. Else singular Fishers are infinitely far, and there may be no nearest member."""
        return math.isfinite(self.at_zero)

    def weight(self, x: Numbers) -> Numbers:
        """x phi''(x), and 0 at 0: a multiple of x^(b-1) for a divergence of degree b. The weights of its fixed points."""
        seen = x > 0
        return jnp.where(seen, x * self.curvature(jnp.where(seen, x, 1)), 0)

    def trace(self, fisher: Fisher, unit: Float[ArrayLike, ""] = 1.0) -> Float[Array, ""]:
        """tr phi(F / unit), from the eigenvalues of F."""
        m, n = fisher.shape
        seen = fisher.spectrum / unit
        unseen = m * n - len(seen)  # eigenvalues that are zero, for lack of samples
        return jnp.sum(self.phi(seen)) + (unseen * self.phi(jnp.zeros([], seen.dtype)) if unseen else 0)

    def size(self, trace: Float[Array, ""], mean: Float[Array, ""], count: int) -> Float[Array, ""]:
        """The size of an F of this tr phi(F) and of this mean of its `count` eigenvalues, which gaps are relative to.

        D(F, 0) = tr phi(F) where it is finite, for degrees over 1; else mean^2 phi''(mean) for each eigenvalue.
        """
        bounded = self.degree is not None and self.degree > 1
        size = trace if bounded else count * mean**2 * self.curvature(jnp.where(mean > 0, mean, 1))
        return jnp.where(size > 0, size, 1)

    def same_minima(self, other: "Divergence") -> bool:
        """Whether the other is equal, or equal up to a factor, as `Frobenius()` is to `Beta(2)`."""
        return self == other or (self.degree is not None and self.degree == other.degree)

    def between(self, V: Numbers, value: Numbers) -> Numbers:
        """phi(V) - phi(value) - phi'(value) (V - value): the divergence of two numbers, not negative."""
        return self.phi(V) + self.excess(V, value)

    def excess(self, V: Numbers, value: Numbers) -> Numbers:
        """-phi(value) - phi'(value) (V - value): what a direction of this eigenvalue adds to D - tr phi(F).

        It is infinite where the eigenvalue is 0, the second moment V is not, and phi'(0) is infinite.
        """
        phi, slope = (f(jnp.zeros([], V.dtype)) for f in (self.phi, self.slope))
        steep = ~jnp.isfinite(slope)
        # Neither branch may hold inf - inf, 0 inf or their derivatives, as both are differentiated.
        at_zero = jnp.where(steep & (V > 0), jnp.inf, -phi - jnp.where(steep, 0, slope) * V)
        inside = jnp.where(value == 0, 1, value)
        return jnp.where(value == 0, at_zero, -self.phi(inside) - self.slope(inside) * (V - inside))


@dataclass(frozen=True)
class Beta(Divergence):
    """phi = x^b / (b (b - 1)), and its limits -log x at b = 0 and x log x - x at b = 1: every divergence of a degree.

    A larger b weighs large eigenvalues more. `Frobenius`, `VonNeumann` and `LogDet` are b = 2, 1 and 0 by name.

    Args:
        b: the degree of the divergence, any real number.

    Raises:
        TypeError: b is no Python or NumPy number: arrays and tracers cannot be compared at compile time.
        ValueError: b is not finite.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> V, value = jnp.array([4.0]), jnp.array([1.0])
        >>> [round(float(fl.Beta(b).between(V, value)[0]), 3) for b in (0.0, 1.0, 2.0)]  # 3 - log 4, 4 log 4 - 3, 9 / 2
        [1.614, 2.545, 4.5]
    """

    b: float

    def __post_init__(self) -> None:
        if not isinstance(self.b, Real):
            raise TypeError(f"Beta: b is a number, such as 0.5; got {self.b!r}. An array becomes one by float(b).")
        if not math.isfinite(self.b):
            raise ValueError(f"Beta: b is a finite number, such as 0.5; got {self.b}")

    @property
    def degree(self) -> float:
        return self.b

    def phi(self, x: Numbers) -> Numbers:
        if self.b == 0:
            return -jnp.log(x)
        if self.b == 1:
            return jax.scipy.special.xlogy(x, x) - x
        return x**self.b / (self.b * (self.b - 1))

    def slope(self, x: Numbers) -> Numbers:
        return jnp.log(x) if self.b == 1 else x ** (self.b - 1) / (self.b - 1)

    def curvature(self, x: Numbers) -> Numbers:
        return x ** (self.b - 2)


@dataclass(frozen=True)
class Frobenius(Divergence):
    """phi = x^2: D = ||F - F~||_F^2, the sense of the papers. RACS, the nearest Kronecker product.

    Examples:
        >>> import fimlens as fl
        >>> fl.Diagonal().divergence
        Frobenius()
    """

    @property
    def degree(self) -> float:
        return 2.0

    def phi(self, x: Numbers) -> Numbers:
        return x**2

    def slope(self, x: Numbers) -> Numbers:
        return 2 * x

    def curvature(self, x: Numbers) -> Numbers:
        return jnp.full_like(x, 2)

    def trace(self, fisher: Fisher, unit: Float[ArrayLike, ""] = 1.0) -> Float[Array, ""]:
        """||F / unit||^2, which needs no eigenvalues."""
        return fisher.norm_squared_in_units * (fisher.unit / unit) ** 2

    def between(self, V: Numbers, value: Numbers) -> Numbers:
        return (value - V) ** 2

    def excess(self, V: Numbers, value: Numbers) -> Numbers:
        return value * (value - 2 * V)


@dataclass(frozen=True)
class VonNeumann(Beta):
    """phi = x log x - x: D = tr(F log F - F log F~ - F + F~). Adafactor, Shampoo squared.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> float(fl.VonNeumann().phi(jnp.array(0.0)))  # finite, so that singular Fishers have a gap
        0.0
    """

    b: float = field(default=1.0, init=False, repr=False)


@dataclass(frozen=True)
class LogDet(Beta):
    """phi = -log x: D = tr(F F~^-1) - log det(F F~^-1) - mn, twice KL(N(0, F) || N(0, F~)). SinkGD, KL-Shampoo.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> float(fl.LogDet().phi(jnp.array(0.0)))  # singular Fishers are infinitely far from every member
        inf
    """

    b: float = field(default=0.0, init=False, repr=False)


FROBENIUS = Frobenius()  # the default of every question


def excess(blocks: list[EigenvalueBlock], divergence: Divergence) -> Float[Array, ""]:
    """D(F, F~) - tr phi(F), from the eigenvalue blocks of a member: what `fit` and `solve` minimise."""
    terms = [(divergence.excess(V, jnp.zeros_like(V) if value is None else value), c) for value, V, c in blocks]
    infinite = sum(jnp.sum(x == jnp.inf) for x, _ in terms) > 0  # V / lambda outweighs the log lambda of other directions
    return jnp.where(infinite, jnp.inf, sum((c * jnp.sum(x) for x, c in terms), start=jnp.zeros([])))


def require_divergence(call: str, divergence: object) -> None:
    """Refuse, in the name of the call, what is not a divergence, and one whose phi is not a number at 0."""
    if not isinstance(divergence, Divergence):
        raise TypeError(f"{call}: divergence is one such as fl.LogDet(); got {divergence!r}. Classes need ().")
    if divergence.degree is None and math.isnan(divergence.at_zero):  # structures are made where nothing may be computed yet
        raise ValueError(
            f"{call}: phi(0) of {divergence} is NaN. Let phi return its limit, which may be infinite, as "
            "jax.scipy.special.xlogy(x, x) does for x log x."
        )


def require_degree(call: str, divergence: object) -> None:
    """Refuse, in the name of the call, what is no divergence of a degree between 0 and 2: products have closed forms there."""
    require_divergence(call, divergence)
    if divergence.degree is None or not 0 <= divergence.degree <= 2:
        raise ValueError(
            f"{call}: the closed form of a product needs a divergence of a degree between 0 and 2, such as fl.Beta(0.5); "
            f"{divergence} has {'none' if divergence.degree is None else divergence.degree}. `fl.solve` takes any."
        )
