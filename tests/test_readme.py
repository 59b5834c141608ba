"""The README runs: its blocks of Python, in order, and its commands are those of the Makefile and the command line."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from sympy.parsing.sympy_parser import convert_xor, implicit_multiplication, parse_expr, standard_transformations
from test_memory import FORMULAS

from fimlens import derivations
from fimlens.cli.app import app
from fimlens.proofs import closed_forms
from fimlens.proofs.theorem import load_derivations
from fimlens.structures.named import STRUCTURES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_runs(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert "False" not in capsys.readouterr().out


def test_commands_exist():
    shell = " ".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", shell):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for name in re.search(r"--structures (\S+)", shell)[1].split(","):
        assert name in STRUCTURES
    assert set(re.search(r"fimlens prove ([\w ]+?) --", shell)[1].split()) <= set(load_derivations(derivations))


TOLD = ["README.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")), "notebooks/04_train_with_flax.py"]


@pytest.mark.parametrize("page", TOLD)
def test_command_lines_are_understood(page):
    """Every line that begins with fimlens in a block of commands; it is parsed, not run."""
    group = typer.main.get_command(app)
    text = re.sub(r"^# ?", "", (ROOT / page).read_text(), flags=re.M) if page.endswith(".py") else (ROOT / page).read_text()
    lines = re.findall(r"^(?:\$ )?fimlens (.+)$", "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)), re.M)
    for name, *arguments in (shlex.split(line, comments=True) for line in lines):
        group.commands[name].make_context(name, arguments)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        path, _, heading = target.partition("#")
        path = path or "README.md"
        assert (ROOT / path).exists(), target
        headings = re.findall(r"^#+ (.*)", (ROOT / path).read_text(), re.M) if heading else []
        assert not heading or heading in [title.lower().replace(" ", "-") for title in headings], target


def test_errors_are_those_of_the_lens():
    """Of the first matrix; `docs/lens.json` is what `fimlens lens` wrote beside `docs/lens.png`."""
    rows = json.loads((ROOT / "docs" / "lens.json").read_text())["matrices"][0]["rows"]
    measured = {row[key]: f"{abs(row['relative']):.3f}" for row in rows for key in ("name", "structure")}
    told = re.findall(r"^\| `([^`]+)`.*\| (\d\.\d{3}) \|", README, re.M)
    assert len(told) == 15
    for name, error in told:
        assert error == measured[name.replace(', "LR"', "")], name


def test_the_comparison_of_twelve_is_as_measured():
    """Every row of both tables, and of `docs/which.md`, by what `fimlens compare` wrote."""
    told = [(ROOT / name).read_text() for name in ("benchmarks/README.md", "docs/which.md")]
    reached, costs = (ROOT / "benchmarks" / "twelve" / "table.md").read_text().split("\n\n")[:2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in reached.splitlines()[2:]]
    shares = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in costs.splitlines()[2:])}
    assert len(rows) == 12
    for name, rate, loss, *_, steps, time in rows:
        tokens, effective, share, megabytes = shares[name]
        steps, time = ("1", "1") if name == "adam" else (steps or "never", time)
        ending = f"| {steps} | {time} |".replace("|  |", "| |")
        costs_told = f"| `{name}` | {tokens} | {effective} | {share} | {megabytes} |".replace("|  |", "| |")
        assert re.search(rf"^\| `{name}` \| {re.escape(rate)} \| .*{re.escape(ending)} ", told[0], re.M), name
        assert costs_told in told[0], name
        assert f"| `{name}` | {float(loss):.3f} {ending} {share} | {float(megabytes):.1f} |" in told[1], name


def rows_told():
    """The names and the cells of each row of README's two tables of optimizers, which have seven columns."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`(\w+)`", cells[0]), cells) for cells in rows if len(cells) == 7]


@pytest.mark.parametrize("rank", [5, 3], ids=["whole", "low rank"])
def test_states_are_those_of_the_formulas(rank):
    """At 5 x 7, where r is the shorter side in the first table, and the rank in the second."""
    low_rank = {"alice", "alice0", "alice_muon", "galore", "fira", "frugal", "cosmos", "apollo", "low_rank_soap"}
    implicit = (*standard_transformations, convert_xor, implicit_multiplication)
    checked = 0
    for names, cells in rows_told():
        names = [name for name in names if name in FORMULAS and (name in low_rank) == (rank == 3)]
        told = cells[3].partition(", and")[0].replace("²", "^2").replace("(+", "+ (").split(", ")
        for name, formula in zip(names, told * len(names), strict=False):
            number = parse_expr(formula, {"m": 5, "n": 7, "r": rank}, implicit)
            assert number == FORMULAS[name](5, 7, rank), name
            checked += 1
    assert checked == (9 if rank == 3 else 21)


def test_sooner_is_as_measured():
    reached = (ROOT / "benchmarks" / "twelve" / "table.md").read_text().split("\n\n")[0]
    measured = {
        cells[0]: cells[-2] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in reached.splitlines()[2:])
    }
    measured |= {"adam": "1", "apollo": measured.pop("apollo-svd")}
    told = {name: cells[-1].removesuffix(" (svd)") for names, cells in rows_told() for name in names if cells[-1]}
    assert {name: steps or "never" for name, steps in measured.items()} == {name: told[name] for name in measured}


@pytest.mark.proof
def test_the_table_of_closed_forms_is_current():
    between = re.search(r"<!-- closed forms.*? -->\n(.*?)\n<!-- end -->", README, re.S)[1]
    assert between == closed_forms.table()
