"""The README runs: its blocks of Python, in order, and its commands are those of the Makefile and the command line."""

import json
import re
from pathlib import Path

import pytest

from fimlens import closed_forms, lens
from fimlens.proof import derivations

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
        assert name in lens.STRUCTURES
    assert set(re.search(r"fimlens prove ([\w ]+?) --", shell)[1].split()) <= set(derivations())


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        path, _, heading = target.partition("#")
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


@pytest.mark.proof
def test_the_table_of_closed_forms_is_current():
    between = re.search(r"<!-- closed forms.*? -->\n(.*?)\n<!-- end -->", README, re.S)[1]
    assert between == closed_forms.table()
