"""README and the pages around it are true: code runs, commands exist, figures are those that were measured."""

import json
import re
import runpy
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import typer
from sympy.parsing.sympy_parser import convert_xor, implicit_multiplication, parse_expr, standard_transformations
from test_memory import FORMULAS

import fimlens
from fimlens import derivations
from fimlens.cli.app import app
from fimlens.cli.training import options_of
from fimlens.lens.gallery import example
from fimlens.optimizers import OPTIMIZERS as MAKERS
from fimlens.proofs import closed_forms
from fimlens.proofs.theorem import load_derivations
from fimlens.structures.named import STRUCTURES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPTIMIZERS = (ROOT / "docs" / "optimizers.md").read_text()


def test_python_runs(capsys):
    """All blocks in order, as a reader types them: the network trains, and the structure's fit is proved."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    without = names["loss"](jax.tree.map(jnp.zeros_like, names["params"]), names["batch"])
    assert float(printed.split()[0]) < without / 2
    assert "fit: proved" in printed
    assert "False" not in printed


def test_commands_exist():
    pages = "README.md", "CONTRIBUTING.md", "docs/index.md", "docs/proofs.md"
    shell = "\n".join(re.findall(r"```sh\n.*?```|`make \w+`", "".join((ROOT / page).read_text() for page in pages), re.S))
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make (\w+)", shell))
    assert {"lens", "test", "lab", "notebooks", "prove"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    for name in re.search(r"--structures (\S+)", shell)[1].split(","):
        assert name in STRUCTURES
    assert set(re.search(r"fimlens prove ([\w ]+?) --", shell)[1].split()) <= set(load_derivations(derivations))
    for script in re.findall(r"`python (\S+?)`", README):
        assert (ROOT / script).exists(), script


TOLD = ["README.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")), "notebooks/04_train_with_flax.py"]


@pytest.mark.parametrize("page", TOLD)
def test_command_lines_are_understood(page):
    """Every line that begins with fimlens in a block of commands, and README's inside its lines; they are parsed, not run.

    Optimizers are made with the options that a line gives them.
    """
    group = typer.main.get_command(app)
    text = re.sub(r"^# ?", "", (ROOT / page).read_text(), flags=re.M) if page.endswith(".py") else (ROOT / page).read_text()
    lines = re.findall(r"^(?:\$ )?fimlens (.+)$", "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)), re.M)
    lines += re.findall(r"`fimlens (.+?)`", text) if page == "README.md" else []
    for name, *arguments in (shlex.split(line, comments=True) for line in lines):
        given = group.commands[name].make_context(name, arguments).params
        if name in ("pretrain", "finetune") and given["optimizer"] in MAKERS:  # its options are all that it needs
            MAKERS[given["optimizer"]](1e-3, **options_of("--option", list(given["option"] or ())))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)|src=\"([^\"]+)\"", README):
        target = "".join(target)
        path, _, heading = target.partition("#")
        path = path or "README.md"
        assert (ROOT / path).exists(), target
        headings = re.findall(r"^#+ (.*)", (ROOT / path).read_text(), re.M) if heading else []
        assert not heading or heading in [title.lower().replace(" ", "-") for title in headings], target


def test_errors_are_those_of_the_lens():
    """Of the first matrix; `docs/lens.json` is what `fimlens lens` wrote beside `docs/lens.png`."""
    rows = json.loads((ROOT / "docs" / "lens.json").read_text())["matrices"][0]["rows"]
    measured = {row[key]: f"{abs(row['relative']):.3f}" for row in rows for key in ("name", "structure")}
    told = re.findall(r"^\| `([^`]+)`.*\| (\d\.\d{3}) \|", OPTIMIZERS, re.M)
    assert len(told) == 15
    for name, error in told:
        assert error == measured[name.replace(', "LR"', "")], name


def tables_of(comparison):
    """The cells of each row of every table that a committed comparison wrote."""
    tables = (ROOT / "benchmarks" / comparison / "table.md").read_text().split("\n\n")
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]] for table in tables]


def test_the_comparison_of_twelve_is_as_measured():
    """Every row of both tables, by what `fimlens compare` wrote."""
    told = (ROOT / "benchmarks" / "README.md").read_text()
    rows, costs, *_ = tables_of("twelve")
    shares = {cells[0]: cells[1:] for cells in costs}
    assert len(rows) == 12
    for name, rate, *_, steps, time in rows:
        tokens, effective, share, megabytes = shares[name]
        steps, time = ("1", "1") if name == "adam" else (steps or "never", time)
        ending = f"| {steps} | {time} |".replace("|  |", "| |")
        costs_told = f"| `{name}` | {tokens} | {effective} | {share} | {megabytes} |".replace("|  |", "| |")
        assert re.search(rf"^\| `{name}` \| {re.escape(rate)} \| .*{re.escape(ending)} ", told, re.M), name
        assert costs_told in told, name


def compared():
    """The cells of each optimizer in the tables of whole schedules, by the name of its function."""
    _, costs, _, losses, speeds, *_ = tables_of("compare")
    longest = {row[0]: row for row in speeds}  # the last row of each is that of the longest schedule
    return {row[0].partition(":")[0]: (row, longest.get(row[0]), next(c for c in costs if c[0] == row[0])) for row in losses}


def test_the_comparison_of_whole_schedules_is_as_measured():
    """Every row of the tables in `benchmarks/README.md`, and of the one in `docs/which.md`, by what the command wrote."""
    benchmarks, which = ((ROOT / name).read_text() for name in ("benchmarks/README.md", "docs/which.md"))
    tables = (ROOT / "benchmarks" / "compare" / "table.md").read_text().split("\n\n")
    assert len(compared()) == 8
    for table in tables[3:5]:
        assert table.strip() in benchmarks
    for name, (losses, speeds, costs) in compared().items():
        ends = " | ".join(f"{float(each.split()[0]):.3f}" for each in losses[1:-1])
        faster = " | ".join(each.partition(" (")[0] for each in speeds[2:4]) if speeds else "1 | 1"
        assert f"| `{name}` | {ends} | {faster} | {costs[3]} | {float(costs[4]):.1f} |" in which, name


def rows_told():
    """The names and the cells of each row of the two tables of all optimizers, which have seven columns."""
    return table_rows(OPTIMIZERS, columns=7)


def table_rows(text, *, columns):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`(\w+)`", cells[0]), cells) for cells in rows if len(cells) == columns]


@pytest.mark.parametrize("rank", [5, 3], ids=["whole", "low rank"])
def test_states_are_those_of_the_formulas(rank):
    """At 5 x 7, where r is the shorter side in the first table, and the rank in the second."""
    low_rank = {"alice", "alice0", "alice_muon", "galore", "fira", "frugal", "cosmos", "apollo", "low_rank_soap"}
    implicit = (*standard_transformations, convert_xor, implicit_multiplication)
    checked = 0
    for names, cells in rows_told():
        names = [name for name in names if name in FORMULAS and (name in low_rank) == (rank == 3)]
        told = cells[3].partition(", and")[0].replace("²", "^2").replace("(+", "+ (").split(", ")
        for name, written in zip(names, told * len(names), strict=False):
            number = parse_expr(written, {"m": 5, "n": 7, "r": rank}, implicit)
            # The page adds in brackets what only Apollo with singular vectors keeps, its basis.
            formula = FORMULAS["apollo-svd" if name == "apollo" else name]
            assert number == formula(5, 7, rank), name
            checked += 1
    assert checked == (9 if rank == 3 else 21)


def test_speed_ups_are_as_measured():
    measured = {name: speeds[2].partition(" (")[0] if speeds else "1" for name, (_, speeds, _) in compared().items()}
    told = {name: cells[-1] for names, cells in rows_told() for name in names if cells[-1]}
    assert told.pop("adam") == "1"
    assert told == measured


def test_the_short_table_agrees_with_the_long_one():
    """README has at most eight rows. One of them, `recommended`, stands for many structures."""
    long = {name: (cells[3], cells[-1]) for names, cells in rows_told() for name in names}
    short = {names[0]: tuple(cells[2:]) for names, cells in table_rows(README, columns=4)}
    assert short.pop("recommended") == ("your budget", "")
    assert 5 <= len(short) <= 7
    assert short == {name: long[name] for name in short}


def test_the_headline_figures_are_as_measured():
    faster = re.search(r"Alice-Muon needs 1/(\S+) of a tuned AdamW's steps, Muon 1/(\S+), SOAP 1/(\S+) ", README).groups()
    assert faster == tuple(compared()[name][1][2].partition(" (")[0] for name in ("alice_muon", "muon", "soap"))
    for share in re.search(r"RACS takes (\S+ to \S+) of .* Alice (\S+ to \S+) ", README).groups():
        assert f"{share} " in (ROOT / "benchmarks" / "README.md").read_text()
    count, of = map(int, re.search(r"nearest on (\d+) of (\d+) matrices", README).groups())
    matrices = json.loads((ROOT / "benchmarks" / "smollm2" / "estimates.json").read_text())["matrices"].values()
    errors = [{name: row["relative"] for name, row in found["Frobenius"]["rows"].items()} for found in matrices]
    assert (count, of) == (sum(min(e, key=e.get) == "shampoo squared" for e in errors), len(errors))
    assert int(re.search(r"(\d+) theorems", README)[1]) == len(load_derivations(derivations))
    assert f"version = {{{fimlens.__version__}}}" in README


@pytest.mark.system
def test_the_picture_of_readme_has_the_errors_that_its_text_says():
    titles = runpy.run_path(ROOT / "benchmarks" / "idea.py")["panels"](example())
    drawn = dict(re.findall(r"error (\S+) → fl\.(\w+)", " ".join(titles)))
    assert len(drawn) == 3
    assert drawn == dict(re.findall(r"(\d\.\d\d) and makes fl\.(\w+)", README))


@pytest.mark.proof
def test_the_table_of_closed_forms_is_current():
    page = (ROOT / "docs" / "proofs.md").read_text()
    between = re.search(r"<!-- closed forms.*? -->\n(.*?)\n<!-- end -->", page, re.S)[1]
    assert between == closed_forms.table()
