"""A structure, a tracker and an optimizer from outside: one class or function each, and everything else follows."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import typer
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from typer.testing import CliRunner

import fimlens as fl
from fimlens.cli.app import app
from fimlens.costs.flops import step_flops
from fimlens.costs.memory import account
from fimlens.linalg.decompositions import eigenbasis
from fimlens.optimizers.full_chain import full_chain


class Halves(fl.Spectrum):
    """One number for the upper half of the rows, one for the lower."""

    claim = fl.Claim.EXACT

    def moments(self, V):
        return [half.mean(keepdims=True) for half in jnp.array_split(V, 2)]

    def project(self, moments):
        return moments

    def expand(self, coords, shape):
        halves = jnp.array_split(jnp.ones((shape[0], 1)), 2)
        return jnp.concatenate([c * half for c, half in zip(coords, halves, strict=True)])


@dataclass(frozen=True)
class Lazy(fl.Tracker):
    """The eigenvectors of an average, but only at the first update."""

    b3: float = 0.9

    def observe(self, side, lead):
        return side.covariance()

    def update(self, average, kept, side, step):
        C = step.mix(average, side.covariance())
        return jax.lax.cond(step.first, lambda: eigenbasis(C, kept.shape[1]), lambda: kept)


def scale_by_lazy(*, rank=2, b1=0.9, b2=0.999, update_interval=2):
    """Adam in a subspace that is found once, and one number for each half of the lead.

    Args:
        rank: of the subspace.
        b1: decay of the momentum.
        b2: decay of the second moments.
        update_interval: steps between updates of the basis.
    """
    structure = fl.LowRank(Halves(), rank, tracker=Lazy())
    return fl.scale_by_low_rank(structure, b1=b1, b2=b2, update_interval=update_interval)


lazy = full_chain(scale_by_lazy)
WEIGHTS = {"w": jnp.ones((6, 8)), "tall": jnp.ones((8, 4)), "b": jnp.ones(8)}


def gradients(seed):
    return jax.tree.map(lambda x: jax.random.normal(jax.random.key(seed), x.shape), WEIGHTS)


def test_the_structure_keeps_the_laws_alone_and_inside_others():
    """Some of them: test_new_structure.py tries all on a structure of its kind."""
    assert fl.check(Halves(), shapes=[(3, 4)], laws=["update", "claim", "streaming"]).ok
    assert fl.check(fl.LowRank(Halves(), 2, tracker=Lazy()), shapes=[(4, 3)], laws=["isometry", "application", "gaps"]).ok


def test_the_tracker_serves_one_side_both_and_a_subspace():
    """Its basis is the eigenbasis of the first covariance, and stays there."""
    G = [jax.random.normal(jax.random.key(k), (4, 6)) for k in range(3)]
    first = np.asarray(eigenbasis(G[0] @ G[0].T))
    full = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR", Lazy()), update_interval=1)
    low = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, tracker=Lazy()), update_interval=1)
    for tx, basis in ((full, lambda s: s.bases["4 x 6"].left), (low, lambda s: s.stacks["4 x 6"].left.basis)):
        state = jax.jit(tx.init)(G[0])
        for g in G:
            _, state = jax.jit(tx.update)(g, state)
        U = np.asarray(basis(state)[0])
        np.testing.assert_allclose(U @ U.T, first[:, : U.shape[1]] @ first[:, : U.shape[1]].T, atol=1e-5)


def test_the_optimizer_trains_in_scan_and_keeps_its_dtypes():
    tx = lazy(0.1)

    def step(carry, seed):
        params, state = carry
        updates, state = tx.update(gradients(seed), state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda weights: jax.lax.scan(step, (weights, tx.init(weights)), jnp.arange(5))[0])
    params, state = train(WEIGHTS)
    assert all(np.isfinite(leaf).all() and not np.allclose(leaf, 1) for leaf in jax.tree.leaves(params))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, jax.eval_shape(tx.init, WEIGHTS))


def test_the_optimizer_is_sharded_counted_and_timed():
    specs = {"w": P("fsdp", None), "tall": P(None, None), "b": P()}
    sharded = fl.state_partition_specs(lazy(0.1), WEIGHTS, specs, mesh=AbstractMesh((2,), ("fsdp",)))
    assert jax.tree.structure(sharded) == jax.tree.structure(jax.eval_shape(lazy(0.1).init, WEIGHTS))
    (adams, own) = account(WEIGHTS, {"lazy": lazy}, rank=2)
    assert own.state["matrices"] > 0
    assert adams.formula is None  # no paper states one
    assert step_flops(scale_by_lazy(), {"w": WEIGHTS["w"]}) > 0
    with pytest.raises(TypeError, match=r"lazy: .*rate"):
        lazy(0.1, rate=1)


def test_the_commands_take_all_three(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    memory = ["memory", "--model", "llama-60m", "--optimizer", "test_extension:lazy"]
    cost = ["cost", "--model", "llama-60m", "--tokens", "1e9", "--optimizer", "adam", "test_extension:lazy"]
    derive = ["derive", "test_extension:Halves", "-m", "2", "-n", "1"]
    group = typer.main.get_command(app)
    for command in (memory, cost, derive):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert command[0] in group.commands
