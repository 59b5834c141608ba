"""The named optimizers: each a structure, and what stands around it in the chain.

A bare name is the full chain, learning rate first, as in Optax; `scale_by_*` is the direction alone. State is counted in
elements for an m x n matrix, r = min(m, n), beside counters, keys and one number a matrix for a limiter. "[G]" is Gong et
al. 2025 (arXiv 2502.07752), "[D]" Nguyen et al. 2025 (arXiv 2502.07488).
"""

from collections.abc import Callable
from typing import Any

import optax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Int

from fimlens._require import require_number
from fimlens.chain import (
    average_updates,
    clip_by_rms,
    guarded_adam,
    keeping_dtypes,
    limit_norm_growth,
    orthogonalize,
    over_longer_side,
    scale_by_shape,
    scale_by_trust_ratio,
    scale_by_weight_rms,
    shorter_side_first,
    standardize_rows,
)
from fimlens.full_chain import Number, Rate, Transform, decayed, full_chain, require_rate
from fimlens.structure import Structure
from fimlens.structures import (
    Diagonal,
    Eigen,
    GeometricMarginals,
    Marginals,
    PowerStep,
    Rotated,
    RowColumn,
    Rows,
    Scalar,
    Singular,
)
from fimlens.transform import scale_by_structure

Whole = Int[ArrayLike, ""]


# --- of every leaf --------------------------------------------------------------------------------------------


def sgd(
    learning_rate: Rate,
    *,
    momentum: Number | None = None,
    nesterov: bool = False,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
) -> Transform:
    """Gradient descent: H = {c I}, its c left to the learning rate. `optax.sgd`, with decay.

    State: nothing; m n with momentum. There is no eps: nothing is divided by.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> tx, w = fl.sgd(0.5, momentum=0.5), jnp.array([4.0, 8.0])
        >>> state = tx.init(w)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.ones(2), state)
        ...     w = optax.apply_updates(w, updates)
        >>> w.tolist()  # 1 and 1.5 times the rate
        [2.75, 6.75]
    """
    require_rate("sgd", "learning_rate", learning_rate)
    averaged = [] if momentum is None else [keeping_dtypes(optax.trace(momentum, nesterov, momentum_dtype))]
    return optax.chain(*averaged, *decayed(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """Adam (Kingma and Ba, 2015): H = {Diag(v)}, EXACT, v = E[g^2] ([G] Proposition 1). `optax.adam`.

    State: 2 m n, momentum and v, in float32 by default whatever the weights are.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, w = fl.adam(1e-3), jnp.ones((1, 2))
        >>> updates, state = tx.update(jnp.array([[4.0, -0.1]]), tx.init(w))
        >>> [f"{u:.4f}" for u in updates[0]]  # a first step is the rate, against the gradient's sign
        ['-0.0010', '0.0010']
        >>> state[0].momentum.shape, state[0].averaged.shape
        ((1, 2), (1, 2))
    """
    require_rate("adam", "learning_rate", learning_rate)
    direction = scale_by_structure(
        Diagonal(), b1=b1, b2=b2, eps=eps, momentum_dtype=momentum_dtype, second_moment_dtype=second_moment_dtype
    )
    return optax.chain(direction, *decayed(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 1e-4,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """`adam` with decoupled weight decay (Loshchilov and Hutter, 2019). `optax.adamw`.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
        >>> tx = fl.adamw(0.5, weight_decay=0.25, mask={"kernel": True, "bias": False})
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> updates["kernel"].tolist(), bool((updates["bias"] == 0).all())  # with no gradient the decay is left
        ([[-0.125, -0.125]], True)
    """
    require_rate("adamw", "learning_rate", learning_rate)
    return adam(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        mask=mask,
        momentum_dtype=momentum_dtype,
        second_moment_dtype=second_moment_dtype,
    )


def adafactor(
    learning_rate: Rate,
    *,
    decay_rate: Number = 0.8,
    clipping_threshold: Number | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    momentum: Number | None = None,
    eps: Number = 0.0,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """Adafactor (Shazeer and Stern, 2018): H = {Diag(s) (x) Diag(q)}, OTHER: r c^T / mean is nearest in generalised KL.

    State: m + n (a vector: its length); m n more with momentum. `optax.adafactor(min_dim_size_to_factor=1)`, but that
    its eps = 1e-30 is added to every g^2 and here eps, 0 by default, to the root of each eigenvalue; it factors a leaf of
    three axes or more along its two largest, and clips and scales it whole; here each matrix is by itself.
    `weight_decay` is not times the rate, in Optax neither: what `adamw` calls w is here w times the rate.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state = fl.adafactor(1e-2).init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state[0].averaged)]  # row and column means in place of 3 x 4
        [(3, 1), (1, 4)]
    """
    require_rate("adafactor", "learning_rate", learning_rate)
    direction = scale_by_structure(
        Marginals(), b1=None, b2=lambda t: 1 - t**-decay_rate, eps=eps, second_moment_dtype=second_moment_dtype
    )
    steps = [direction]
    if clipping_threshold is not None:
        steps.append(clip_by_rms(clipping_threshold))
    steps.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        steps.append(scale_by_weight_rms())
    if momentum is not None:
        steps.append(keeping_dtypes(optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype)))
    return optax.chain(*steps, *decayed(weight_decay, mask), optax.scale(-1))


def lars(
    learning_rate: Rate,
    *,
    momentum: Number = 0.9,
    nesterov: bool = False,
    trust_coefficient: Number = 0.001,
    eps: Number = 0.0,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
) -> Transform:
    """LARS (You et al., 2017): H = {c I}, EXACT for the current gradient, c = ||G||^2 / (m n); then times ||W||.

    State: m n, the momentum. `optax.lars`, matrix by matrix where that takes leaf by leaf; where ||W|| is zero the update is
    G / sqrt(c), and in Optax G.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> w = jnp.array([[3.0, 4.0]])
        >>> tx = fl.lars(2.0, trust_coefficient=0.001)
        >>> updates, _ = tx.update(jnp.array([[0.0, 100.0]]), tx.init(w), w)
        >>> print(f"{jnp.linalg.norm(updates):.4f}")  # 2 x 0.001 x ||w||, whatever the gradient's norm
        0.0100
    """
    require_rate("lars", "learning_rate", learning_rate)
    return optax.chain(
        *decayed(weight_decay, mask),
        scale_by_structure(Scalar(), b1=None, b2=None, eps=eps),
        scale_by_trust_ratio(trust_coefficient),
        optax.scale_by_learning_rate(learning_rate),
        keeping_dtypes(optax.trace(momentum, nesterov, momentum_dtype)),
    )


def lamb(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """LAMB (You et al., 2020): Adam's H = {Diag(v)}, EXACT; then a trust ratio for each matrix. `optax.lamb`.

    State: 2 m n. Optax takes the ratio leaf by leaf; for leaves of up to two axes the two are one.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> w = jnp.array([[3.0, 4.0]])
        >>> tx = fl.lamb(0.01)
        >>> updates, _ = tx.update(jnp.array([[1.0, 100.0]]), tx.init(w), w)
        >>> print(f"{jnp.linalg.norm(updates):.4f}")  # the rate times ||w||
        0.0500
    """
    require_rate("lamb", "learning_rate", learning_rate)
    direction = scale_by_structure(
        Diagonal(), b1=b1, b2=b2, eps=eps, momentum_dtype=momentum_dtype, second_moment_dtype=second_moment_dtype
    )
    rate = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(direction, *decayed(weight_decay, mask), scale_by_trust_ratio(), rate)


# --- of matrices ----------------------------------------------------------------------------------------------


def scale_by_muon(
    *,
    beta: Number = 0.95,
    nesterov: bool = True,
    root: str = "newton-schulz",
    steps: Whole = 5,
    scale: str = "width",
    eps: Number = 1e-8,
    momentum_dtype: DTypeLike | None = None,
) -> Transform:
    """Muon (Jordan, 2024): H = {I (x) M}, EXACT for the momentum alone, M = E[GG^T] / n ([G] Proposition 2).

    State: m n, the momentum. `root` is "newton-schulz", as in `optax.contrib.muon`, whose trajectory this follows, and only
    near that root; or "exact", the polar factor itself, which is the one that the lens judges, and has no use for `steps` and
    `eps`. `scale`: see `scale_by_shape`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_muon(scale="rms", momentum_dtype=jnp.bfloat16)  # updates about as large as Adam's
        >>> momentum = tx.init(jnp.ones((3, 4)))[0].momentum  # all that is kept
        >>> momentum.shape, momentum.dtype.name
        ((3, 4), 'bfloat16')
    """
    require_number("muon", "beta", beta, 0, below=1)
    require_number("muon", "steps", steps, 1, whole=True)
    require_number("muon", "eps", eps, 0)
    roots = {"newton-schulz": orthogonalize(steps, eps=eps), "exact": optax.chain(whiten(), over_longer_side())}
    if root not in roots:
        raise ValueError(f"muon: root is one of {', '.join(map(repr, roots))}; got {root!r}")
    return optax.chain(average_updates(beta, nesterov=nesterov, dtype=momentum_dtype), roots[root], scale_by_shape(scale))


def scale_by_swan(*, eps: Number = 1e-8) -> Transform:
    """SWAN (Ma et al., 2024): rows standardised, then whitened: H = {I (x) M}, EXACT for what the standardisation leaves.

    State: nothing. Rows are those of the matrix as given (of x @ W one for each input); only the whitening has the shorter
    side first. It is the exact root, with [G]'s factor, the root of the longer side. eps, of the standardisation, is relative
    to the largest entry of its row.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> tx = optax.chain(fl.matrices(fl.scale_by_swan()), optax.scale_by_learning_rate(1e-3))
        >>> jax.tree.leaves(tx.init({"kernel": jnp.ones((3, 4))})[0].inner_states["method"])  # nothing is kept
        []
    """
    return optax.chain(standardize_rows(eps), whiten())


def whiten() -> Transform:
    """The longer side's root times the polar factor: Mat(F~^{-1/2} Vec(G)), F~ nearest to the current gradient's Fisher.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, G = fl.whiten(), jnp.array([[3.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
        >>> updates, _ = tx.update(G, tx.init(G))
        >>> print(jnp.abs(updates).round())  # the root of the longer side, and singular values of 1 for 3 and 5
        [[2. 0. 0. 0.]
         [0. 2. 0. 0.]]
    """
    return shorter_side_first(scale_by_structure(Rotated(Rows(), "L", Singular()), b1=None, b2=None, eps=0.0))


def scale_by_shampoo(
    *,
    b1: Number | None = None,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    bias_correction: bool = True,
    momentum_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """Shampoo (Gupta et al., 2018): H = {R^{1/2} (x) L^{1/2}}, a BOUND; L^{-1/4} G R^{-1/4}, L = E[GG^T]/n, R = E[G^T G]/m.

    The minimiser of [G] Theorem 3.1's upper bound, not the nearest Kronecker product. State: m^2 + n^2, the factors; as
    much again for their cached roots (bases, and m + n eigenvalues); m n with momentum (`b1`). With b2 = 1 the factors are
    sums, as published; below, averages. Every `update_interval` steps the bases are found anew; between, the eigenvalues
    go on in them (diag U^T L U), where published codes keep stale roots: at an interval of 1 the two are one. eps is
    added to the root of each eigenvalue of F~, where Gupta et al. start L and R at eps I.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_shampoo(update_interval=20).init(jnp.ones((3, 4)))
        >>> factors, bases = state.averaged["3 x 4"], state.frame["3 x 4"].bases
        >>> factors.left.shape, factors.right.shape, bases.left.shape, bases.right.shape
        ((1, 3, 3), (1, 4, 4), (1, 3, 3), (1, 4, 4))
    """
    return scale_by_structure(
        Rotated(GeometricMarginals(), "LR"),
        b1=b1,
        b2=b2,
        eps=eps,
        update_interval=update_interval,
        bias_correction=bias_correction,
        momentum_dtype=momentum_dtype,
        second_moment_dtype=factor_dtype,
        factor_dtype=factor_dtype,
    )


def _soap(call: str, sides: str, refresh: str, **options: Any) -> Transform:
    trackers = {"eigh": Eigen(), "qr": PowerStep()}
    if refresh not in trackers:
        raise ValueError(f"{call}: refresh is one of {', '.join(map(repr, trackers))}; got {refresh!r}")
    return scale_by_structure(Rotated(Diagonal(), sides, trackers[refresh]), momentum="rotated", **options)


def scale_by_soap(
    *,
    b1: Number = 0.95,
    b2: Number = 0.95,
    b3: Number | None = None,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    refresh: str = "qr",
    turn: str = "after",
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """SOAP (Vyas et al., 2024, Algorithm 3): H = {(U_R (x) U_L) D (U_R (x) U_L)^T}, ONE_STEP ([G] Theorem 3.3).

    State: 2 m n + 2 m^2 + 2 n^2: momentum, second moments in the basis, covariances, bases. The momentum is kept as
    coordinates and carried along as the basis turns: the publication's, without rotating it at every step. `refresh` is
    "qr", one power step as published, or "eigh"; the first basis is always by eigh. `turn` is "after" the update, as
    published, when the first step only starts the basis and moves nothing; or "before" it, as in [G]. `b3`, of the
    covariances, is b2 by default. Repaired: the gauge of every basis vector is fixed, and coordinates at rounding get no
    update, so that arbitrary null-space vectors move nothing; eps stands beside the bias-corrected root, as in Adam.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_soap(refresh="eigh", turn="before")  # as in [G]; neither is the default
        >>> state = tx.init(jnp.ones((3, 4)))
        >>> sum(x.size for x in jax.tree.leaves((state.frame, state.averaged, state.momentum)))  # 2 m n + 2 m^2 + 2 n^2
        74
    """
    return _soap("soap", "LR", **locals())


def scale_by_osoap(
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    b3: Number | None = None,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    refresh: str = "eigh",
    turn: str = "before",
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """One-sided SOAP, [G]'s Eigen-Adam: H = {DiagB(U D_j U^T)}, ONE_STEP ([G] Theorem 3.2), U of the shorter side.

    State: 2 m n + 2 r^2. Options as `soap`'s, with [G]'s order: the basis turns before the update.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_osoap().init([jnp.ones((3, 4)), jnp.ones((4, 3))])
        >>> state.frame["3 x 4"].bases.left.shape, state.frame["4 x 3"].bases.right.shape  # the shorter side's alone
        ((1, 3, 3), (1, 3, 3))
    """
    return _soap("osoap", "short", **locals())


def scale_by_racs(
    *,
    beta: Number = 0.9,
    alpha: Number = 0.05,
    gamma: Number = 1.01,
    sweeps: Whole = 5,
    eps: Number = 0.0,
    bias_correction: bool = False,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """RACS ([G] Algorithm 1): H = {S (x) Q}, both diagonal, LIMIT: the fixed point is E[G^2]'s best rank one (Proposition 3).

    State: m + n and the limiter's one: row and column factors by `sweeps` from q = 1, averaged by beta. [G]'s rate is
    0.02. Matrices with m > n are swept transposed, as [G] has m <= n. `bias_correction` is an option that the print lacks:
    its first update is 1/(1-beta) too large; yet without it a small language model ended 0.004 to 0.024 nats a byte lower, in
    each of six pairs of runs (benchmarks/README.md), so it is off. Repaired: a zero last update does not freeze a matrix; no
    sum of squares within the sweeps leaves float32.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state, *_ = fl.scale_by_racs().init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state.averaged)], state.momentum  # row and column factors, and no momentum
        ([(3, 1), (1, 4)], None)
    """
    require_number("racs", "beta", beta, 0, below=1)
    require_number("racs", "gamma", gamma, 1)
    require_number("racs", "sweeps", sweeps, 1, whole=True)
    require_number("racs", "eps", eps, 0)
    direction = scale_by_structure(
        RowColumn(sweeps),
        b1=None,
        b2=beta,
        eps=eps,
        average="fits",
        bias_correction=bias_correction,
        second_moment_dtype=second_moment_dtype,
    )
    return optax.chain(direction, limit_norm_growth(gamma), optax.scale(alpha))


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


# --- the full chains of those ---------------------------------------------------------------------------------

muon = full_chain(scale_by_muon, adam=guarded_adam(nesterov=True))  # as Optax's Muon
swan = full_chain(scale_by_swan)
shampoo = full_chain(scale_by_shampoo)
soap = full_chain(scale_by_soap)
osoap = full_chain(scale_by_osoap)
racs = full_chain(scale_by_racs, adam_factor=0.5)
adadiag = full_chain(scale_by_adadiag)
adadiag_pp = full_chain(scale_by_adadiag_pp)
adafacdiag = full_chain(scale_by_adafacdiag)
