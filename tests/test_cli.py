"""fimlens lens: a small run from end to end, a user's own model and structure, and errors in one line."""

import json
import sys

import jax
import pytest
from typer.testing import CliRunner

from fimlens.cli.app import app
from fimlens.cli.lens import TINY, _compiled_for

pytestmark = pytest.mark.system

QUICK = ["--steps", "2", "--samples", "4", "--solve-up-to", "0", "--matrices", "layers/0/attention/query"]

MODEL = """
import jax.numpy as jnp, fimlens as fl
params = {"w": jnp.ones((3, 2)), "column": jnp.ones((2, 1)), "idle": jnp.ones((2, 3))}
batches = [{"x": jnp.arange(18.0).reshape(6, 3) % 5}]
def endless():
    while True:
        yield batches[0]
def too_few(): return [{"x": jnp.ones((6, 4))}]
def logits(params, batch): return jnp.tanh(batch["x"] @ params["w"]) * params["column"][:, 0]
def loss(params, batch): return jnp.mean(logits(params, batch) ** 2)
class Own(fl.Diagonal): pass
class Wrong(fl.Diagonal):
    def project(self, moments): return 2 * moments
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(app, ["lens", "--out", str(tmp_path / "out"), *arguments])

    return call


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"model_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    return name


def test_a_small_run_writes_a_table_a_figure_and_every_number(run, tmp_path):
    result = run(*QUICK, "--structures", "adam,muon,soap", "--json", str(tmp_path / "numbers.json"))
    assert result.exit_code == 0, result.output
    assert "layers/0/attention/query (12 x 12)" in result.output
    for words in ("in basis", "In LogDet, nearest on the gradients of the fit: "):
        assert words in result.output.replace("\n", " ")
    for figure in ("lens.png", "divergences.png"):
        assert (tmp_path / "out" / figure).stat().st_size > 10_000
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report == json.loads((tmp_path / "out" / "lens.json").read_text())
    rows = {row["name"]: row for row in report["matrices"][0]["rows"]}
    assert list(rows) == ["adam", "muon", "soap"]
    assert rows["adam"]["kept"] == 144
    assert [near["unit"] for near in rows["adam"]["divergences"].values()] == ["share", "share", "nats"]  # of four samples
    assert rows["soap"]["relative"] < rows["adam"]["relative"]
    assert rows["soap"]["streamed"] < 1e-8 < rows["soap"]["free"]
    assert abs(rows["muon"]["basis"] + rows["muon"]["spectrum"] - rows["muon"]["relative"]) < 1e-12


@pytest.mark.parametrize("fisher", ["minibatch", "model", "model-exact"])
def test_every_fisher_of_the_built_in_model(run, fisher, programs_within_programs):
    result = run(*QUICK, "--samples", "2", "--structures", "adam", "--fisher", fisher)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_the_optimum_is_found_and_judged(run, model):
    result = run("--loss", f"{model}:loss", "--structures", f"adam,racs,soap,shampoo,{model}:Own")
    assert result.exit_code == 0, result.output
    assert "a bound" in result.output
    assert "A fit of the claim BOUND has up to " in result.output.replace("\n", " ")
    assert "column (2 x 1)" in result.output


def test_a_structure_that_does_not_suit_is_left_out_with_the_reason(run, model):
    result = run("--loss", f"{model}:loss", "--structures", "adam,alice", "--matrices", "w,idle")
    assert result.exit_code == 0
    assert "alice was left out" in result.output
    assert "Left out, as all gradients are zero: idle." in result.output
    alone = run("--loss", f"{model}:loss", "--structures", "adam", "--matrices", "idle")
    assert alone.exit_code == 2
    assert "all gradients of idle are zero" in alone.output.replace("\n", " ")


def test_a_run_in_which_nothing_is_judged_fails(run, model):
    result = run("--loss", f"{model}:loss", "--structures", "alice", "--matrices", "w")
    assert result.exit_code == 1
    assert "No structure suits w" in result.output


@pytest.mark.parametrize("fisher", ["empirical", "minibatch"])
def test_batches_are_drawn_until_there_are_enough_samples(run, model, fisher):
    arguments = ["--structures", "adam", "--matrices", " w, column", "--solve-up-to", "0", "--fisher", fisher]
    result = run("--loss", f"{model}:loss", "--batches", f"{model}:endless", "--samples", "8", *arguments)
    assert result.exit_code == 0, result.output
    assert "from 8 samples" in result.output
    assert "column (2 x 1)" in result.output


def test_an_error_in_the_users_own_code_names_the_line(run, model, tmp_path):
    result = run("--loss", f"{model}:loss", "--batches", f"{model}:too_few", "--structures", "adam")
    assert result.exit_code == 2
    line = next(k for k, line in enumerate(MODEL.splitlines(), 1) if "def logits" in line)
    assert f"{model}.py:{line})" in result.output.replace("\n", "")


def test_a_wrong_closed_form_fails_the_run(run, model):
    result = run("--loss", f"{model}:loss", "--structures", f"{model}:Wrong", "--matrices", "w")
    assert result.exit_code == 1
    assert "NO" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--structures", "adamw"], "no structure 'adamw'"),
        (["--matrices", "layers/9/attention/query"], "no matrix is named"),
        (["--fisher", "true"], "--fisher: one of"),
        (["--text", "nowhere.txt"], "cannot read nowhere.txt"),
        (["--dtype", "float17"], "is no dtype"),
        (["--loss", "nomodule:loss"], "No module named"),
        (["--model", "run", "--gradients", "run"], "give one of --loss, --model and --gradients"),
        (["--loss", "json"], "expected module:attribute"),
        (["--loss", "json:nothing"], "no attribute"),
        (["--structures", "json:loads"], "not a structure"),
        (["--json", "nowhere/numbers.json"], "--json: cannot write nowhere/numbers.json"),
    ],
)
def test_refusals_name_the_cause_and_leave_no_traceback(run, arguments, message):
    result = run(*(() if "--loss" in arguments else QUICK), *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_missing_package_is_named(run, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "fimlens.language_model.hugging_face", None)
    result = run("--model", str(tmp_path))
    assert result.exit_code == 2
    assert "needs pip install 'fimlens[models]'" in " ".join(result.output.split())


@pytest.mark.parametrize("command", ["lens", "ablate", "pretrain", "finetune --model m --task t", "compare"])
def test_a_file_is_refused_as_a_directory_of_results(command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path / "notes.txt")])
    assert result.exit_code == 2
    assert "Invalid value for '--out'" in result.output
    assert "is a file" in " ".join(result.output.replace("│", " ").split())
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("lens --length 8", "--length"),
        ("lens --params model:params", "--params"),
        ("lens --folds 2", "--folds"),
        ("lens --structures adam,soap --rank 8", "--rank"),
        ("lens --loss model:loss --steps 9", "--steps"),
        ("lens --loss model:loss --text notes.txt", "--text"),
        ("lens --gradients . --samples 9", "--samples"),
        ("lens --gradients . --solve-up-to 9", "--solve-up-to"),
        ("lens --model . --fisher minibatch", "--fisher"),
        ("pretrain --column words", "--column"),
        ("pretrain --shards . --tokens .", "--tokens"),
        ("compare --epochs 2", "--epochs"),
        ("compare --devices 8", "--devices"),
        ("compare --task sst2 --steps 9", "--steps"),
        ("compare --task sst2 --lengths 4,9", "--lengths"),
        ("compare --task sst2 --dry-run", "--dry-run"),
        ("finetune --model . --task sst2 --label y", "--label"),
        ("finetune --model . --task mine.csv --dataset glue", "--dataset"),
        ("finetune --model . --task sst2 --head-only --remat", "--remat"),
        ("compare --no-tune --tries 4", "--tries"),
        ("compare --dry-run --text notes.txt", "--text"),
        ("memory adam apollo-mini --rank 8", "--rank"),
        ("cost --optimizer racs --rank 8", "--rank"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(command, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 2
    assert f": {option} is read with " in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


CONTRARY = """
SIZES = 3
def steps(m, n): return m
def empty(): return {}
def number(rate): return rate
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("cost --html a --json ./a", "--json: a is the file of --html too. Name another."),
        ("prove adam --html a --json a", "--json: a is the file of --html too"),
        ("prove kronecker_vec contrary.py --json contrary.py", "contrary.py: SIZES are pairs of positive numbers"),
        ("prove nothing.py", "nothing.py is no file"),
        ("recommend contrary.py --budget 1 --out contrary.py", "--out: contrary.py is the file of ESTIMATES too"),
        ("ablate --out . --json runs.jsonl", "--json: runs.jsonl is the file of runs.jsonl too"),
        ("cost racs racs=2 racs=3", "--speed-up: that of racs is given twice"),
        ("cost --dtype bool", "--dtype: 'bool' is no dtype of real numbers"),
        ("memory --state-dtype U3", "--state-dtype: 'U3' is no dtype of real numbers"),
        ("memory --model contrary:number", "--model: contrary:number needs arguments"),
        ("memory --model contrary:empty", "--model: contrary:empty has no arrays"),
        ("memory --model .contrary:empty", "--model: expected module:attribute"),
        ("memory contrary:empty", "--optimizer: contrary:empty takes no learning rate"),
        ("memory contrary:number", "contrary:number returns 1.0. Name a function of the learning rate"),
        ("finetune --model . --task sst2 --option b1=0.8 --option b1=0.9", "--option: b1 is given twice"),
        ("compare adam:b1=0.8,b1=0.9", "adam:b1=0.8,b1=0.9: b1 is given twice"),
    ],
)
def test_contradictions_and_wrong_functions_are_refused(command, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "contrary.py").write_text(CONTRARY)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 2
    assert f"fimlens {command.split()[0]}: {message}" in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["contrary.py"]
    assert (tmp_path / "contrary.py").read_text() == CONTRARY


def test_only_tiny_matrices_are_compiled_without_optimisation():
    before = jax.config.read("jax_disable_most_optimizations")
    for entries, unoptimised in ((TINY, True), (TINY + 1, before)):
        with _compiled_for(entries):
            assert jax.config.read("jax_disable_most_optimizations") == unoptimised
        assert jax.config.read("jax_disable_most_optimizations") == before


def test_an_empty_or_short_text_is_refused(run, tmp_path):
    for content in ("", "short"):
        (tmp_path / "text.txt").write_text(content)
        result = run(*QUICK, "--text", str(tmp_path / "text.txt"))
        assert result.exit_code == 2
        assert "text:" in result.output
