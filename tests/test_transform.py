"""The transform of any structure: Adam to rounding, its place in Optax, averages of fits, momentum that follows the basis."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fimlens as fl
from fimlens.structures import EXAMPLES

TREE = {"a": (3, 4), "bias": (7,), "layers": (2, 3, 4), "scale": (), "empty": (0, 3)}


def gradients(step: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(step), len(TREE))
    return {name: jax.random.normal(k, shape, dtype) for (name, shape), k in zip(TREE.items(), keys, strict=True)}


def run(tx, steps: int, dtype=jnp.float32):
    state, update = jax.jit(tx.init)(gradients(0, dtype)), jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradients(step, dtype), state)
    return updates, state


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 2e-6), (True, 1e-13)])
def test_with_diagonal_it_is_adam(x64, tolerance):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        for settings in ({}, {"b1": 0.5, "b2": 0.9, "eps": 1e-3}):
            ours, _ = run(fl.scale_by_structure(fl.Diagonal(), **settings), 100, dtype)
            theirs, _ = run(optax.scale_by_adam(**settings), 100, dtype)
            for name in TREE:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=tolerance, err_msg=name)


def test_the_layout_of_matrices_alike_is_traced_once():
    """A model has hundreds of them, and a fit takes longer to trace than its zeros to make."""
    traced = []

    class Counted(fl.RowColumn):
        def stats(self, fisher, params):
            traced.append(fisher.shape)
            return super().stats(fisher, params)

    layers = {name: jax.ShapeDtypeStruct((3, 4), jnp.float32) for name in "abcd"}
    jax.eval_shape(fl.scale_by_structure(Counted(), average="fits").init, layers)
    assert traced.count((3, 4)) == 1


def test_matrices_of_one_shape_are_one_stack_and_each_is_its_own():
    tx = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"))
    together, state = run(tx, 3)
    assert sorted(state.bases) == ["1 x 1", "3 x 4", "7 x 1"]
    assert state.bases["3 x 4"].left.shape == (3, 3, 3)
    alone = jax.jit(tx.init)(gradients(0)["a"])
    for step in range(3):
        updates, alone = jax.jit(tx.update)(gradients(step)["a"], alone)
    np.testing.assert_allclose(updates, together["a"], atol=1e-5)


@pytest.mark.parametrize("structure", EXAMPLES, ids=str)
def test_each_structure_trains_a_regression(structure):
    """Each cuts the loss to a tenth in sixty steps (GaLore's kind cannot: it drops half of the space).

    eps is well above zero: after one gradient an exact Fisher is singular, and a small eps would divide by it.
    """
    X = jax.random.normal(jax.random.key(0), (64, 4))
    target = X @ jax.random.normal(jax.random.key(1), (4, 8))
    tx = optax.chain(fl.scale_by_structure(structure, eps=0.1, update_interval=10), optax.scale_by_learning_rate(0.1))

    def loss(W):
        return jnp.mean((X @ W - target) ** 2)

    @jax.jit
    def losses(W):
        def step(carry, _):
            W, state = carry
            updates, state = tx.update(jax.grad(loss)(W), state)
            return (optax.apply_updates(W, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (W, tx.init(W)), length=60)
        return loss(W), loss(trained)

    first, last = losses(jnp.zeros((4, 8)))
    floor = 0.75 if isinstance(structure, fl.LowRank) and isinstance(structure.complement, fl.Drop) else 0.1
    assert last < floor * first, last / first


def test_averages_of_fits_keep_m_plus_n_numbers():
    tx = fl.scale_by_structure(fl.RowColumn(), b1=None, average="fits")
    state = jax.jit(tx.init)(jnp.ones((5, 7)))
    kept = sum(x.size for x in jax.tree.leaves((state.bases, state.averaged, state.momentum)))
    assert kept == fl.state_size(fl.RowColumn(), (5, 7), average="fits") == 12
    assert fl.state_size(fl.RowColumn(), (5, 7)) == 35
    fitted = fl.members(fl.RowColumn(), jax.jit(tx.update)(jnp.ones((5, 7)), state)[1], jnp.ones((5, 7)), average="fits")
    np.testing.assert_allclose(fl.RowColumn().expand(fitted.coords, (5, 7)), 1.0, rtol=1e-4)


def test_rotated_momentum_is_the_original_one_seen_in_the_basis():
    """Carried along at every turn, it is the same vector, so the two options agree whenever the basis is orthogonal."""
    structure = fl.Rotated(fl.Diagonal(), "LR")
    results = [
        run(fl.scale_by_structure(structure, update_interval=3, momentum=kind), 10)[0] for kind in ("original", "rotated")
    ]
    for name in TREE:
        np.testing.assert_allclose(*(r[name] for r in results), atol=2e-4, err_msg=name)


def test_the_basis_turns_at_the_refresh_interval_only():
    tx = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "L"), update_interval=4)
    state, lefts = jax.jit(tx.init)(gradients(0)["a"]), []
    for step in range(9):
        _, state = jax.jit(tx.update)(gradients(step)["a"], state)
        lefts.append(state.bases["3 x 4"].left)
    moved = [bool(jnp.any(a != b)) for a, b in pairwise(lefts)]
    assert moved == [False, False, False, True, False, False, False, True]


def test_the_first_step_is_measured_in_the_turned_basis():
    """SOAP's first update has unit eigenvalues in its own basis: rotated gradient over its own magnitude."""
    G = gradients(0)["a"]
    tx = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"), eps=0.0)
    update, state = jax.jit(lambda G: tx.update(G, tx.init(G)))(G)
    left, right, _ = jax.tree.map(lambda x: x[0], state.bases["3 x 4"])
    seen = np.abs(left.T @ update @ right)[np.abs(left.T @ G @ right) > 1e-3]
    np.testing.assert_allclose(seen, 1.0, rtol=1e-3)


def test_dtypes_stay_put():
    tx = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"))
    updates, state = run(tx, 2, jnp.bfloat16)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    assert {x.dtype for x in jax.tree.leaves((state.bases, state.averaged, state.momentum))} == {jnp.dtype(jnp.float32)}
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(
        jnp.result_type, jax.eval_shape(tx.init, gradients(0, jnp.bfloat16))
    )


def test_it_chains_masks_and_partitions():
    tx = optax.partition(
        {"soap": fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR")), "adam": optax.scale_by_adam()},
        {name: "soap" if len(shape) == 2 and 0 not in shape else "adam" for name, shape in TREE.items()},
    )
    updates, _ = run(optax.chain(tx, optax.scale(-1e-2)), 2)
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


def test_nothing_in_the_library_flips_a_global_flag():
    before = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    fisher = fl.Fisher.from_gradients(jnp.ones((2, 2, 2)))
    fl.check(fl.Rows(), laws=["chart"])
    fl.compare([fl.Rows()], fisher)
    assert (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision) == before


def test_high_ranks_and_odd_blocks_are_served():
    for structure, shape in ((fl.LowRank(fl.Diagonal(), 16), (20, 24)), (fl.Blocks(fl.Rows(), columns=3), (4, 9))):
        tx = fl.scale_by_structure(structure)
        updates, _ = jax.jit(lambda G, tx=tx: tx.update(G, tx.init(G)))(jnp.ones(shape))
        assert bool(jnp.isfinite(updates).all())


def test_a_state_made_for_other_matrices_is_refused():
    for structure in (fl.Diagonal(), fl.Rotated(fl.Diagonal())):
        tx = fl.scale_by_structure(structure)
        state = jax.jit(tx.init)([jnp.ones((3, 4))])
        for other in ([jnp.ones((3, 4))] * 2, [jnp.ones((4, 3))], {"w": jnp.ones((3, 5))}):
            with pytest.raises(ValueError, match="the state was made for others"):
                tx.update(other, state)


def test_options_out_of_range_are_refused():
    for options in ({"b1": 1.5}, {"b2": -0.5}, {"update_interval": 0}, {"turn": "sideways"}, {"average": "all"}):
        with pytest.raises(ValueError, match="scale_by_structure"):
            fl.scale_by_structure(fl.Diagonal(), **options)
    with pytest.raises(TypeError, match="of dtype int32"):
        fl.scale_by_structure(fl.Diagonal()).init({"w": jnp.arange(3)})


@pytest.mark.parametrize(("limit", "sides"), [(8, "LR"), (5, "L"), (2, None)])
def test_a_side_over_the_limit_is_not_rotated(limit, sides):
    """Of a 3 x 8 matrix: both sides, the shorter, or none, which leaves Adam's coordinates."""
    options = {"b1": 0.9, "b2": 0.9, "update_interval": 2, "momentum": "rotated"}
    whole = fl.Diagonal() if sides is None else fl.Rotated(fl.Diagonal(), sides)
    limited = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR", max_dim=limit), **options)
    G = jax.random.normal(jax.random.key(0), (3, 3, 8))

    @jax.jit
    def updates(G):
        return [jax.lax.scan(lambda s, g, tx=tx: tx.update(g, s)[::-1], tx.init(G[0]), G)[1] for tx in (limited, expected)]

    expected = fl.scale_by_structure(whole, **options)
    np.testing.assert_allclose(*updates(G), rtol=1e-5, atol=1e-6)
    sizes = [x.shape for x in jax.tree.leaves(jax.eval_shape(limited.init, G[0]).bases)]
    assert sizes == {"LR": [(1, 3, 3), (1, 8, 8)], "L": [(1, 3, 3)], None: []}[sides]


def test_the_limit_of_a_rotation_is_a_whole_number_and_keeps_the_laws():
    assert fl.check(fl.Rotated(fl.Diagonal(), max_dim=3), shapes=[(3, 4)], laws=["transport", "symmetry"]).ok
    with pytest.raises(ValueError, match="max_dim is a positive number; got 0"):
        fl.Rotated(fl.Diagonal(), max_dim=0)
