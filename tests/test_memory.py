"""The state of every optimizer on LLaMA-60M is its formula, and the paper's totals come out of shapes alone."""

import inspect
import json
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from typer.testing import CliRunner

import fimlens as fl
from fimlens import optimizers
from fimlens.cli.app import app
from fimlens.costs import papers
from fimlens.costs.memory import GIB, NAMED, account, grouped
from fimlens.language_model import llama
from fimlens.transforms.norms import NormGrowthState

pytestmark = pytest.mark.system


def low_rank_soap(m, n, rank):
    """Numbers of state of low-rank SOAP, which no paper states (docs/corner.md)."""
    r, s = min(rank, m), min(rank, n)
    return m * r + n * s + (r + s) ** 2 + r * (s < n) + s * (r < m) + (r < m) * (s < n)


FORMULAS = papers.FORMULAS | {"low_rank_soap": papers.short_side_first(low_rank_soap)}
VARIANTS = {"apollo-svd": {"variant": "svd"}, "apollo-mini": {"variant": "mini"}}
CACHED = {"shampoo": lambda m, n: papers.rotated(m) ** 2 + papers.rotated(n) ** 2 + m + n}  # the roots: bases and eigenvalues
BESIDE = ("count", "lead_count", "weight", "key", "growth", *NormGrowthState._fields)  # counters, keys, the limiter's scalars


SIZES = {"rank": 128, "leading": 40}


def direction(name):
    """The direction of that name at the paper's sizes, or the whole optimizer where there is no other."""
    make = getattr(fl, f"scale_by_{name.partition('-')[0]}", None) or partial(getattr(fl, name), 1.0)
    sizes = {size: value for size, value in SIZES.items() if size in inspect.signature(make).parameters}
    return make(**sizes, **VARIANTS.get(name, {}))


@pytest.mark.parametrize("name", FORMULAS)
def test_the_state_is_its_formula(name):
    shapes = jax.eval_shape(partial(llama.init, llama.CONFIGS["llama-60m"]), jax.random.key(0))
    matrices = grouped(shapes)["matrices"]
    kept = 0
    for path, x in jax.tree_util.tree_leaves_with_path(jax.eval_shape(direction(name).init, matrices)):
        drawn = jnp.issubdtype(x.dtype, jnp.unsignedinteger)  # the key that stands for a random projection
        if not drawn and not any(str(getattr(key, "name", "")) in BESIDE for key in path):
            kept += x.size
    cached = CACHED.get(name, lambda m, n: 0)
    sides = [x.shape for x in jax.tree.leaves(matrices)]
    r = SIZES["rank"]
    assert kept == sum(FORMULAS[name](m, n, r) + cached(m, n) for m, n in sides)


@pytest.mark.parametrize("name", ["alice", "alice0", "galore", "apollo", "apollo-svd", "low_rank_soap", "soap", "racs"])
@pytest.mark.parametrize("shape", [(64, 1000), (128, 128), (4, 64, 256), (3, 3, 64, 128)], ids=str)
def test_the_formula_fits_ranks_over_a_side_and_leaves_of_more_axes(name, shape):
    path = {2: "w", 3: "layers", 4: "conv"}[len(shape)]
    row = account({path: jax.ShapeDtypeStruct(shape, jnp.float32)}, [name], state_dtype=jnp.float32, rank=128)[-1]
    if name == "low_rank_soap":
        *stack, m, n = fl.routes({path: jnp.empty(shape)})[path]
        stated = 4 * math.prod(stack) * low_rank_soap(*sorted((m, n)), 128)
    else:
        stated = row.formula - sum(row.weights.values())
    extra = sum(row.state.values()) - stated
    assert 0 <= extra < 64 + 16 * 9  # counters and keys, and a key for each matrix


ON_ADAM = {"adam": 7.48, "muon": 5.23, "racs": 2.98, "apollo-svd": 4.43}
ON_METHOD = {"galore": 4.25, "fira": 4.25, "alice0": 4.25, "alice": 4.42}


@pytest.mark.parametrize(("name", "figure"), [*ON_ADAM.items(), *ON_METHOD.items()])
def test_the_papers_totals_at_1b(name, figure):
    """With the head where the paper has it: two bytes an element, and four for Alice's p and Q~."""
    shapes = jax.eval_shape(partial(llama.init, llama.CONFIGS["llama-1b"]), jax.random.key(0))
    row = account(shapes, [name], model="llama-1b")[name in ON_METHOD]
    assert row.paper == figure
    assert row.formula / GIB == pytest.approx(figure, abs=0.006)
    assert row.total == pytest.approx(figure, abs=0.2 if name == "alice" else 0.006)


def test_the_command(tmp_path, monkeypatch):
    (tmp_path / "tiny_shapes.py").write_text(
        "import jax.numpy as jnp\ndef shapes(): return {'w': jnp.zeros((8, 4)), 'head': jnp.zeros((4, 9)), 'b': jnp.zeros(4)}\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["memory", "--model", "llama-1b", "--optimizer", "racs", "alice", "--json", "m.json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2.98" in result.output
    printed = " ".join(result.output.split())
    assert re.search(r"llama-1b: racs takes the least, [\d.]+ GiB; alice takes the most, [\d.]+ GiB\.", printed)
    assert "apollo projects at random" in printed
    rows = json.loads((tmp_path / "m.json").read_text())
    both = [(name, head) for name in ("racs", "alice") for head in ("adam", name)]
    assert [(row["optimizer"], row["head"]) for row in rows] == both
    own = CliRunner().invoke(
        app, ["memory", "--model", "tiny_shapes:shapes", "--optimizer", "soap", "--state-dtype", "float32"]
    )
    assert own.exit_code == 0, own.output
    for wrong, message in (
        (["--optimizer", "tiny_shapes:nothing"], "--optimizer: module 'tiny_shapes' has no attribute 'nothing'"),
        (["--model", "llama-2t"], "--model: there is no model"),
        (["--optimizer", "adma"], "--optimizer: there is no optimizer 'adma'"),
        (["--state-dtype", "float7"], "--state-dtype: 'float7'"),
        (["--model", "nothing:shapes"], "--model: No module"),
        (["--model", "math:pi"], "--model: math:pi is no tree of arrays: it has a float"),
    ):
        result = CliRunner().invoke(app, ["memory", *wrong])
        assert result.exit_code == 2
        assert f"fimlens memory: {message}" in " ".join(result.stderr.split())


def test_the_table_fits_a_terminal(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wide_shapes.py").write_text("import jax.numpy as jnp\ndef shapes(): return {'w': jnp.zeros((2**18, 2**17))}\n")
    arguments = ["memory", "--model", "wide_shapes:shapes", "soap", "adadiag_pp", "alice"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "128.00" in result.output  # all digits of the widest number
    assert "…" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_an_optimizer_of_ones_own_needs_no_formula():
    arguments = ["memory", "--optimizer", "optax:lion", "--state-dtype", "float32"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    shapes = {"w": jax.ShapeDtypeStruct((64, 48), jnp.float32)}
    row = account(shapes, {"mine": optax.lion}, state_dtype=jnp.float32)[0]
    assert (row.optimizer, row.head, row.formula, row.paper) == ("mine", "mine", None, None)
    assert row.state["matrices"] == 4 * 64 * 48 + 4  # the momentum, and a counter


def test_every_exported_optimizer_is_in_the_table():
    """An export is all that it takes: `OPTIMIZERS` has each function there that takes a learning rate."""
    assert {name for name in vars(optimizers) if hasattr(fl, f"scale_by_{name}")} <= set(optimizers.OPTIMIZERS)
    assert set(optimizers.OPTIMIZERS) <= set(NAMED)


def test_the_dtypes_count():
    shapes = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    two, four = (account(shapes, ["adam"], state_dtype=dtype)[0].state["matrices"] for dtype in ("bfloat16", "float32"))
    assert four - two == 2 * 2 * 64 * 64 + 2  # and of the weight that the averages have gathered


def test_a_side_over_the_limit_has_no_basis():
    """A head of 512 x 32000 took 7.75 GiB, of which 7.63 were two 32000-square matrices."""
    head = {"layers": jax.ShapeDtypeStruct((512, 32000), jnp.float32)}
    for name in ("shampoo", "soap", "osoap", "kl_shampoo", "kl_soap", "adadiag", "adadiag_pp", "adafacdiag"):
        row = account(head, [name], state_dtype=jnp.float32)[-1]
        stated = row.formula - sum(row.weights.values()) + 4 * CACHED.get(name, lambda m, n: 0)(512, 32000)
        assert 0 <= sum(row.state.values()) - stated <= 16  # counters
    state = jax.eval_shape(fl.scale_by_soap(max_basis_dim=None).init, head)
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) > 7.7 * GIB
    assert sum(account(head, ["soap"], state_dtype=jnp.float32)[-1].state.values()) < 0.13 * GIB


def test_evidence_is_that_of_the_whole_model():
    """Biases tell which axes of a kernel are outputs, and are in another group than the kernel."""
    module = {"kernel": (64, 4, 16), "bias": (4, 16)}
    shapes = {"mix": {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in module.items()}}
    adams = 2 * 4 * 16  # of the bias
    assert sum(account(shapes, ["racs"], state_dtype=jnp.float32)[-1].state.values()) == pytest.approx(
        4 * (64 + 64 + adams), abs=64
    )
