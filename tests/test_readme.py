"""The README runs: its blocks of Python, in order, and its commands are those of the Makefile and the command line."""

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
        assert (ROOT / target.partition("#")[0]).exists(), target


@pytest.mark.proof
def test_the_table_of_closed_forms_is_current():
    between = re.search(r"<!-- closed forms.*? -->\n(.*?)\n<!-- end -->", README, re.S)[1]
    assert between == closed_forms.table()
