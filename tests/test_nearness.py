"""The lens's three columns: errors against independent witnesses, the best scale, claims, marks, table and figure."""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal

import fimlens as fl
from fimlens.cli.lens_tables import print_tables
from fimlens.lens import crossed
from fimlens.lens.figure import WIDEST, error_in_each_divergence
from fimlens.lens.laws import written_out
from fimlens.lens.nearness import DIVERGENCES, measure_nearness

ROOT = Path(__file__).parent.parent
SHAMPOO, SINKGD = fl.Rotated(fl.GeometricMarginals()), fl.RowColumn(divergence=fl.LogDet())


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradients(N):
    keys = jax.random.split(jax.random.key(0), 3)
    left, noise, right = (jax.random.normal(k, shape) for k, shape in zip(keys, ((3, 3), (N, 3, 4), (4, 4)), strict=True))
    return left @ noise @ right


@pytest.fixture(scope="module")
def comparison():
    structures = {"sgd": fl.Scalar(), "shampoo": SHAMPOO, "sinkgd": SINKGD, "dense": fl.Dense()}
    structures["galore"] = fl.LowRank(fl.Diagonal(), 2, fl.Drop())
    with jax.enable_x64(True):
        F = fl.Fisher.from_gradients(gradients(6)).dense()
        return fl.compare(structures, fl.Fisher.from_dense(F, (3, 4)), solve_up_to=0)  # without samples no optimizer runs


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_share_is_the_definition_over_that_of_the_nearest_multiple_of_the_identity(name):
    fisher, divergence = fl.Fisher.from_gradients(gradients(40)), DIVERGENCES[name]
    fitted = fl.fit(SHAMPOO, fisher)
    near, F, approximation = measure_nearness(SHAMPOO, fitted, fisher)[name], fisher.dense(), SHAMPOO.dense(fitted)
    isotropic = written_out(divergence, F, jnp.eye(12) * jnp.trace(F) / 12)
    assert near.unit == "share"
    assert near.error == pytest.approx(float(written_out(divergence, F, approximation) / isotropic), rel=1e-9)
    assert near.basis + near.spectrum == pytest.approx(near.error, rel=1e-9)
    assert near.basis >= 0
    assert near.spectrum >= 0
    scaled = jax.jit(lambda t: written_out(divergence, F, t * approximation) / isotropic)
    best = minimize_scalar(lambda t: float(scaled(t)), bounds=(0.3, 3), options={"xatol": 1e-9})  # an independent witness
    assert near.scaled == pytest.approx(best.fun, abs=1e-9)
    assert near.scaled < near.error - 1e-3  # Shampoo's own scale is not the best


def test_where_the_fisher_is_singular_nats_are_those_of_the_gaussian():
    """SciPy witness: the mean log-density of the gradients under N(0, F~), and under N(0, c I)."""
    G = gradients(6)
    fisher = fl.Fisher.from_gradients(G)
    fitted = fl.fit(SHAMPOO, fisher)
    near = measure_nearness(SHAMPOO, fitted, fisher)["LogDet"]
    F, approximation = fisher.dense(), np.asarray(SHAMPOO.dense(fitted))
    samples = np.stack([np.asarray(g).T.reshape(-1) for g in G])

    def nats(covariance):
        return -np.mean(multivariate_normal(np.zeros(12), covariance).logpdf(samples)) / 12

    own = nats(np.eye(12) * np.trace(F) / 12)
    assert near.unit == "nats"
    assert near.error == pytest.approx(nats(approximation) - own, abs=1e-9)
    best = minimize_scalar(lambda t: nats(t * approximation), bounds=(0.3, 3), options={"xatol": 1e-9})
    assert near.scaled == pytest.approx(best.fun - own, abs=1e-9)
    assert near.basis + near.spectrum == pytest.approx(near.error)
    assert near.spectrum > 0


def test_each_structure_claims_only_in_its_own_divergence(comparison):
    claims = {row.name: [near.claim for near in row.divergences.values()] for row in comparison.rows}
    assert claims["sgd"] == ["EXACT"] * 3
    assert claims["shampoo"] == ["BOUND", None, None]
    assert claims["sinkgd"] == [None, None, "LIMIT"]


def test_the_frobenius_share_is_the_relative_error_in_units_of_that_of_the_identity(comparison):
    unit = comparison.rows[0].relative  # of the nearest multiple of the identity
    for row in comparison.rows:
        near = row.divergences["Frobenius"]
        for share, relative in ((near.error, row.relative), (near.basis, row.basis), (near.spectrum, row.spectrum)):
            assert share == pytest.approx(relative / unit, abs=1e-12)


def test_the_fisher_itself_is_not_the_nearest_structure(comparison):
    assert [comparison.best(d) for d in DIVERGENCES] == ["shampoo", "shampoo", "shampoo"]
    dense = comparison.rows[-2]
    assert dense.divergences["von Neumann"].error == pytest.approx(0, abs=1e-12)
    assert dense.divergences["LogDet"].error == -math.inf  # the gradients lie in its range, where its density is infinite


def test_the_best_scale_has_a_mark_of_its_own(comparison):
    scaled = {row.name: row.divergences["LogDet"].scaled for row in comparison.rows if row.name != "dense"}
    assert comparison.best("LogDet", scaled=True) == min(scaled, key=scaled.get)


def test_a_structure_that_has_no_fit_is_left_out_with_the_reason():
    class Tall(fl.Diagonal):
        def frame(self, m, n):
            raise ValueError("needs more rows than columns")

    found = fl.compare([Tall()], fl.Fisher.from_gradients(np.ones((1, 2, 2), np.float32)))
    assert dict(found.unsuited) == {"Tall()": "needs more rows than columns"}
    assert not found.rows


def test_json_holds_infinities_as_words(comparison):
    rows = {row["name"]: row["divergences"] for row in json.loads(json.dumps(comparison.to_json(), allow_nan=False))["rows"]}
    galore = rows["galore"]["von Neumann"]
    assert (galore["error"], galore["basis"], galore["spectrum"]) == ("inf", None, None)
    assert rows["dense"]["LogDet"]["error"] == "-inf"


def test_a_fisher_that_is_zero_has_no_error_that_is_no_number():
    fisher = fl.Fisher.from_gradients(jnp.zeros((2, 3, 4)))
    for near in measure_nearness(SHAMPOO, fl.fit(SHAMPOO, fisher), fisher).values():
        assert not math.isnan(near.error + near.scaled)


@pytest.mark.parametrize("zero", [0.0, 4e-16, -4e-16])
def test_the_figure_does_not_write_a_rounded_zero(comparison, zero):
    dense = comparison.rows[-2]
    near = dense.divergences["von Neumann"]._replace(error=zero, basis=0.0, spectrum=zero, scaled=zero)
    row = dense._replace(divergences=dense.divergences | {"von Neumann": near})
    drawn = error_in_each_divergence([dataclasses.replace(comparison, rows=(row,))])
    assert not drawn.axes[1].texts


def test_the_figure_has_a_panel_for_each_divergence(comparison):
    drawn = error_in_each_divergence([comparison])
    drawn.draw_without_rendering()
    assert [axes.get_title() for axes in drawn.axes] == list(DIVERGENCES)
    frobenius, von_neumann, logdet = drawn.axes
    assert frobenius.get_yticklabels()[0].get_text() == "sgd"
    stars = [line.get_ydata()[0] for line in frobenius.lines if line.get_marker() == "*"]
    assert [frobenius.get_yticklabels()[k].get_text() for k in stars] == ["shampoo"]
    assert [text.get_text() for text in von_neumann.texts] == ["inf"]  # GaLore's
    assert {text.get_text() for text in logdet.texts} == {"inf", "-inf"}
    for axes in drawn.axes:
        assert axes.get_xlim()[1] < 1.1 * WIDEST
        assert all(axes.get_xlim()[0] <= text.xy[0] <= axes.get_xlim()[1] for text in axes.texts)  # and not cut off


def test_the_printed_table_fits_a_terminal_and_marks_the_nearest(comparison, capsys):
    three = [row._replace(name=name) for row, name in zip(comparison.rows, ("racs", "adafactor", "sinkgd"), strict=False)]
    print_tables(dataclasses.replace(comparison, rows=(*three, *comparison.rows[3:])), "float32")
    printed = capsys.readouterr().out
    lines = [re.split(r"\s+", line.strip()) for line in printed.splitlines()]
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    shown = next(line for line in lines if line[0] == "adafactor" and "*" in "".join(line))  # Shampoo, renamed
    near = comparison.rows[1].divergences["Frobenius"]
    assert shown[1:4] == [f"{near.error:.3f}*B"[1:], f"{near.basis:.3f}"[1:], f"{near.scaled:.3f}*"[1:]]
    assert ["adafactor", "rank", "one", "von", "Neumann"] in [line[:5] for line in lines]


# --- the optimum of each divergence, seen in the others ------------------------------------------------------------


def test_the_table_of_optima_is_that_of_the_lens():
    """`docs/lens.json` is what `fimlens lens` wrote."""
    report = json.loads((ROOT / "docs" / "lens.json").read_text())
    page = (ROOT / "docs" / "divergences.md").read_text()
    assert re.search(r"<!-- crossed.*? -->\n(.*?)\n<!-- end -->", page, re.S)[1] == crossed.table(report)


def test_the_fit_of_each_divergence_is_the_nearest_in_it():
    for matrix in json.loads((ROOT / "docs" / "lens.json").read_text())["matrices"]:
        rows = {row["name"]: {d: crossed.Nearness(**near) for d, near in row["divergences"].items()} for row in matrix["rows"]}
        errors = crossed.crossed_errors(rows)
        assert list(errors) == ["rank one", "Kronecker"]
        for table in errors.values():
            assert [min(range(3), key=lambda k, d=d: float(table[k][d])) for d in range(3)] == [0, 1, 2]
