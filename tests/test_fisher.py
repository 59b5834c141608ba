"""Fishers: both forms agree, those of models equal explicit formulas, and memory stays bounded."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fimlens as fl
from fimlens.language_model import llama

CONFIG = llama.Config(vocabulary=7, hidden=4, mlp=6, heads=1, layers=1)


@pytest.fixture
def both():
    with jax.enable_x64(True):
        fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (5, 3, 4)))
        yield fisher, fl.Fisher.from_dense(fisher.dense(), shape=(3, 4))


def test_every_question_has_one_answer_in_both_forms(both):
    samples, dense = both
    A, B, T = (jax.random.normal(jax.random.key(k), (s, s)) for k, s in ((1, 4), (2, 3), (3, 3)))
    questions = [
        lambda f: f.second_moment(),
        lambda f: f.second_moment(lambda G: (T @ G, G[:1]))[0],
        lambda f: f.left(),
        lambda f: f.left(A),
        lambda f: f.right(),
        lambda f: f.right(B),
        lambda f: f.inner(lambda G: T @ G @ A),
        lambda f: f.norm_squared,
        lambda f: f.map(lambda G: (T @ G).T).dense(),
        lambda f: f.scaled(3.0).dense(),
    ]
    for k, question in enumerate(questions):
        answers = jax.jit(lambda *fishers, question=question: [question(f) for f in fishers])(samples, dense)
        np.testing.assert_allclose(*answers, atol=1e-12, err_msg=f"question {k}")


def test_the_dense_form_is_the_mean_of_outer_products(both):
    """NumPy witness: columns stacked in Fortran order."""
    g = np.stack([np.asarray(G).reshape(-1, order="F") for G in both[0].samples])
    np.testing.assert_allclose(both[0].dense(), np.mean([np.outer(x, x) for x in g], axis=0), atol=1e-14)


def test_chunks_of_samples_change_nothing(monkeypatch, both):
    whole = both[0].second_moment()
    monkeypatch.setattr("fimlens.fisher.sample_form.CHUNK_BYTES", 2 * 3 * 4 * 8)  # two samples at a time, of five
    np.testing.assert_allclose(both[0].second_moment(), whole, rtol=1e-14)


def test_the_norm_is_computed_once_and_never_caches_a_tracer(both):
    fisher = both[0]
    assert float(jax.jit(lambda x: x * fisher.norm_squared)(2.0)) == pytest.approx(2 * float(fisher.norm_squared))
    assert fisher.norm_squared is fisher.norm_squared


@pytest.mark.parametrize("structure", [fl.Kronecker(), fl.DiagonalKronecker(), fl.RowColumn(), fl.Diagonal()], ids=str)
def test_the_relative_gap_in_single_precision_is_the_same_at_every_scale(structure):
    keys = jax.random.split(jax.random.key(0))
    G = jax.random.normal(keys[0], (3, 5, 4)) * jnp.exp(jax.random.normal(keys[1], (5, 4)))

    def relative(fisher):
        return fl.gap(structure, fl.fit(structure, fisher), fisher).relative

    for scale in (1e-10, 1e-7, 1e5, 1e10):
        fisher = fl.Fisher.from_gradients(scale * G)
        np.testing.assert_allclose(relative(fisher), relative(fl.Fisher.from_gradients(G)), rtol=1e-4)


def test_a_fisher_prints_kind_and_normalisation():
    text = repr(fl.Fisher.from_gradients(jnp.ones((5, 3, 4)), kind="empirical", normalisation="mean over 5 tokens"))
    assert text == "Fisher of a 3 x 4 matrix from 5 samples: empirical, mean over 5 tokens"


def tokens(*shape: int) -> jax.Array:
    return jax.random.randint(jax.random.key(9), shape, 0, CONFIG.vocabulary)


def loss(params, batch):
    return llama.loss(CONFIG, params, batch)


def logits(params, batch):
    return llama.logits(CONFIG, params, batch)


PARAMS = jax.jit(llama.init, static_argnums=0)(CONFIG, jax.random.key(0))
QUERY = "layers/0/attention/query"


@jax.jit
def gradient(batch):
    """The gradient of QUERY by itself."""
    return jax.grad(loss)(PARAMS, batch)["layers"][0]["attention"]["query"]


def test_the_empirical_fisher_is_that_of_a_loop_over_examples():
    batches = [tokens(3, 6), tokens(3, 6) + 0, tokens(2, 6)]
    fisher = fl.empirical_fisher(loss, PARAMS, batches)[QUERY]
    loop = [gradient(x[None]) for batch in batches for x in batch]
    np.testing.assert_allclose(fisher.samples, jnp.stack(loop), rtol=1e-4, atol=1e-6)
    assert fisher.normalisation == "mean over 8 examples"
    total = fl.empirical_fisher(loss, PARAMS, batches, reduction="sum", matrices=[QUERY])[QUERY]
    np.testing.assert_allclose(total.dense(), 8 * fisher.dense(), rtol=1e-4, atol=1e-7)


def test_the_minibatch_fisher_has_one_gradient_per_batch():
    batches = [tokens(3, 6), tokens(3, 6) * 0]
    fisher = fl.minibatch_fisher(loss, PARAMS, batches)[QUERY]
    loop = [gradient(batch) for batch in batches]
    np.testing.assert_allclose(fisher.samples, jnp.stack(loop), rtol=1e-4, atol=1e-6)


def test_the_exact_model_fisher_is_the_gauss_newton_matrix():
    """Independent witness: J^T (diag p - p p^T) J for each prediction, from the Jacobian of the logits."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)
        inputs = tokens(2, 3)
        fisher = fl.model_fisher(logits, params, [inputs], matrices=["head"])["head"]

        def scores(W):
            return logits(params | {"head": W}, inputs).reshape(-1, CONFIG.vocabulary)

        W = params["head"]  # past the attention, whose softmax JAX keeps in float32
        J = np.asarray(jax.jit(jax.jacobian(scores))(W)).transpose(0, 1, 3, 2).reshape(6, CONFIG.vocabulary, -1)
        p = np.asarray(jax.nn.softmax(scores(W)))
        expected = np.mean([j.T @ (np.diag(q) - np.outer(q, q)) @ j for j, q in zip(J, p, strict=True)], axis=0)
        np.testing.assert_allclose(fisher.dense(), expected, atol=1e-12)
        assert fisher.normalisation == "mean over 6 predictions"


def test_sampled_labels_converge_to_the_exact_model_fisher():
    inputs = tokens(2, 3)
    exact = fl.model_fisher(logits, PARAMS, [inputs], matrices=[QUERY])[QUERY].dense()
    repeated = jnp.tile(inputs, (4000, 1))
    sampled = fl.model_fisher(logits, PARAMS, [repeated], labels="sampled", matrices=[QUERY], key=jax.random.key(1))[QUERY]
    assert jnp.linalg.norm(sampled.dense() - exact) < 0.1 * jnp.linalg.norm(exact)


def test_gradients_stay_within_the_given_bytes():
    batch = tokens(64, 6)
    whole = fl.empirical_fisher(loss, PARAMS, [batch], matrices=[QUERY])[QUERY]
    small = fl.empirical_fisher(loss, PARAMS, [batch], matrices=[QUERY], max_bytes=20_000)[QUERY]
    np.testing.assert_allclose(small.samples, whole.samples, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"one example.*Raise max_bytes"):
        fl.empirical_fisher(loss, PARAMS, [batch], matrices=[QUERY], max_bytes=100)
    with pytest.raises(ValueError, match=r"kept so far.*fewer examples"):
        fl.empirical_fisher(loss, PARAMS, [batch] * 8, matrices=[QUERY], max_bytes=20_000)


# --- leaves that are no plain matrix, and other likelihoods ----------------------------------------------------


def layered(params, x):
    """Two layers that are scanned over, a convolution with its output last, and a head."""
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"]["w"])[0]
    patches = jnp.stack([x[:, :2], x[:, 1:]], 1).reshape(len(x), 1, 2, 2)  # two places of a 1 x 2 window, as channels
    out = jnp.einsum("bhwc,hwco->bo", patches, params["conv"]["kernel"])
    return out @ params["head"]["w"] + params["head"]["b"]


@jax.jit
def mixed_parameters():
    keys = iter(jax.random.split(jax.random.key(3), 4))
    return {
        "layers": {"w": jax.random.normal(next(keys), (2, 3, 3)), "b": jnp.zeros((2, 3))},
        "conv": {"kernel": jax.random.normal(next(keys), (1, 2, 2, 4)), "bias": jnp.zeros(4)},
        "head": {"w": jax.random.normal(next(keys), (4, 2)), "b": jnp.zeros(2)},
    }


X = jax.random.normal(jax.random.key(4), (5, 3))


def squared(params, x):
    return jnp.mean(layered(params, x) ** 2)


def test_stacks_and_convolutions_have_fishers_by_name():
    """Independent witness: jax.grad of each example, taken apart by hand."""
    params = mixed_parameters()
    fishers = fl.empirical_fisher(squared, params, [X])
    assert {name: fisher.shape for name, fisher in fishers.items()} == {
        "conv/kernel": (4, 4),
        "head/w": (4, 2),
        "layers/w/0": (3, 3),
        "layers/w/1": (3, 3),
    }
    each = jax.jit(jax.grad(squared))
    loop = [each(params, x[None]) for x in X]
    for k in (0, 1):
        np.testing.assert_allclose(fishers[f"layers/w/{k}"].samples, [g["layers"]["w"][k] for g in loop], rtol=1e-4, atol=1e-6)
    kernels = [np.asarray(g["conv"]["kernel"]).reshape(4, 4) for g in loop]
    np.testing.assert_allclose(fishers["conv/kernel"].samples, kernels, rtol=1e-4, atol=1e-6)
    assert list(fl.empirical_fisher(squared, params, [X], matrices="layers/w")) == ["layers/w/0", "layers/w/1"]
    assert list(fl.minibatch_fisher(squared, params, [X], matrices="layers/*/1")) == ["layers/w/1"]


def test_fishers_take_the_axes_and_the_route_of_optimizers():
    params = mixed_parameters()
    turned = fl.empirical_fisher(
        squared, params, [X], matrices="conv/*", axes=lambda path, leaf: fl.Axes(3, (0, 1, 2)) if "conv" in path else None
    )["conv/kernel"]
    plain = fl.empirical_fisher(squared, params, [X], matrices="conv/*")["conv/kernel"]
    np.testing.assert_allclose(turned.samples, plain.samples.mT, rtol=1e-6)
    assert list(fl.empirical_fisher(squared, params, [X], route="head|conv")) == ["conv/kernel", "head/w"]


def test_leaves_of_unknown_axes_are_named_and_not_dropped_in_silence():
    params = {"w": jnp.ones((3, 2)), "mystery": jnp.ones((3, 2, 2))}

    def loss(params, x):
        return jnp.sum(x @ params["w"]) ** 2 + jnp.sum(jnp.tensordot(x, params["mystery"], 1)) ** 2

    with pytest.warns(UserWarning, match=r"empirical_fisher: nothing tells.*'mystery'.*there is no Fisher of them"):
        assert list(fl.empirical_fisher(loss, params, [X])) == ["w"]


@jax.tree_util.register_dataclass
@dataclass
class Module:
    """A module whose functions are leaves, as those of Equinox are."""

    w: Any
    activation: Any
    size: Any


def test_functions_among_the_leaves_are_passed_by():
    module = Module(jnp.ones((3, 2)), jax.nn.tanh, 3)

    def loss(module, x):
        return jnp.mean(module.activation(x @ module.w) ** 2)

    def logits(module, x):
        return module.activation(x @ module.w)

    assert list(fl.empirical_fisher(loss, module, [X])) == list(fl.minibatch_fisher(loss, module, [X])) == ["w"]
    assert fl.model_fisher(logits, module, [X])["w"].shape == (3, 2)


def test_the_gaussian_model_fisher_is_the_gauss_newton_matrix_of_a_regression():
    """Independent witness: J^T J for each prediction, from the Jacobian of the outputs, with columns stacked by NumPy."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), mixed_parameters())
        x = X.astype(jnp.float64)
        exact = fl.model_fisher(layered, params, [x], likelihood="gaussian")["layers/w/1"]
        J = np.asarray(jax.jit(jax.jacobian(layered))(params, x)["layers"]["w"])[:, :, 1].reshape(10, 3, 3)
        g = np.stack([j.reshape(-1, order="F") for j in J])
        np.testing.assert_allclose(exact.dense(), g.T @ g / len(x), atol=1e-12)
        assert str(exact).endswith("model, Gaussian labels summed exactly over 2 outputs, mean over 5 predictions")
        drawn = fl.model_fisher(layered, params, [jnp.tile(x, (4000, 1))], likelihood="gaussian", labels="sampled")[
            "layers/w/1"
        ]
        assert np.linalg.norm(drawn.dense() - exact.dense()) < 0.1 * np.linalg.norm(exact.dense())
    with pytest.raises(ValueError, match='likelihood is "categorical" or "gaussian"'):
        fl.model_fisher(layered, params, [x], likelihood="normal")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fishers_add_up_to_that_of_all_gradients(reduction):
    params = mixed_parameters()
    first, second, both = (
        fl.empirical_fisher(squared, params, [x], reduction=reduction, matrices="head/w")["head/w"] for x in (X[:2], X[2:], X)
    )
    total = first + second
    assert (total.kind, total.normalisation) == (both.kind, both.normalisation)
    np.testing.assert_allclose(total.dense(), both.dense(), rtol=1e-5, atol=1e-7)
    dense = fl.Fisher.from_dense(second.dense(), (4, 2), kind=second.kind, normalisation=second.normalisation)
    np.testing.assert_allclose((first + dense).dense(), both.dense(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose((dense + first).dense(), both.dense(), rtol=1e-5, atol=1e-7)


def test_fishers_of_other_matrices_kinds_and_normalisations_do_not_add_up():
    G = jax.random.normal(jax.random.key(0), (4, 3, 2))
    fisher = fl.Fisher.from_gradients(G)
    others = [
        fl.Fisher.from_gradients(G.mT),
        fl.Fisher.from_gradients(G, kind="empirical"),
        fl.Fisher.from_gradients(G, normalisation="sum over 4 gradients"),
        fl.Fisher.from_gradients(G, normalisation="as given"),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"only Fishers of one shape, kind and normalisation add up.*Got a Fisher"):
            fisher + other
    with pytest.raises(TypeError):
        fisher + 1
