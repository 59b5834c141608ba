"""NorMuon, SOAP-Muon and Alice-Muon: polar factors with neurons of one size, and of the updates of SOAP and Alice."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_number
from fimlens.optimizers.alice import scale_by_alice
from fimlens.optimizers.docstrings import takes_over
from fimlens.optimizers.eigenbasis import scale_by_soap
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Columns
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.momentum import average_updates, compute_in_float32
from fimlens.transforms.norms import with_norms_kept
from fimlens.transforms.orthogonalize import Coefficients, orthogonalize, scale_by_shape
from fimlens.transforms.structure_transform import scale_by_structure


def scale_by_normuon(
    *,
    beta: Number = 0.95,
    b2: Number = 0.95,
    nesterov: bool = True,
    steps: Whole = 5,
    coefficients: Coefficients = "jordan",
    scale: str = "width",
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """NorMuon (Li et al., 2025): Muon's polar factor, with neurons of one size. Use it in place of `muon`.

    The polar factor O of the momentum is divided by the root of an average over steps of each neuron's mean of O^2, and brought
    back to ||O||. This is `fl.Columns()` of the polar factor: in x @ W, of shape inputs x outputs, a neuron is a column. State:
    m n + n, the momentum and a number for each neuron.

    Defaults are those of the authors' code. Their paper has no Nesterov momentum, and gives each update a root mean square of
    0.2, as `nesterov=False` and `scale="rms"` do here.

    Args:
        beta: decay of the momentum. Default: 0.95, as in Li et al.
        b2: decay of the neurons' second moments. Default: 0.95, as in Li et al.
        nesterov: whether the momentum looks one step ahead. Default: True, as in the authors' code.
        steps: number of Newton-Schulz iterations. Default: 5, as in Li et al.
        coefficients: those of the iterations: "jordan", "polar-express" or numbers; see `fl.orthogonalize`. Default: "jordan",
            as in Li et al.
        scale: scale by the matrix's shape; see `fl.scale_by_muon`. Default: "width", as in the authors' code.
        eps: number added to the norm that the iteration divides by, and to the root of each second moment. Default: 1e-8.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, the weights' dtype for the
            momentum and float32 at least for the second moments.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> momentum, _, neurons, _ = fl.scale_by_normuon().init(jnp.ones((3, 4)))
        >>> momentum.momentum.shape, jax.tree.leaves(neurons.averaged)[0].shape
        ((3, 4), (1, 4))
    """
    require_number("normuon", "beta", beta, 0, below=1)
    require_number("normuon", "steps", steps, 1, whole=True)
    require_number("normuon", "eps", eps, 0)
    dtypes = state_dtypes(dtypes)
    momentum = average_updates(beta, nesterov=nesterov, dtype=dtypes.momentum)
    neurons = with_norms_kept(scale_by_structure(Columns(), b1=None, b2=b2, eps=eps, dtypes=dtypes))
    return compute_in_float32(optax.chain(momentum, orthogonalize(steps, coefficients, eps), neurons, scale_by_shape(scale)))


def scale_by_soap_muon(
    *,
    b1: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    max_basis_dim: Whole | None = 10_000,
    steps: Whole = 5,
    coefficients: Coefficients = "jordan",
    scale: str = "width",
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """SOAP-Muon: the polar factor of SOAP's update. Use it where `soap` suits, for steps of one size in all directions.

    It is `fl.scale_by_soap`, and after it `fl.orthogonalize`, with SOAP's family and state: 2 m n + 2 m^2 + 2 n^2. Public code
    brings SOAP's update to the norm of the momentum in between; the polar factor does not depend on that. The first step only
    starts the bases and moves nothing, as in SOAP.

    Args:
        b1: decay of the momentum. Default: 0.95, as in SOAP.
        b2: decay of the second moments, and of the covariances that the bases follow. Default: 0.95, as in SOAP.
        eps: number added to the root of each second moment. Default: 1e-8, as in SOAP.
        update_interval: steps between refreshes of the bases, the first at the first step. Default: 10, as in SOAP.
        max_basis_dim: a side longer than this is not rotated, such as the vocabulary of a head. Default: 10000, as in
            SOAP's code; None for no limit.
        steps: number of Newton-Schulz iterations. Default: 5, as in Muon.
        coefficients: those of the iterations: "jordan", "polar-express" or numbers; see `fl.orthogonalize`. Default: "jordan".
        scale: scale by the matrix's shape; see `fl.scale_by_muon`. Default: "width", as in Muon.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, G = fl.scale_by_soap_muon(coefficients="polar-express"), jnp.array([[1.0, 2.0], [3.0, -4.0]])
        >>> state = tx.init(G)
        >>> for _ in range(2):
        ...     updates, state = tx.update(G, state)
        >>> print(jnp.linalg.svd(updates)[1].round(1))  # of one size, which Newton-Schulz brings near 1
        [1.1 1.1]
    """
    require_number("soap_muon", "steps", steps, 1, whole=True)
    soap = scale_by_soap(b1=b1, b2=b2, eps=eps, update_interval=update_interval, max_basis_dim=max_basis_dim, dtypes=dtypes)
    return compute_in_float32(optax.chain(soap, orthogonalize(steps, coefficients, eps=0.0), scale_by_shape(scale)))


@takes_over(scale_by_alice, without=("alpha", "gamma"))
def scale_by_alice_muon(
    *, steps: Whole = 5, coefficients: Coefficients = "jordan", scale: str = "rms", **options: Any
) -> Transform:
    """Alice-Muon: the polar factor of Alice's update. Use it for Muon's loss at Alice's memory.

    It is `fl.scale_by_alice` without a limiter, and after it `fl.orthogonalize`, with Alice's family and state: 2 n r + m r +
    n + r^2 with r = rank. No paper has it: a search among changes of Alice found it (benchmarks/README.md). The polar factor
    forgets the size of an update, so there is no alpha, and training did not need the limiter of the compensation. A step costs
    Muon's products beside Alice's.

    Args:
        alpha_c: factor of the compensation, relative to the lead. Default: 0.4, as in Alice.
        moments: what a refresh does to momentum, second moments and Q~: "keep" them as if the basis had not moved, "rotate"
            them into the new basis, or "reset" them to zero. Default: "reset", as in `alice`; the others were not tried.
        steps: number of Newton-Schulz iterations. Default: 5, as in Muon.
        coefficients: those of the iterations: "jordan", "polar-express" or numbers; see `fl.orthogonalize`. Default: "jordan".
        scale: scale by the matrix's shape; see `fl.scale_by_muon`. Default: "rms", for updates about as large as Alice's.

    Raises:
        TypeError: as `scale_by_alice`.
        ValueError: as `scale_by_alice`; or steps, coefficients or scale is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, G = fl.scale_by_alice_muon(rank=1, leading=1), jnp.array([[9.0, 0.0], [0.0, -0.1]])
        >>> updates, _ = tx.update(G, tx.init(G))
        >>> print(jnp.linalg.svd(updates)[1].round(1))  # of one size, in the subspace and outside it
        [0.2 0.2]
    """
    require_number("alice_muon", "steps", steps, 1, whole=True)
    alice = scale_by_alice(alpha=1.0, gamma=None, **options)
    return compute_in_float32(optax.chain(alice, orthogonalize(steps, coefficients, eps=0.0), scale_by_shape(scale)))


normuon = full_chain(scale_by_normuon)


soap_muon = full_chain(scale_by_soap_muon)


alice_muon = full_chain(scale_by_alice_muon, adam_factor=0.3)
