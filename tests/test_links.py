"""Links around any direction: one size of update, cautious decay, spheres, and rates across widths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fimlens as fl

W = jax.random.normal(jax.random.key(0), (3, 4, 6))
U = jax.random.normal(jax.random.key(1), (3, 4, 6))


def norms(x):
    return np.linalg.norm(np.asarray(x, np.float64), axis=(-2, -1))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_match_rms_gives_each_matrix_one_size(scale, dtype):
    tx = fl.match_rms(0.2)
    G = (U * jnp.array([1.0, 1e-6, 0.0])[:, None, None] * scale).astype(dtype)
    tree = {"stack": G, "vector": G[0, 0], "number": G[0, 0, 0], "empty": jnp.zeros((0, 3), dtype)}
    found, _ = tx.update(tree, tx.init(tree))
    np.testing.assert_allclose(norms(found["stack"]) / 24**0.5, [0.2, 0.2, 0], rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(found["vector"], float)) / 6**0.5, 0.2, rtol=1e-2)
    np.testing.assert_allclose(np.abs(np.asarray(found["number"], float)), 0.2, rtol=1e-2)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def decayed(make, gradients, weights):
    tx = make(0.1, weight_decay=0.5, cautious_decay=True)
    return [np.asarray(tx.update(g, tx.init(weights), weights)[0]["kernel"], np.float64) for g in gradients]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adafactor", "muon", "racs"])
def test_cautious_decay_is_where_the_update_moves_a_weight_toward_zero(name):
    weights, zero = {"kernel": W[0]}, {"kernel": jnp.zeros_like(W[0])}
    make = getattr(fl, name)
    rate = 1.0 if name == "adafactor" else 0.1  # whose decay is not times the rate
    cautious, still = decayed(make, [{"kernel": U[0]}, zero], weights)
    plain_tx = make(0.1, weight_decay=0.0)
    plain = np.asarray(plain_tx.update({"kernel": U[0]}, plain_tx.init(weights), weights)[0]["kernel"], np.float64)
    toward = np.sign(-plain) * np.sign(W[0]) >= 0
    assert 0 < toward.sum() < toward.size
    np.testing.assert_allclose(cautious, plain - rate * 0.5 * np.where(toward, W[0], 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(still, -rate * 0.5 * np.asarray(W[0]), rtol=1e-5)  # an update of zero decays


def test_signs_of_entries_whose_product_would_be_zero_are_seen():
    tx, weights = fl.cautious_weight_decay(1.0), jnp.array([1e-25, 1e-25])
    found, _ = tx.update(jnp.array([1e-25, -1e-25]), tx.init(weights), weights)
    np.testing.assert_allclose(found, [2e-25, -1e-25], rtol=1e-6)


def ball(W, u, rate, first):
    """arXiv 2606.16899 in NumPy, by matrices; `first` are the weights before the first step."""
    moved = []
    for w, d, w0 in zip(*(np.asarray(x, np.float64).reshape(-1, *x.shape[-2:]) for x in (W, u, first)), strict=True):
        new = w - rate * np.linalg.norm(w) * d / np.linalg.norm(d)
        moved.append(new * np.linalg.norm(w0) / np.linalg.norm(new))
    return np.reshape(moved, W.shape)


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-6), (True, 1e-12)])
def test_hyperball_follows_its_paper_and_keeps_norms(x64, tolerance):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        tx = fl.hyperball(optax.identity(), 0.05)
        start = weights = {"w": jnp.asarray(W, dtype)}
        noise = jax.random.normal(jax.random.key(2), (50, *W.shape), dtype)

        def step(carry, G):
            weights, state = carry
            updates, state = tx.update({"w": G}, state, weights)
            return (optax.apply_updates(weights, updates), state), None

        (weights, _), _ = jax.jit(lambda w, noise: jax.lax.scan(step, (w, tx.init(w)), noise))(weights, noise)
        theirs = start["w"]
        for G in noise:
            theirs = ball(theirs, G, 0.05, start["w"])
        np.testing.assert_allclose(weights["w"], theirs, rtol=50 * tolerance, atol=10 * tolerance)
        np.testing.assert_allclose(norms(weights["w"]), norms(W), rtol=tolerance)


def test_what_has_no_ball_takes_plain_steps():
    """Vectors and a matrix that starts at zero, beside a matrix whose update is zero and one of the same stack that turns."""
    others = {"vector": (0, 0), "number": (0, 0, 0), "one entry": (slice(1), slice(1), 0)}
    params, updates = ({name: x[place] for name, place in others.items()} | {"empty": jnp.zeros((0, 3))} for x in (W, U))
    params, updates = params | {"stack": W.at[1].set(0)}, updates | {"stack": U.at[2].set(0)}
    tx = fl.hyperball(optax.identity(), 0.1)
    state = tx.init(params)
    for _ in range(2):
        found, state = tx.update(updates, state, params)
        for name in (*others, "empty"):
            np.testing.assert_allclose(found[name], -0.1 * updates[name], rtol=1e-6)
        np.testing.assert_allclose(found["stack"][1], -0.1 * U[1], rtol=1e-6)
        np.testing.assert_allclose(found["stack"][2], 0, atol=1e-6)
        np.testing.assert_allclose(found["stack"][0], ball(W, U, 0.1, W)[0] - W[0], atol=1e-6)
        params = optax.apply_updates(params, jax.tree.map(jnp.zeros_like, params))


def test_norms_of_complex_leaves_are_of_their_absolute_values():
    """Optax's directions take complex leaves, and what stands around them must know their size."""
    weights, updates = W[0] * (3 + 4j), (U[0] + 1j * U[1]).astype(jnp.complex64)
    matched, _ = fl.match_rms(0.2).update(updates, optax.EmptyState())
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.abs(matched) ** 2)), 0.2, rtol=1e-5)
    tx = fl.hyperball(optax.identity(), 0.1)
    moved, _ = tx.update(updates, tx.init(weights), weights)
    np.testing.assert_allclose(jnp.linalg.norm(weights + moved), jnp.linalg.norm(weights), rtol=1e-5)


def test_a_complex_weight_decays_where_the_update_turns_it_toward_zero():
    tx, weights = fl.cautious_weight_decay(0.5), jnp.array([2j, 2j, 2 + 2j])
    found, _ = tx.update(jnp.array([1j, -1j, 1 - 2j]), tx.init(weights), weights)
    np.testing.assert_allclose(found, [2j, -1j, 1 - 2j])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_step_on_a_ball_does_not_depend_on_the_scale_of_the_update(scale):
    tx = fl.hyperball(optax.identity(), 0.1)
    plain, scaled = (tx.update(u, tx.init(W), W)[0] for u in (U, U * scale))
    np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-6)


def shapes_of(d, layers=2):
    """Of a small transformer: stacked layers, attention with heads of 4, a convolution."""
    shapes = {
        "embedding": (50, d),
        "layers": {"query": {"kernel": (layers, d, d)}, "up": {"kernel": (layers, d, 3 * d)}, "norm": {"scale": (layers, d)}},
        "down": {"kernel": (3 * d, d)},
        "out": {"kernel": (d, 7)},
        "head": (d, 50),
    }
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))


def multipliers(name, wide, base, **options):
    tx = fl.width_multipliers(name, wide, base, **options)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), wide)
    found, _ = tx.update(ones, tx.init(ones), ones)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): float(x.mean()) for p, x in jax.tree.leaves_with_path(found)}


ENTRYWISE = {"layers/query/kernel": 1 / 4, "layers/up/kernel": 1 / 4, "down/kernel": 1 / 4, "out/kernel": 1 / 4, "head": 1 / 4}
SPECTRAL = ENTRYWISE | {"layers/query/kernel": 1, "layers/up/kernel": 1, "down/kernel": 1, "out/kernel": 1 / 2}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adamw", {}, ENTRYWISE),
        ("racs", {}, ENTRYWISE),
        ("muon", {}, SPECTRAL),
        ("soap", {}, SPECTRAL),
        ("soap", {"head": True}, SPECTRAL | {"head": 1 / 2}),
        ("muon", {"route": "query"}, ENTRYWISE | {"layers/query/kernel": 1}),
    ],
)
def test_multipliers_across_widths(name, options, expected):
    """From a width of 16 to one of 64: by hand from the rules, 1 for embeddings and norms."""
    found = multipliers(name, shapes_of(64), shapes_of(16), **options)
    assert found == pytest.approx({"embedding": 1, "layers/norm/scale": 1} | expected)
    assert set(multipliers(name, shapes_of(16, layers=4), shapes_of(16), **options).values()) == {1.0}  # depth is no width


def test_decay_falls_as_one_over_the_width():
    found = multipliers("muon", shapes_of(64), shapes_of(16), weight_decay=0.5)
    assert found["layers/query/kernel"] == pytest.approx(1 + 0.5 / 4)
    assert found["head"] == pytest.approx(1 / 4 + 0.5 / 4)
    assert found["layers/norm/scale"] == pytest.approx(1 + 0.5)


def test_an_empty_matrix_has_no_width():
    """By default it goes to Adam, but a rule of your own may give it to the method."""
    empty = {"w": jnp.ones((0, 3))}
    tx = fl.width_multipliers("muon", empty, empty, route=lambda path, leaf: True)
    assert tx.update(empty, tx.init(empty))[0]["w"].shape == (0, 3)


def test_muon_times_its_multiplier_has_a_norm_of_the_root_of_outputs_over_inputs():
    base, direction = (8, 8), fl.scale_by_muon(root="exact")
    for m, n in ((8, 32), (32, 8), (32, 32)):
        shapes = [{"w": jax.ShapeDtypeStruct(shape, jnp.float32)} for shape in ((m, n), base)]
        tx = optax.chain(direction, fl.width_multipliers("muon", *shapes))
        G = {"w": jax.random.normal(jax.random.key(m + n), (m, n))}
        found, _ = tx.update(G, tx.init(G), G)
        assert np.linalg.norm(found["w"], 2) == pytest.approx((n / m) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("scale", ["width", "fisher", "rms"])
def test_the_multiplier_is_that_of_muons_own_scale(scale):
    """From 8 x 8 to 16 x 32 its spectral norm is to grow by sqrt(32 / 16), whatever the scale makes of either shape."""
    (base, wide), direction = (
        ({"w": jnp.eye(*shape)} for shape in ((8, 8), (16, 32))),
        fl.scale_by_muon(scale=scale, root="exact"),
    )
    tx = optax.chain(direction, fl.width_multipliers("muon", wide, base, scale=scale))
    narrow, _ = direction.update(base, direction.init(base))
    found, _ = tx.update(wide, tx.init(wide), wide)
    assert np.linalg.norm(found["w"], 2) / np.linalg.norm(narrow["w"], 2) == pytest.approx(2**0.5, rel=1e-4)


def test_blocks_side_by_side_have_a_smaller_rate():
    wide, base = ({"w": jnp.ones((d, d))} for d in (16, 8))
    heads = lambda path, leaf: fl.Axes(columns=leaf.shape[1] // 4)  # noqa: E731
    assert multipliers("soap", wide, base, axes=heads)["w"] == pytest.approx(0.5**0.5)  # four heads, and not two


REFUSED = [
    (lambda: fl.width_multipliers("alice", {}, {}), "width_multipliers: there is no rule for 'alice'. There are adam"),
    (lambda: fl.width_multipliers("adam", {"up": W[0], "down": W[0]}, {"up": W[0]}), "only one of the two models has down"),
    (lambda: fl.width_multipliers("muon", {}, {}, scale="norm"), 'width_multipliers: scale is "width", "fisher" or "rms"'),
    (
        lambda: fl.width_multipliers("adam", {"up": W[0]}, {"up": W[0]}).update({"down": W[0]}, optax.EmptyState()),
        "width_multipliers: shapes have no leaf down. Pass",
    ),
    (lambda: fl.width_multipliers("adam", {"up": (3, 4)}, {"up": (3, 4)}), "shapes are arrays .* got int"),
    (lambda: fl.match_rms(-0.2), "match_rms: rms is a number, at least 0; got -0.2"),
    (lambda: fl.hyperball(optax.identity(), 0.1).update(W, fl.hyperball(optax.identity(), 0.1).init(W)), "hyperball: needs"),
    (functools.partial(fl.cautious_weight_decay(0.1).update, W, optax.EmptyState()), "weight decay: needs the parameters"),
    (
        functools.partial(fl.width_multipliers("adam", {}, {}, weight_decay=0.1).update, W, optax.EmptyState()),
        "width_multipliers: a decay needs the parameters",
    ),
]


@pytest.mark.parametrize("k", range(len(REFUSED)))
def test_what_is_refused(k):
    call, message = REFUSED[k]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
