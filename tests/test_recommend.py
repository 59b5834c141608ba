"""Recommendations: the knapsack against all combinations, what error bars decide, the mixed optimizer, and the command."""

import itertools
import json
import math
from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

import fimlens as fl
from fimlens._validate import path_name
from fimlens.cli.app import app
from fimlens.costs.flops import step_flops
from fimlens.lens import recommend as module
from fimlens.lens.estimates import make_estimate
from fimlens.models.matrices import select_matrices
from fimlens.optimizers import mixture
from fimlens.structures.named import STRUCTURES, read_structure


@dataclass(frozen=True)
class Mine(fl.Rows):
    """A structure that fimlens does not have."""


FOLDS = np.array([1.0, -1.0, 2.0, -2.0])  # standard error 0.91
SHAPES = {"query": (3, 4), "up": (3, 6), "down": (6, 3)}


SIZES = {"sgd": 1, "columns": 4, "adam": 18, "osoap": 32, "soap": 90}


def priced(structure, shape):
    """Costs that need no trace."""
    name = next(name for name, own in STRUCTURES.items() if own == structure)
    return SIZES[name] + shape[0]


def estimated(errors, shape=(3, 4), spread=0.0, divergence="Frobenius()", structures=STRUCTURES):
    """Estimates with these errors; `spread` times FOLDS, turned by one for each structure, is their noise."""
    rows = {}
    for turn, (name, error) in enumerate(errors.items()):
        pseudo = error + spread * np.roll(FOLDS, turn)
        rows[name] = make_estimate(pseudo, pseudo, error, error, 48, None)
    return fl.Estimates(rows, {}, {name: structures[name] for name in errors}, divergence, shape, 64, 4, (1.0, 0.1))


def drawn(seed, names=("sgd", "columns", "adam", "osoap", "soap")):
    draw = np.random.default_rng(seed)
    return {matrix: estimated(dict(zip(names, draw.uniform(size=len(names)), strict=True)), s) for matrix, s in SHAPES.items()}


# --- the choice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_of_all_combinations(seed, monkeypatch):
    monkeypatch.setitem(module.COSTS, "memory", priced)
    estimates = drawn(seed)
    for budget in (16, 20, 60, 110, 170, 300):
        found = fl.recommend(estimates, budget, grid=budget - 15)  # the least choice costs 15: a cell is 1
        best = math.inf
        for rows in itertools.product(*found.table.values()):
            if sum(row.cost for row in rows) <= budget:
                weighted = [row.error * math.prod(shape) for row, shape in zip(rows, SHAPES.values(), strict=True)]
                best = min(best, sum(weighted) / (12 + 18 + 18))
        np.testing.assert_allclose(found.total_error, best, rtol=1e-12)


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, Fraction])
def test_a_budget_may_be_any_real_number(kind, monkeypatch):
    monkeypatch.setitem(module.COSTS, "memory", priced)
    estimates = {"w": estimated({"sgd": 1.0, "columns": 0.5})}
    assert fl.recommend(estimates, kind(8)).total_cost == 7
    with pytest.raises(ValueError, match=r"a budget of .* is too small"):
        fl.recommend(estimates, kind(3))


def test_the_budget_is_never_exceeded(monkeypatch):
    """Also where costs are no whole numbers, and where the cheapest choice takes all of it."""
    monkeypatch.setitem(module.COSTS, "memory", lambda structure, shape: priced(structure, shape) / 7)
    for seed, grid in itertools.product(range(3), (1, 3, 100)):
        for budget in (15.01 / 7, *np.random.default_rng(seed).uniform(15, 300, 4) / 7):
            assert fl.recommend(drawn(seed), budget, grid=grid).total_cost <= budget


def test_within_the_error_bars_the_cheaper_wins():
    """The noise of the differences is 0.18, 0.18 and 0.06. Columns are cheaper than Adam, and Adam is cheaper than SOAP."""
    clear = estimated({"columns": 0.9, "adam": 0.5, "soap": 0.1}, spread=0.1)
    assert fl.recommend({"w": clear}, 1000).choices == {"w": fl.Rotated(fl.Diagonal(), "LR")}
    unclear = estimated({"columns": 0.5, "adam": 0.4, "soap": 0.45}, spread=0.1)
    found = fl.recommend({"w": unclear}, 1000)
    assert found.choices == {"w": fl.Columns()}
    assert [row.verdict for row in found.table["w"]] == ["chosen", *["no clear gain on columns"] * 2]
    # Adam is not told from columns, so it is left out. SOAP is not told from Adam, but is clearly nearer than columns.
    chain = estimated({"columns": 0.5, "adam": 0.35, "soap": 0.15}, spread=0.1)
    verdicts = [row.verdict for row in fl.recommend({"w": chain}, 1000).table["w"]]
    assert verdicts == ["kept", "no clear gain on columns", "chosen"]


@pytest.mark.parametrize("bad", [math.inf, math.nan, -math.inf])
def test_what_is_not_finite_never_wins(bad):
    found = fl.recommend({"w": estimated({"sgd": bad, "columns": 0.5, "adam": bad})}, 1000)
    assert found.choices == {"w": fl.Columns()}
    assert [row.verdict for row in found.table["w"]] == ["chosen", *["its error is not finite"] * 2]
    with pytest.raises(ValueError, match="no structure of w has a finite error"):
        fl.recommend({"w": estimated({"sgd": bad})}, 1000)


def test_what_is_no_optimizer_is_left_out():
    projected = fl.LowRank(fl.Diagonal(), 2, tracker=fl.RandomProjection())
    found = fl.recommend({"w": estimated({"a": 0.1, "b": 0.5}, structures={"a": projected, "b": fl.Rows()})}, 1000)
    assert found.choices == {"w": fl.Rows()}
    assert "bases must be orthonormal" in found.table["w"][1].verdict


def test_a_step_s_cost_is_that_of_the_optimizer():
    found = fl.recommend({"w": estimated({"adam": 0.5, "soap": 0.1}, (8, 16))}, 1e9, cost="flops")
    tx = fl.scale_by_structure(STRUCTURES["soap"], update_interval=10)
    assert [row.cost for row in found.table["w"]] == [0.0, step_flops(tx, {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32)})]


@pytest.mark.parametrize(
    ("estimates", "options", "message"),
    [
        ({}, {}, "there are no estimates"),
        ({"a": estimated({}), "b": estimated({}, divergence="LogDet()")}, {}, "Frobenius.* of a, LogDet.* of b"),
        ({"w": estimated({"columns": 1.0, "adam": 0.5})}, {"budget": 3}, "a budget of 3 is too small. The cheapest .* takes 4"),
        ({"w": estimated({"sgd": 1.0})}, {"budget": math.inf}, "budget is a finite number"),
        ({"w": estimated({"sgd": 1.0})}, {"budget": math.nan}, "budget is a finite number"),
        ({"w": estimated({"sgd": 1.0})}, {"cost": "hours"}, "cost is one of memory, flops; got 'hours'"),
        ({"w": estimated({"sgd": 1.0})}, {"grid": 0}, "grid is a positive number"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_from_is_refused(estimates, options, message):
    with pytest.raises(ValueError, match=f"^recommend: .*{message}"):
        fl.recommend(estimates, **({"budget": 100} | options))


def test_other_things_than_estimates_are_refused():
    # The type checker of the tests would refuse both first.
    with pytest.raises(TypeError, match="expected estimates by matrix"):
        module._require({"w": 0.5}, 10, "memory")
    with pytest.raises(ValueError, match="budget is a finite number; got '10'"):
        module._require({"w": estimated({"sgd": 1.0})}, "10", "memory")


def test_it_survives_json():
    estimates = {"w": estimated({"sgd": math.inf, "columns": 0.9, "adam": 0.5}), "v": estimated({"sgd": 0.2}, (6, 3))}
    found = fl.recommend(estimates, 20)
    again = fl.Recommendation.from_json(json.loads(json.dumps(found.to_json())))
    assert again.choices == found.choices
    assert again.in_words() == found.in_words()
    assert str(again.table) == str(found.table)  # which has NaN


def test_structures_are_written_as_in_python():
    """A name means the structure of that name in fimlens, so that others are written out."""
    own = {"adam": fl.Rows(), "alice": fl.LowRank(fl.Diagonal(), 2, fl.Columns())}
    found = fl.recommend({name: estimated({name: 0.5}, structures=own) for name in own}, 100)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["choices"]["adam"] == "Rows()"
    assert fl.Recommendation.from_json(plain).choices == found.choices == own
    for structure in (Mine(), fl.Rotated(Mine(), "L"), type("Columns", (Mine,), {})()):
        with pytest.raises(ValueError, match=r"^to_json: "):
            fl.recommend({"w": estimated({"mine": 0.5}, structures={"mine": structure})}, 100).to_json()


@pytest.mark.parametrize(
    "text", ["sopa", "Rows", "Rows(", "open('x')", "Rows().claim", "LowRank(Diagonal(), 0)", "fl.Rows()", "1 + 1"]
)
def test_what_writes_no_structure_is_refused(text):
    with pytest.raises(ValueError, match=r"^lens: there is no structure .*There are sgd, .*as in Python"):
        read_structure("lens", text)


def test_it_says_what_the_best_single_structure_would_give():
    estimates = {"w": estimated({"columns": 0.9, "adam": 0.1}), "v": estimated({"columns": 0.3, "adam": 0.2}, (3, 8))}
    words = fl.recommend(estimates, 20).in_words()
    assert (
        "Of 20 numbers of state, 20 are spent, for a mean error of 0.233 (Frobenius): adam for 1, columns for 1 of 2" in words
    )
    assert "The best single structure within the budget is columns: 12, with 0.500." in words
    apart = {"w": estimated({"columns": 0.9}), "v": estimated({"adam": 0.2})}
    assert "No single structure" in fl.recommend(apart, 20).in_words()


# --- the optimizer ------------------------------------------------------------------------------------------------------


def tree(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {"layer": {name: jax.random.normal(key, (3, 4)) for name, key in zip(("query", "key", "value"), keys, strict=True)}}


def test_each_matrix_has_the_optimizer_of_its_structure():
    """The first pattern that suits a path counts, with dots or slashes; and Adam's diagonal where none does."""
    tx = fl.scale_by_recommended({"layer.query": STRUCTURES["soap"], "*/query": "sgd", "*/value": "racs"})
    parts = jax.eval_shape(tx.init, tree()).inner_states
    kept = {name: jax.tree.map(lambda x: x.shape, parts[name].inner_state) for name in parts}
    assert tuple(kept["Rotated(Diagonal())"].bases["3 x 4"])[:2] == ((1, 3, 3), (1, 4, 4))  # of one matrix
    nothing = {"query": optax.MaskedNode(), "key": optax.MaskedNode(), "value": optax.MaskedNode()}
    assert kept["RowColumn()"].averaged == ({"layer": nothing | {"value": (3, 1)}}, {"layer": nothing | {"value": (1, 4)}})
    assert kept["Diagonal()"].averaged == {"layer": nothing | {"key": (3, 4)}}
    assert kept["Scalar()"].averaged is None


def test_a_pattern_that_suits_nothing_is_named():
    with pytest.warns(UserWarning, match="named like missing. There are layer/key, layer/query, layer/value"):
        jax.eval_shape(fl.scale_by_recommended({"missing": "sgd", "*": "adam"}).init, tree())


def test_a_name_that_looks_like_a_pattern_has_its_choice():
    state = jax.eval_shape(fl.scale_by_recommended({"w[0]": "rows"}).init, {"w[0]": jnp.ones((3, 4))})
    assert state.inner_states["Rows()"].inner_state.averaged["w[0]"].shape == (3, 1)


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("w[0]", ["w[0]"]),  # equal, so that w0, which is like it, is another matrix
        ("w[!0]", ["w1"]),
        ("layer.*", ["layer/query"]),
    ],
)
def test_a_pattern_names_the_same_matrices_wherever_it_is_given(pattern, named):
    names = {"w[0]": jnp.ones((3, 4)), "w0": jnp.ones((3, 4)), "w1": jnp.ones((3, 4)), "layer": {"query": jnp.ones((3, 4))}}
    assert list(select_matrices("a test", names, [pattern]).leaves) == named
    state = jax.eval_shape(fl.scale_by_recommended({pattern: "rows"}).init, names)
    averaged = state.inner_states["Rows()"].inner_state.averaged
    assert [path_name(key) for key, _ in jax.tree_util.tree_leaves_with_path(averaged)] == named


def test_leaves_of_more_axes_and_injected_rates_go_through():
    """The views of `fl.matrices` meet leaves that another part of the mixture has."""
    params = {"conv": jnp.ones((3, 3, 2, 4)), "kernel": jnp.ones((2, 8)), "bias": jnp.ones(4)}
    make = optax.inject_hyperparams(fl.recommended)
    tx = make(0.1, choices={"conv": "columns", "kernel": STRUCTURES["osoap"]})
    state = jax.eval_shape(tx.init, params)
    moved, after = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.slow
def test_updates_of_all_structures_have_about_the_same_size():
    """The root mean square of F~^-1/2 G on gradients whose Fisher is a Kronecker product, without momentum."""
    a, b, c = jax.random.split(jax.random.key(0), 3)
    left, right = jax.random.normal(a, (16, 16)), jax.random.normal(b, (24, 24))
    gradients = left @ jax.random.normal(c, (400, 16, 24)) @ right
    names = sorted(set(STRUCTURES) - {"dense"})
    tx = fl.scale_by_recommended({name: name for name in names}, b1=0.0)

    @jax.jit
    def sizes(gradients):
        def step(state, G):
            updates, state = tx.update(dict.fromkeys(names, G), state)
            return state, jax.tree.map(lambda U: jnp.sqrt(jnp.mean(U**2)), updates)

        return jax.lax.scan(step, tx.init(dict.fromkeys(names, gradients[0])), gradients)[1]

    found = {name: float(jnp.median(size[200:])) for name, size in sizes(gradients).items()}
    assert 0.45 < found.pop("galore") < 0.55  # it drops all but 4 of 16 directions
    assert 0.8 < min(found.values()) <= max(found.values()) < 1.1


def test_racs_on_a_gradient_of_blocks_is_bounded():
    """The exact product would be zero outside the leading block, and the update infinite or zero there."""
    G = {"w": jnp.diag(jnp.array([1.0, 0.5, 0.1]))}
    tx = fl.scale_by_recommended({"w": "racs"})
    updates, _ = tx.update(G, tx.init(G))
    assert (jnp.diag(updates["w"]) > 0.5).all()
    assert jnp.abs(updates["w"]).max() <= math.sqrt(30 * 3)


@pytest.mark.parametrize("name", ["sgd", "rows", "racs", "adafactor", "adam", "galore", "shampoo", "soap"])
def test_the_cost_of_memory_is_what_the_state_takes(name):
    W = {"w": jax.ShapeDtypeStruct((16, 24), jnp.float32)}
    state = jax.eval_shape(fl.scale_by_recommended({"w": name}).init, W).inner_states[str(STRUCTURES[name])].inner_state
    kept = sum(x.size for x in jax.tree.leaves((state.bases, state.covariances, state.averaged)))
    assert fl.recommend({"w": estimated({name: 0.5}, (16, 24))}, 1e6).total_cost == kept


def test_wrong_choices_are_refused(tmp_path):
    for choices, kind, message in (
        ({"w": "sopa"}, ValueError, "recommended: there is no structure 'sopa'. There are sgd"),
        (tmp_path / "none.json", OSError, "none.json"),
        (str(tmp_path / "wrong.json"), ValueError, "holds no choices"),
    ):
        (tmp_path / "wrong.json").write_text("[1]")
        with pytest.raises(kind, match=message):
            fl.recommended(0.1, choices=choices)
    with pytest.raises(TypeError, match=r"^recommended: expected a structure"):
        mixture._structure(3)
    with pytest.raises(TypeError, match=r"such as the `choices` of fl.recommend; got a Recommendation"):
        mixture._given(fl.recommend({"w": estimated({"sgd": 0.5})}, 10))
    with pytest.raises(TypeError, match="recommended: missing a required argument: 'choices'"):
        fl.recommended(0.1)


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_optimizer_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = {
        "layer.query": {"adam": 0.9, "soap": 0.1, "mine": 0.0},
        "layer.value": {"rows": 0.2, "adam": 0.1, "soap": math.inf},
    }
    known = STRUCTURES | {"mine": Mine()}
    matrices = {
        name: {
            "Frobenius": estimated(errors, structures=known).to_json(),
            "LogDet": estimated({"sgd": 1.0}, divergence="LogDet()").to_json(),
        }
        for name, errors in parts.items()
    }
    (tmp_path / "estimates.json").write_text(json.dumps({"matrices": matrices}))
    done = CliRunner().invoke(app, ["recommend", "estimates.json", "--budget", "90", "--out", "r.json"])
    assert done.exit_code == 0, done.output
    for words in ("layer.query: 12 entries", "soap", "chosen", "its error is not finite", "numbers of state", "are spent"):
        assert words in done.output
    assert json.loads((tmp_path / "r.json").read_text())["choices"] == {"layer.query": "soap", "layer.value": "adam"}
    state = fl.recommended(0.1, choices="r.json").init(tree())
    assert sorted(state[0].inner_states["method"].inner_state.inner_states) == ["Diagonal()", "Rotated(Diagonal())"]
    logdet = ["recommend", "estimates.json", "--budget", "90", "--divergence", "logdet", "--cost", "flops"]
    assert CliRunner().invoke(app, logdet).exit_code == 0
    (tmp_path / "bad.json").write_text('{"matrices": [1]}')
    part = matrices["layer.query"]["Frobenius"]
    changes = {"folds": None, "shape": [3], "norm_squared": ["a"], "rows": {"adam": part["rows"]["adam"] | {"se": []}}}
    for key, value in changes.items():
        broken = part | {key: value}
        (tmp_path / f"bad-{key}.json").write_text(json.dumps({"matrices": {"w": {"Frobenius": broken}}}))
    for wrong, message in (
        (["none.json", "--budget", "1"], "fimlens recommend: none.json is no file. Let `fimlens lens --gradients` write it"),
        (["estimates.json", "--budget", "1"], "fimlens recommend: a budget of 1.0 is too small"),
        (["estimates.json", "--budget", "90", "--divergence", "kl"], "fimlens recommend: there is no divergence 'kl'"),
        (
            ["estimates.json", "--budget", "90", "--divergence", "von-neumann"],
            "holds no estimates in VonNeumann()",
        ),
        (["bad.json", "--budget", "90"], "bad.json holds no estimates"),
        *(([f"bad-{key}.json", "--budget", "90"], "holds no estimates") for key in changes),
    ):
        refused = CliRunner().invoke(app, ["recommend", *wrong])
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())
