"""Bad input is refused with a message that names the call, the cause and the remedy."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fimlens as fl
from fimlens._validate import require_number
from fimlens.optimizers.full_chain import require_rate
from fimlens.solver.fit import require_structure_and_fisher
from fimlens.structures import EXAMPLES

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
    (lambda: fl.muon(0.1, beta=1.0), "muon: beta is a number, at least 0 and below 1; got 1.0"),
    (lambda: fl.muon(0.1, steps=-1), "muon: steps is a whole number, at least 1; got -1"),
    (lambda: fl.racs(0.1, beta=2.0), "racs: beta is a number"),
    (lambda: fl.racs(0.1, gamma=0.5), "racs: gamma is a number, at least 1; got 0.5"),
    (lambda: fl.racs(0.1, sweeps=0), "racs: sweeps is a whole number"),
    (lambda: fl.racs(0.1, eps=-1.0), "racs: eps is a number, at least 0"),
    (lambda: require_number("racs", "sweeps", 2.5, 1, whole=True), "whole number, at least 1; got 2.5"),
    (lambda: fl.galore(0.1, rank=0), "^galore: rank is a positive number"),
    (lambda: fl.fira(0.1, rank=0), "^fira: rank is a positive number"),
    (lambda: fl.apollo(0.1, rank=0), "^apollo: rank is a positive number"),
    (lambda: fl.alice(0.1, rank=0, leading=0), "^alice: rank is a positive number"),
    (lambda: fl.alice(0.1, rank=2, leading=1, b3=1.5), "b3 is a number, at least 0 and below 1"),
    (lambda: fl.Eigen(-0.5), "Eigen: b3 is a number"),
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


@pytest.mark.parametrize(
    "make", [lambda: SetByHand(2), OnlyAnnotated, lambda: OnlyAnnotated(3), OfOnlyAnnotated, ComparedAsItsBase, NotCompared]
)
def test_attributes_that_equality_would_ignore_are_refused(make):
    """Otherwise the second instance would run with the code compiled for the first."""
    with pytest.raises(TypeError, match=r": instances that differ in k would be equal.*field of a @dataclass\(frozen=True\)"):
        make()


@dataclass(frozen=True)
class Groups(fl.Spectrum):
    """One number for each of k groups of rows."""

    k: int
    claim: ClassVar[fl.Claim] = fl.Claim.EXACT

    def moments(self, V):
        return jnp.stack([group.mean() for group in jnp.array_split(V, self.k)])

    def project(self, moments):
        return moments

    def expand(self, coords, shape):
        sizes = jnp.array([len(group) for group in jnp.array_split(jnp.ones(shape[0]), self.k)])
        return jnp.repeat(coords, sizes, total_repeat_length=shape[0])[:, None]


def test_instances_that_differ_in_a_field_are_compiled_apart():
    assert [len(fl.fit(Groups(k), FISHER).coords) for k in (2, 3)] == [2, 3]


def test_whole_numbers_of_numpy_are_whole_numbers():
    """Calls the checks after construction: the type checker of the tests would refuse these arguments first."""
    fl.SubspaceIteration.__post_init__(SimpleNamespace(leading=np.int64(2), b3=0.9, switch="none"))
    fl.LowRank.__post_init__(SimpleNamespace(inner=fl.Diagonal(), rank=np.int64(2), complement=fl.Drop(), sides="short"))


def test_a_single_batch_and_complex_numbers_are_refused():
    for call in (fl.empirical_fisher, fl.minibatch_fisher):
        with pytest.raises(TypeError, match=r"iterable of batches.*one dict.*\[batch\]"):
            call(loss, W, BATCH)
    with pytest.raises(TypeError, match=r"iterable of batches.*\[batch\]"):
        fl.model_fisher(loss, W, BATCH["x"])
    for call in (fl.empirical_fisher, fl.minibatch_fisher, fl.model_fisher):
        with pytest.raises(TypeError) as caught:  # a tuple passes for two batches, until the loss takes one apart
            call(lambda W, batch: loss(W, {"x": batch[0], "y": batch["y"]}), W, (BATCH["x"], BATCH["y"]))
        assert "single batch as [batch]" in caught.value.__notes__[-1]
    with pytest.raises(TypeError, match=r"from_gradients: expected real numbers, got complex64"):
        fl.Fisher.from_gradients(G * 1j)
    with pytest.raises(TypeError, match=r"from_dense: expected real numbers"):
        fl.Fisher.from_dense(1j * np.eye(12), (3, 4))


@pytest.mark.parametrize("rate", [None, "0.1", (0.1,)])
def test_what_is_not_a_rate_is_refused(rate):
    """Calls the check that optimizers begin with: the type checker of the tests would refuse these arguments first."""
    with pytest.raises(TypeError, match="adam: learning_rate is a number, an array or a schedule"):
        require_rate("adam", "learning_rate", rate)
    with pytest.raises(TypeError, match="racs: adam_learning_rate is a number"):
        fl.racs(0.1, adam_learning_rate="0.1")


def test_full_chains_name_themselves_in_errors():
    with pytest.raises(TypeError, match=r"racs: got an unexpected keyword argument 'bata'\. Its arguments are .*beta"):
        fl.racs(0.1, bata=2)
    for dtype in (int, complex):
        for shape in ((3, 4), (3,)):
            with pytest.raises(TypeError, match="muon: parameter 'w' is of dtype"):
                fl.muon(0.1).init({"w": jnp.ones(shape, dtype)})


def test_traced_numbers_pass_the_checks_of_range():
    jax.eval_shape(lambda beta: fl.muon(0.1, beta=beta).init(W), jnp.float32(0.9))


def test_integers_become_floating_point():
    assert fl.Fisher.from_gradients(np.ones((2, 3, 4), int)).dtype == jnp.float32


def test_a_path_with_brackets_is_found():
    params = {"w[0]": jnp.ones((3, 2)), "w0": jnp.ones((3, 2))}
    fishers = fl.minibatch_fisher(lambda p, x: jnp.sum(x @ p["w[0]"]), params, [jnp.ones((4, 3))], matrices=["w[0]"])
    assert list(fishers) == ["w[0]"]


def test_an_empty_comparison_is_not_ok():
    assert not fl.Comparison("", "", (3, 4), (), {}).ok


def test_different_structures_print_differently():
    names = [fl.Blocks(fl.Rows(), 2), fl.Blocks(fl.Rows(), columns=2), fl.Rotated(fl.Rows(), "L"), fl.Rotated(fl.Rows())]
    assert [str(s) for s in names] == [
        "Blocks(Rows(), 2)",
        "Blocks(Rows(), columns=2)",
        "Rotated(Rows(), L)",
        "Rotated(Rows())",
    ]
    assert len({str(s) for s in EXAMPLES}) == len(EXAMPLES)


def test_types_are_checked_at_run_time_in_these_tests():
    with pytest.raises(TypeError, match="Type-check error"):
        fl.fit(fl.Rows, FISHER)


def test_updates_of_other_shapes_are_refused():
    tx = fl.scale_by_structure(fl.Rows())
    state = tx.init({"w": jnp.ones((3, 4))})
    with pytest.raises(ValueError, match="state that init made"):
        tx.update({"w": jnp.ones((4, 3))}, state)
    other = fl.scale_by_structure(fl.Rows()).init({"v": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="state that init made"):
        tx.update({"w": jnp.ones((3, 4))}, other)


@pytest.mark.parametrize("sides", ["short", "LR"])
def test_updates_of_other_shapes_are_refused_by_the_low_rank_ones(sides):
    tx = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, sides=sides, tracker=fl.SubspaceIteration(1)))
    state = tx.init({"w": jnp.ones((3, 4))})
    for shape in ((4, 3), (2, 3, 4), (3, 5)):
        with pytest.raises(ValueError, match=r"scale_by_low_rank: .*state that init made"):
            tx.update({"w": jnp.ones(shape)}, state)
    with jax.enable_x64(True), pytest.raises(ValueError, match="state that init made"):
        tx.update({"w": jnp.ones((3, 4), jnp.float64)}, state)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (1, 1)])
def test_matrices_of_one_row_or_column_are_supported(shape):
    fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(1), (6, *shape)))
    for structure in (
        fl.Diagonal(),
        fl.RowColumn(),
        fl.Rotated(fl.Diagonal(), "LR"),
        fl.Kronecker(),
        fl.LowRank(fl.Diagonal(), 1),
    ):
        assert jnp.isfinite(fl.gap(structure, fl.fit(structure, fisher), fisher).total)
    with pytest.raises(ValueError, match="at most 1"):
        fl.fit(fl.LowRank(fl.Diagonal(), 2), fisher)
