"""Bad input is refused with a message that names the call, the cause and the remedy."""

import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fimlens as fl
from fimlens._validate import require_decay, require_number, require_size
from fimlens.costs.flops import step_flops
from fimlens.costs.memory import account
from fimlens.solver.fit import require_structure_and_fisher
from fimlens.structures.trackers import require_tracker

G = jax.random.normal(jax.random.key(0), (5, 3, 4))
FISHER = fl.Fisher.from_gradients(G)
BIG = fl.Fisher.from_gradients(jnp.ones((1, 200, 300)))
BATCH = {"x": jnp.ones((4, 3)), "y": jnp.zeros((4, 2))}


def loss(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def broken(params, batch):
    raise NotImplementedError


class Flat(fl.Spectrum):
    """Means of rows without their second axis: for a square matrix they would be read as means of columns."""

    claim = fl.Claim.EXACT

    def moments(self, V):
        return V.mean(1)

    def project(self, moments):
        return moments

    def expand(self, coords, shape):
        return coords


W = {"w": jnp.ones((3, 2))}
REFUSED = [
    (lambda: fl.Fisher.from_gradients(G.at[2, 0, 0].set(jnp.nan)), "1 of 5 gradients are not finite.*number 2.*Drop them"),
    (lambda: fl.Fisher.from_gradients(G[0]), r"expected N > 0 gradients.*\(3, 4\).*G\[None\]"),
    (lambda: fl.Fisher.from_gradients(G[:0]), "N > 0"),
    (lambda: fl.Fisher.from_dense(np.eye(12), shape=(3, 5)), "a 3 x 5 matrix has an F of shape"),
    (lambda: fl.Fisher.from_dense(np.diag([1.0, -1.0]), shape=(1, 2)), "indefinite.*project your matrix"),
    (lambda: fl.Fisher.from_dense(np.triu(np.ones((2, 2))), shape=(1, 2)), "not symmetric"),
    (lambda: fl.Fisher.from_dense(np.full((2, 2), np.nan), shape=(1, 2)), "not finite"),
    (lambda: FISHER.dense(max_bytes=100), "over the bound.*sample form"),
    (lambda: fl.Fisher.from_gradients(jnp.ones((1, 512, 512))).dense(), "over the bound"),
    (lambda: fl.fit(fl.Dense(), fl.Fisher.from_gradients(jnp.ones((1, 512, 512)))), "over the bound.*smaller matrix"),
    (lambda: fl.gap(fl.Rows(), fl.fit(fl.Rows(), FISHER), fl.Fisher.from_gradients(G[:, :2])), "Fit it to this Fisher"),
    (lambda: fl.gap(fl.Rows(), fl.fit(fl.Columns(), FISHER), FISHER), r"not one of Rows\(\).*it was fitted with"),
    (lambda: fl.gap(fl.Rotated(fl.Rows(), "L"), fl.fit(fl.Rows(), FISHER), FISHER), "not one of Rotated"),
    (lambda: fl.solve(fl.Rows(), FISHER, starts=-1), "starts counts random members"),
    (lambda: fl.solve(fl.Rows(), BIG), "^solve: .*200 x 300.*smaller matrix"),
    (lambda: fl.dimension(fl.Rows(), (200, 300)), "^dimension: .*smaller matrix"),
    (lambda: fl.gap(Flat(), fl.fit(Flat(), FISHER), FISHER), r"^Flat\(\): expand gave.*shape \(3,\).*3 x 4.*keepdims=True"),
    (lambda: Flat().dense(fl.fit(Flat(), FISHER)), r"expand gave eigenvalues of shape \(3,\)"),
    (lambda: fl.compare([], FISHER), "no structures"),
    (lambda: fl.compare([fl.Rows(), fl.Rows()], FISHER), "two structures are named Rows.*Give them names"),
    (lambda: fl.check(fl.Rows(), shapes=[]), "shapes is empty.*Leave it out"),
    (lambda: fl.check(fl.Rows(), laws=[]), "laws is empty"),
    (lambda: fl.Rotated(fl.Diagonal(), "left"), "sides is one of"),
    (lambda: fl.LowRank(fl.Diagonal(), 0), "rank is a positive number"),
    (lambda: fl.LowRank(fl.Diagonal(), 2, fl.Rows()), "complement is"),
    (lambda: fl.fit(fl.LowRank(fl.Diagonal(), 4), FISHER), "rank 4 is over the shorter side.*at most 3"),
    (lambda: fl.Blocks(fl.Rows(), columns=0), "positive"),
    (lambda: fl.fit(fl.Blocks(fl.Rows(), columns=3), FISHER), "no grid of 1 x 3.*divide"),
    (lambda: fl.check(fl.Rows(), laws=["gravity"]), "no law 'gravity'.*The laws are"),
    (lambda: fl.check(fl.Blocks(fl.Rows(), columns=5)), "accepts none of.*give shapes"),
    (lambda: fl.state_size(fl.Rows(), (3, 4), average="both"), "statistics"),
    (lambda: fl.scale_by_structure(fl.Rows(), momentum="both"), "momentum is"),
    (lambda: fl.scale_by_structure(fl.Rows(), average="both"), "average is"),
    (lambda: fl.scale_by_structure(fl.Rows(), update_interval=0), "at least 1, or None"),
    (lambda: fl.scale_by_structure(fl.LowRank(fl.Diagonal(), 2)).init({"a": {"b": jnp.ones(3)}}), "parameter 'a/b'.*Route it"),
    (lambda: account(W, ["adma"]), r"^account: there is no optimizer 'adma'\. Is it 'adam'\? There are sgd"),
    (lambda: fl.muon(0.1, beta=1.0), "muon: beta is a number, at least 0 and below 1; got 1.0"),
    (lambda: fl.muon(0.1, steps=-1), "muon: steps is a whole number, at least 1; got -1"),
    (lambda: fl.muon(0.1, coefficients="quintic"), "coefficients are 'jordan', 'polar-express', .*got 'quintic'"),
    (lambda: fl.orthogonalize(coefficients=[(1.0, 2.0)]), r"coefficients are .*got \[\(1.0, 2.0\)\]"),
    (lambda: fl.orthogonalize(steps=0), "orthogonalize: steps is a whole number, at least 1; got 0"),
    (lambda: fl.normuon(0.1, beta=1.0), "normuon: beta is a number, at least 0 and below 1; got 1.0"),
    (lambda: fl.normuon(0.1, b2=1.5), "scale_by_structure: the decay b2 is between 0 and 1"),
    (lambda: fl.soap_muon(0.1, steps=0), "soap_muon: steps is a whole number, at least 1; got 0"),
    (lambda: fl.racs(0.1, beta=2.0), "racs: beta is a number"),
    (lambda: fl.racs(0.1, gamma=0.5), "racs: gamma is a number, at least 1; got 0.5"),
    (lambda: fl.racs(0.1, sweeps=0), "racs: sweeps is a whole number"),
    (lambda: fl.racs(0.1, eps=-1.0), "racs: eps is a number, at least 0"),
    (lambda: fl.racs(0.1, divergence=fl.Beta(3.0)), "racs: the closed form of a product needs a divergence of a degree"),
    (lambda: fl.Marginals(fl.Beta(-1.0)), "Marginals: the closed form of a product needs a divergence of a degree"),
    (lambda: fl.sinkgd(0.1, sweeps=0), "sinkgd: sweeps is a whole number"),
    (lambda: fl.aro(0.1, inner=fl.Rotated(fl.Rows(), "L")), "scale_in_turning_basis: .* has bases of its own"),
    (lambda: fl.kl_shampoo(0.1, clamp=0.0), "kl_shampoo: clamp is a number, at least 1; got 0.0"),
    (lambda: fl.kl_soap(0.1, b2=1.5), "scale_by_structure: the decay b2 is between 0 and 1"),
    (lambda: require_number("racs", "sweeps", "5", 1, whole=True), "sweeps is a whole number, at least 1; got '5'"),
    (lambda: require_number("racs", "sweeps", np.int64(0), 1, whole=True), "sweeps is a whole number, at least 1; got .*0"),
    (lambda: require_decay("soap", "b2", np.float32(1.5)), "soap: the decay b2 is between 0 and 1; got 1.5"),
    (lambda: require_size("monitor", "ring", np.int64(-1), least=0), "monitor: ring is a number, at least 0; got -1"),
    (lambda: fl.routes({"a": {"b": jnp.ones(3)}, "a/b": jnp.ones((2, 3))}), "routes: 2 parameters have the path 'a/b'"),
    (lambda: require_number("racs", "sweeps", 2.5, 1, whole=True), "whole number, at least 1; got 2.5"),
    (lambda: fl.galore(0.1, rank=0), "^galore: rank is a positive number"),
    (lambda: fl.fira(0.1, rank=0), "^fira: rank is a positive number"),
    (lambda: fl.apollo(0.1, rank=0), "^apollo: rank is a positive number"),
    (lambda: fl.alice(0.1, rank=0, leading=0), "^alice: rank is a positive number"),
    (lambda: fl.alice(0.1, rank=2, leading=1, b3=1.5), "b3 is a number, at least 0 and below 1"),
    (lambda: fl.Eigen(-0.5), "Eigen: the decay b3 is between 0 and 1"),
    (lambda: fl.Rotated(fl.Diagonal(), "L", fl.RandomProjection()), "Rotated: bases must be orthonormal"),
    (
        lambda: fl.scale_by_structure(fl.LowRank(fl.Diagonal(), 2, tracker=fl.RandomProjection())),
        "scale_by_structure: bases must be orthonormal",
    ),
    (
        lambda: fl.scale_by_structure(fl.Rotated(fl.Rotated(fl.Diagonal(), "L", fl.Eigen(0.9)), "R", fl.Eigen(0.5))),
        "several decays b3",
    ),
    (lambda: fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, sides="LR"), lift=False), "lift=False scales columns alone"),
    (lambda: fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, fl.Drop()), lift=False), "lift=False scales columns alone"),
    (lambda: fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, sides="LR"), lift=0.5), "lift=0.5 scales columns alone"),
    (lambda: fl.fira(0.1, rank=2, alpha=-1.0), "scale_by_low_rank: lift is a number, at least 0"),
    (lambda: fl.alice(0.1, rank=2, leading=1, gamma=0.0), "scale_by_low_rank: gamma is a number, at least 1"),
    (lambda: fl.low_rank_soap(0.1, rank=2, leading=1, alpha_c=-1.0), "scale_by_low_rank: alpha_c is a number"),
    (lambda: fl.osoap(0.1, refresh="x"), "osoap: refresh is one of"),
    (lambda: fl.empirical_fisher(loss, {}, [BATCH]), "empty pytree.*model's parameters"),
    (lambda: fl.empirical_fisher(loss, {"b": jnp.ones(3)}, [BATCH]), "no parameter is a matrix"),
    (lambda: fl.empirical_fisher(loss, {"w": jnp.ones((3, 2))}, [BATCH], matrices=["v"]), "no matrix is named 'v'.*are w"),
    (lambda: fl.empirical_fisher(loss, {"w": jnp.ones((3, 2))}, []), "no batches.*used only once"),
    (lambda: fl.empirical_fisher(lambda p, b: b["x"] @ p["w"], {"w": jnp.ones((3, 2))}, [BATCH]), "must be one number.*mean"),
    (lambda: fl.minibatch_fisher(lambda p, b: b["x"] @ p["w"], {"w": jnp.ones((3, 2))}, [BATCH]), "must be one number"),
    (lambda: fl.empirical_fisher(loss, {"w": jnp.full((3, 2), jnp.nan)}, [BATCH]), "matrix 'w'.*not finite"),
    (lambda: fl.empirical_fisher(loss, {"w": jnp.ones((3, 2))}, [BATCH], reduction="max"), "reduction is"),
    (lambda: fl.empirical_fisher(broken, W, [BATCH], reduction="avg"), "reduction is"),  # before the loss is called
    (lambda: fl.empirical_fisher(loss, W, [BATCH], matrices=()), "matrices is empty"),
    (lambda: fl.empirical_fisher(loss, {"a/b": W["w"], "a": {"b": W["w"]}}, [BATCH]), "2 parameters have the path 'a/b'"),
    (lambda: fl.empirical_fisher(loss, W, [BATCH | {"y": jnp.zeros((3, 2))}]), "share their leading axis"),
    (lambda: fl.empirical_fisher(loss, W, [BATCH | {"c": 1.0}]), "share their leading axis.*Leave constants"),
    (lambda: fl.model_fisher(loss, W, [jnp.ones((0, 3))]), "share their leading axis"),
    (lambda: fl.model_fisher(loss, {"w": jnp.ones((3, 2))}, [BATCH]), "logits must be.*empirical_fisher"),
    (lambda: fl.model_fisher(loss, {"w": jnp.ones((3, 2))}, [BATCH], labels="all"), "labels is"),
]


@pytest.mark.parametrize("k", range(len(REFUSED)))
def test_bad_values_are_refused(k):
    call, message = REFUSED[k]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


def test_bad_types_are_refused():
    """Calls the check that fit, gap, solve and compare begin with: the type checker of the tests would refuse these first."""
    with pytest.raises(TypeError, match=r"fit: .*Classes need"):
        require_structure_and_fisher("fit", fl.Rows, FISHER)
    with pytest.raises(TypeError, match=r"solve: .*from_gradients"):
        require_structure_and_fisher("solve", fl.Rows(), G)
    with pytest.raises(TypeError, match=r"monitor: ring is a whole number; got 2\.0"):
        require_size("monitor", "ring", 2.0, least=0)


@pytest.mark.parametrize(
    ("combinator", "fields", "message"),
    [
        (fl.Rotated, {"inner": fl.Diagonal}, r"Rotated: expected a structure.*Classes need \(\)"),
        (fl.Rotated, {"inner": "L"}, "Rotated: expected a structure"),
        (fl.Blocks, {"inner": fl.Rows}, "Blocks: expected a structure"),
        (fl.LowRank, {"inner": fl.Rows, "rank": 2}, "LowRank: expected a structure"),
        (fl.LowRank, {"inner": fl.Diagonal(), "rank": 2.5}, "rank is a whole number"),
    ],
)
def test_what_is_not_a_structure_or_a_rank_is_refused(combinator, fields, message):
    """Calls the check after construction: the type checker of the tests would refuse these arguments first."""
    with pytest.raises(TypeError, match=message):
        combinator.__post_init__(SimpleNamespace(**fields))


class SetByHand(fl.Rows):
    def __init__(self, k):
        self.k = k


class OnlyAnnotated(fl.Rows):
    k: int = 2


@dataclass(frozen=True)
class OfOnlyAnnotated(OnlyAnnotated):
    j: int = 2


@dataclass(frozen=True, eq=False)
class ComparedAsItsBase(fl.Rows):
    k: int = 2


@dataclass(frozen=True)
class NotCompared(fl.Rows):
    k: int = field(default=2, compare=False)


@pytest.mark.parametrize("given", [fl.adam, optax.adamw, 3, None])
@pytest.mark.parametrize(
    ("call", "take"),
    [
        ("monitor", fl.monitor),
        ("as_matrix", fl.as_matrix),
        ("matrices", fl.matrices),
        ("hyperball", fl.hyperball),
        ("step_flops", step_flops),
    ],
)
def test_what_is_no_transform_is_refused(call, take, given):
    """Calls the function itself: the type checker of the tests would refuse these arguments first."""
    remedy = rf"got the function {given.__name__}: call it" if callable(given) else rf"got {given}\."
    with pytest.raises(TypeError, match=f"{call}: tx is an optimizer or a transform .* {remedy}"):
        inspect.unwrap(take)(given, *[0.1] * (call in ("hyperball", "step_flops")))


def test_what_is_no_tracker_is_refused():
    with pytest.raises(TypeError, match="LowRank: expected a tracker such as"):
        require_tracker("LowRank", fl.Eigen)
