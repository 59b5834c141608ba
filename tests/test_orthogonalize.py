"""Newton-Schulz by any coefficients: where singular values land, whose lists are taken, and that shapes share programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib._muon import _NS_COEFFS_PRESET_DICT as THEIRS
from test_robustness import dots

import fimlens as fl


@pytest.mark.parametrize(("name", "least", "most"), [("jordan", 0.47, 1.21), ("polar-express", 0.845, 1.145)])
def test_singular_values_from_a_thousandth_to_one_land_near_one(name, least, most):
    values = np.append(np.geomspace(1e-3, 0.5, 400), np.linspace(0.5, 1, 200))
    G = np.stack([np.diag([x, (1 - x**2) ** 0.5, 0]) for x in values]).astype(np.float32)  # of norm one each
    factors, _ = fl.orthogonalize(coefficients=name).update(jnp.asarray(G), optax.EmptyState())
    ends = np.asarray(factors)[G >= 1e-3]
    assert least <= ends.min()
    assert ends.max() <= most
    np.testing.assert_allclose(np.asarray(factors)[G == 0], 0, atol=1e-6)


@pytest.mark.parametrize("given", [THEIRS["dion"], (3.0, -3.2, 1.2)], ids=["list", "triple"])
def test_lists_of_coefficients_mean_what_they_mean_in_optax(given):
    G = jax.random.normal(jax.random.key(0), (6, 4))
    theirs = optax.contrib.scale_by_muon(ns_coeffs=tuple(map(tuple, given)) if np.ndim(given) == 2 else given, ns_steps=5)
    ours = fl.scale_by_muon(coefficients=given)
    found, expected = ours.update(G, ours.init(G))[0], theirs.update(G, theirs.init(G), G)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_last_of_a_list_serves_all_further_steps():
    G, triples = jax.random.normal(jax.random.key(0), (4, 6)), [(3.0, -3.2, 1.2), (2.0, -1.5, 0.5)]
    found, repeated = (
        fl.orthogonalize(steps=4, coefficients=given).update(G, optax.EmptyState())[0]
        for given in (triples, [*triples, triples[1], triples[1]])
    )
    np.testing.assert_array_equal(found, repeated)


def test_coefficients_and_steps_may_be_injected():
    make = optax.inject_hyperparams(fl.muon)
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 6))}
    for given in ("polar-express", np.array(THEIRS["dion"])):  # an array is traced
        both = [f(0.1, coefficients=given, steps=4) for f in (make, fl.muon)]
        found, expected = (jax.jit(tx.update)(params, tx.init(params), params)[0]["kernel"] for tx in both)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_on_the_cpu_a_stack_is_taken_one_matrix_at_a_time():
    """A large batch would not stay in the cache: a step of eight layers took 2.9 times as long as its products."""
    G = jnp.ones((8, 16, 24))
    text = jax.jit(fl.orthogonalize().update).lower(G, optax.EmptyState()).compile().as_text()
    shapes = re.findall(r"= f32\[([\d,]+)\]\S* (?:dot|custom-call)\(", text)
    assert shapes
    assert all(shape.removeprefix("1,") in ("16,16", "16,24") for shape in shapes), shapes


@pytest.mark.parametrize("make", [fl.scale_by_muon, fl.scale_by_normuon], ids=["muon", "normuon"])
def test_stacked_and_transposed_shapes_share_one_program(make):
    one = {"a": jnp.ones((3, 4))}
    many = one | {"b": jnp.ones((4, 3)), "layers": jnp.ones((2, 3, 4)), "tall": jnp.ones((5, 4, 3))}
    tx = make()
    counts = [len(list(dots(jax.make_jaxpr(tx.update)(tree, tx.init(tree)).jaxpr))) for tree in (one, many)]
    assert counts[0] == counts[1] > 0
