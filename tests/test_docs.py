"""The documentation is true: every public name on one page, every page there, every message in the source, every block runs."""

import ast
import re
from pathlib import Path

import pytest

import fimlens as fl
from fimlens import derivations
from fimlens.lens.gallery import FAMILIES
from fimlens.proofs.theorem import load_derivations

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
GENERATED = {"benchmarks.md", "commands.md"} | NOTEBOOKS  # while the site is built, of what stands elsewhere
PAGES = sorted(set(DOCS.rglob("*.md")) - {DOCS / name for name in GENERATED})
API = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
PUBLIC = re.findall(r"import \w+ as (\w+)", (ROOT / "fimlens" / "__init__.py").read_text())
SHOWN = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.S | re.M)  # code, and what it prints
BLOCKS = {page.name: SHOWN.findall(page.read_text()) for page in PAGES}
RECIPES = {
    section.partition("\n")[0]: SHOWN.findall(section) for section in (DOCS / "recipes.md").read_text().split("\n## ")[1:]
}
SETUP = RECIPES.pop("Setup")


def messages():
    """Every string of the package, `…` for what is filled in."""
    for path in (ROOT / "fimlens").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_public_name_is_on_one_api_page():
    named = re.findall(r"^::: fimlens\.(\w+)$", API, re.M)
    assert sorted(named) == sorted(PUBLIC)
    assert all(hasattr(fl, name) for name in PUBLIC)


def test_the_version_is_the_same_everywhere():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == fl.__version__
    assert f"version: {fl.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_page_is_in_the_navigation_and_there():
    nav = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(nav) == sorted({str(page.relative_to(DOCS)) for page in PAGES} | GENERATED)


def test_the_search_on_files_needs_nothing_from_elsewhere():
    """The plugin `offline` fetches a script for it, unless the configuration names one of our own."""
    assert "polyfills: [iframe-worker.js]" in (ROOT / "mkdocs.yml").read_text()
    assert (DOCS / "iframe-worker.js").exists()


def test_every_derivation_is_on_the_page_of_proofs():
    named = re.findall(r"^::: derivations\.(\w+)$", (DOCS / "proofs.md").read_text(), re.M)
    assert sorted(named) == sorted(load_derivations(derivations))


def test_the_gallery_names_every_family():
    rows = re.findall(r"^\| ([^|`]+) \| `", (DOCS / "gallery.md").read_text(), re.M)
    assert sorted(", ".join(rows).split(", ")) == sorted(FAMILIES)


def test_sections_of_docstrings_have_names_that_the_site_knows():
    assert not [path for path in (ROOT / "fimlens").rglob("*.py") if re.search(r"^ *Example:$", path.read_text(), re.M)]


def test_quoted_messages_are_the_source_s():
    known = list(messages())
    for quoted in re.findall(r"^```text\n(.*?)\n```", (DOCS / "errors.md").read_text(), re.S | re.M):
        pattern = re.compile(".*".join(map(re.escape, quoted.split("…"))), re.S)
        assert any(pattern.search(message) for message in known), quoted


def run_blocks(blocks, page, capsys):
    names = {}
    for code, shown in blocks:
        exec(compile(code, page, "exec"), names)
        printed = capsys.readouterr().out
        assert "False" not in printed
        assert shown in ("", printed)


@pytest.mark.system
@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks and name != "recipes.md"])
def test_python_runs(page, capsys):
    run_blocks(BLOCKS[page], page, capsys)


@pytest.mark.system
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs_after_the_setup_alone(title, capsys):
    """It is skipped where a framework that it imports is not installed."""
    for code, _ in RECIPES[title]:
        for framework in re.findall(r"^(?:import|from) ([\w.]+)", code, re.M):
            pytest.importorskip(framework)
    run_blocks([*SETUP, *RECIPES[title]], title, capsys)
