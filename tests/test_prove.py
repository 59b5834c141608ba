"""The command `fimlens prove`: what it runs, prints and writes; and its page, which loads nothing and escapes all text."""

import json
import re
import xml.etree.ElementTree as xml
from types import ModuleType

import pytest
import sympy as sp
from typer.testing import CliRunner

from fimlens import derivations
from fimlens.cli.app import app
from fimlens.proofs.theorem import load_derivations, vanishes
from fimlens.proofs.typeset import MARKED, formula, prose
from fimlens.structures import EXAMPLES

pytestmark = pytest.mark.system

DERIVATIONS = load_derivations(derivations)
DOCUMENTED = """A <b>false</b> statement.

Let $a < b$; `x <y>` is A (x) B of f(x).
$$a^2 \\geq 0$$
"""
BOLD = "<b>bold</b> & (x)"


def run(*arguments):
    return CliRunner().invoke(app, ["prove", *map(str, arguments)], terminal_width=200)


def output_of(result):
    """The output without line breaks."""
    return " ".join(result.output.split())


@pytest.fixture
def known(monkeypatch):
    """A copy of the derivations, by name, that the command uses and a test may change."""
    copy = dict(DERIVATIONS)
    monkeypatch.setattr("fimlens.cli.prove.load_derivations", lambda package: copy)
    return copy


@pytest.fixture
def add(known):
    """Add a derivation with these steps to those that the command knows."""

    def added(name, steps, sizes=((2, 2), (2, 3))):
        known[name] = ModuleType(f"somewhere.{name}", DOCUMENTED)
        known[name].SIZES, known[name].steps = sizes, steps

    return added


def true(m, n):
    yield vanishes("this holds", [sp.Integer(0)])


def false(m, n):
    yield vanishes("this holds", [sp.Integer(0)])
    yield vanishes(BOLD, [sp.Symbol("<x>") * n])
    yield vanishes("never reached", [sp.Integer(0)])


def raises(m, n):
    yield vanishes("this holds", [sp.Integer(0)])
    yield vanishes("this does not end", [1 / 0])


def test_each_derivation_named_is_proved_once():
    result = run("adam", "kronecker_vec", "adam")
    assert result.exit_code == 0, result.output
    assert re.findall(r"(\w+): .*? (\d x \d(?:, \d x \d)*) +(\d+) +\d+\.\d +(\w+)", result.output) == [
        ("adam", "2 x 3, 2 x 2, 1 x 3", "12", "proved"),
        ("kronecker_vec", "2 x 2, 2 x 3, 3 x 2", "6", "proved"),
    ]
    assert "2 of 2 statements are proved, in 18 steps." in output_of(result)


def test_without_names_all_derivations_are_proved(known, add):
    known.clear()
    add("one", true)
    add("other", true)
    assert re.findall(r"(\w+): A", run().output) == ["one", "other"]


def test_an_unknown_name_is_refused_with_the_nearest_name_and_all_names():
    result = run("adam", "whitenning")
    assert result.exit_code == 2
    assert "no derivation 'whitenning'. Did you mean whitening? The derivations are adafactor, adam," in output_of(result)
    assert "Did you mean" not in run("zzzzzz").output


OWN = """
'A theorem of the user.'
from __future__ import annotations
from dataclasses import dataclass
import sympy as sp
from fimlens.proofs.theorem import vanishes

SIZES = ((2, 2),)


@dataclass(frozen=True)
class Value:
    entry: sp.Expr


def steps(m, n):
    yield vanishes("this holds", [Value(sp.Integer(m - n)).entry])
"""


def test_a_file_of_the_user_is_proved(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    result = run(tmp_path / "mine.py")
    assert result.exit_code == 0, result.output
    assert re.search(r"mine: A theorem of the user\. +2 x 2 +1 +\d+\.\d +proved", result.output)


def test_a_file_that_is_not_a_derivation_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("SIZES = ((2, 2),)\n")
    result = run(tmp_path / "mine.py")
    assert result.exit_code == 2
    assert "mine.py is not a derivation: it needs SIZES" in output_of(result)
    assert run(tmp_path / "nothing.py").exit_code == 2
    (tmp_path / "mine.py").write_text("SIZES = (\n")
    result = run(tmp_path / "mine.py")
    assert result.exit_code == 2
    assert "was never closed (mine.py, line 1)" in output_of(result)


def test_an_empty_package_of_derivations_is_an_error(tmp_path):
    """A folder fimlens/derivations that an older checkout left behind hides the package."""
    package = ModuleType("fimlens.derivations")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "__pycache__").mkdir()
    with pytest.raises(ImportError, match="delete it"):
        load_derivations(package)


def test_the_file_of_the_user_is_not_overwritten(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    result = run(tmp_path / "mine.py", "--json", tmp_path / "mine.py")
    assert result.exit_code == 2
    assert "mine.py too. Name another." in output_of(result)
    assert (tmp_path / "mine.py").read_text() == OWN


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_an_unwritable_file_is_refused_before_the_proofs(option, add):
    add("endless", lambda m, n: pytest.fail("it began"))
    result = run("endless", option, "nowhere/file")
    assert result.exit_code == 2
    assert f"{option}: cannot write nowhere/file" in output_of(result)


def test_a_step_that_fails_is_printed_and_other_derivations_go_on(add, tmp_path):
    add("false", false)
    result = run("false", "kronecker_vec", "--json", tmp_path / "proofs.json")
    assert result.exit_code == 1
    assert "NOT PROVED" in result.output
    assert f"false at 2 x 3, step 2: {BOLD}; the residue is 3*<x>" in output_of(result)
    report = json.loads((tmp_path / "proofs.json").read_text())
    assert not report["ok"]
    assert [(item["name"], item["proved"]) for item in report["derivations"]] == [("false", False), ("kronecker_vec", True)]
    sizes = report["derivations"][0]["sizes"]
    assert [(size["m"], size["n"]) for size in sizes] == [(2, 2), (2, 3)]
    assert sizes[1]["steps"] == [
        {"description": "this holds", "holds": True, "residue": "0"},
        {"description": BOLD, "holds": False, "residue": "3*<x>"},
    ]


def test_a_long_residue_is_shortened(add):
    add("long", lambda m, n: iter([vanishes("much remains", [sp.Symbol("x" * 500)])]), [(2, 2)])
    assert 200 <= run("long").output.count("x") < 220


@pytest.mark.parametrize(
    ("steps", "sizes", "reason"),
    [
        (raises, [(2, 2)], "at 2 x 2, step 2: ZeroDivisionError: division by zero"),
        (lambda m, n: iter(()), [(2, 2)], "the derivation has no steps"),
        (lambda m, n: iter([None]), [(2, 2)], "a step is what vanishes, equal, differs or convex returns; got None"),
        (true, [], "NOT PROVED"),
    ],
)
def test_a_derivation_that_raises_or_has_no_steps_is_not_proved(add, steps, sizes, reason):
    add("void", steps, sizes)
    result = run("void", "kronecker_vec")
    assert result.exit_code == 1
    assert reason in output_of(result)
    assert re.search(r"kronecker_vec: .* proved", result.output)


@pytest.fixture
def written(add, tmp_path):
    add("false", false)
    run("kronecker_vec", "false", "--html", tmp_path / "proofs.html")
    return (tmp_path / "proofs.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_its_links_lead_somewhere(written):
    tree = xml.fromstring(written)
    ids = [node.get("id") for node in tree.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    assert {node.get("href") for node in tree.iter("a")} == {"#kronecker_vec", "#false"} <= {f"#{name}" for name in ids}


def test_the_page_loads_nothing(written):
    tags = {node.tag for node in xml.fromstring(written).iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "use", "image"}
    assert not re.search(r"https?:|url\(|@import|src=", written)


def test_the_page_escapes_all_text(written):
    text = " ".join("".join(xml.fromstring(written).itertext()).split())
    for said in ("A <b>false</b> statement.", BOLD, "3*<x>", "x <y> is A ⊗ B of f(x)."):
        assert said in text
    assert not list(xml.fromstring(written).iter("b"))


def test_the_page_has_every_verdict_and_structure(written):
    tree = xml.fromstring(written)
    text = " ".join("".join(tree.itertext()).split())
    assert "1 of 2 statements are proved" in text
    rows = [["".join(cell.itertext()).replace("\xa0", " ") for cell in row] for row in tree.iter("tr")]
    assert [BOLD, "fails", "fails"] in rows
    assert ["this holds", "holds", "holds"] in rows
    assert any(row[-1] == "not proved" and row[1] == "2 \u00d7 2, 2 \u00d7 3" for row in rows)
    for H in EXAMPLES:
        assert any(row[0] == str(H) and row[-1] == H.claim.name for row in rows)
        assert H.claim.value in text
    assert ["Diagonal()", "adam", "EXACT"] in rows


@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_formula_of_a_docstring_is_drawn(name):
    text = DERIVATIONS[name].__doc__
    drawn = xml.fromstring(f"<p>{prose(text)}</p>")
    assert len(list(drawn.iter("path"))) == sum(part.startswith("$") for part in MARKED.split(text)) > 0
    assert "$" not in "".join(drawn.itertext())


def test_a_formula_stands_on_the_baseline_of_the_text():
    """A descender goes below the baseline, an x stands on it, a minus is above it, and the box contains the outline upright."""

    def baseline(latex):
        return float(re.search(r"vertical-align:(-?[\d.]+)em", formula(latex))[1])

    assert baseline("y") < -0.15
    assert abs(baseline("x")) < 0.02 < baseline("-")
    drawn = formula("y")
    _, top, _, height = map(float, re.search(r'viewBox="(.+?)"', drawn)[1].split())
    ordinates = [float(y) for y in re.findall(r"[\d.] (-?[\d.]+)", re.search(r' d="(.+?)"', drawn)[1])]
    assert top <= min(ordinates) < max(ordinates) <= top + height + 0.1


def test_latex_that_mathtext_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\\nosuchsymbol"):
        prose(r"Let $\nosuchsymbol$.")
