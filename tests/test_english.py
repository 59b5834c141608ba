"""The English of documentation and notebooks: README is short, sentences are short, and phrases that puzzled readers stay away.

A sentence has at most 30 words. Blocks of code, formulas, tables and headings are no sentences; a list item is one. A piece of
code or a formula inside a sentence counts as one word.
"""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README_WORDS, SENTENCE_WORDS = 900, 30
PAGES = ["README.md", "benchmarks/README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("**/*.md"))]
PAGES = [page for page in PAGES if not page.startswith("docs/notebooks/")]  # generated from these:
PAGES += sorted(str(notebook.relative_to(ROOT)) for notebook in (ROOT / "notebooks").glob("*.ipynb"))
SOURCES = sorted(str(path.relative_to(ROOT)) for room in ("fimlens", "derivations") for path in (ROOT / room).rglob("*.py"))
PHRASES = (  # each was rewritten once, because a reader did not understand it
    "what lets a norm grow",
    "a direction never seen",
    "What becomes of statistics",
    "coordinates that are all there is",
    "statistics sum up to",
    "Beside each name are the numbers",
    "averaging them plainly",
    "told, not judged",
    "but for",
    "as printed",
    "where there is none",
    "is of the family",
    "are of the family",
    "an optimizer sees averages of it",
    "Adam's steps over those to",
    "at the lead's ratio",
    "tell instances apart",
    "holds independent sentences",
    "said to be of an H100",
    "state, for its bytes",
)


def read(page):
    """The text of a page, or that of all cells of words of a notebook."""
    text = (ROOT / page).read_text()
    if not page.endswith(".ipynb"):
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def sentences(text):
    """The sentences of a Markdown text, in order."""
    text = re.sub(r"^ *```.*?^ *```|<!--.*?-->", "\n\n", text, flags=re.S | re.M)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|<\w[^>]*>", "", text)  # pictures
    text = re.sub(r"^(\||#|:::|!!!).*$|(?<=\n\n) {4,}(?![-*]).*$", "\n", text, flags=re.M)  # tables, headings, code of Markdown
    text = re.sub(r"``.+?``|`[^`]+`|\$\$.+?\$\$|\$[^$]+\$", "code", text, flags=re.S)
    text = re.sub(r"\[([^]]+)\](\([^)]*\)|\[[^]]*\])", r"\1", text)  # links keep their words
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        plain = re.sub(r"\b(et al|e\.g|i\.e|vs|cf|Fig|Alg|Eq)\.", r"\1", " ".join(paragraph.replace("*", "").split()))
        yield from re.split(r"(?<=[.!?])[)\"]* (?=[\"(\[]*[A-Z0-9]|code|fimlens)", plain)


def words(sentence):
    return [word for word in sentence.split() if re.search(r"\w", word)]


def phrases_in(text):
    flat = " ".join(text.split()).lower()
    return [phrase for phrase in PHRASES if re.search(rf"\b{re.escape(phrase.lower())}\b", flat)]


def docstrings(path):
    documented = ast.Module, ast.ClassDef, ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, documented)]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short(page):
    assert [s for s in sentences(read(page)) if len(words(s)) > SENTENCE_WORDS] == []


@pytest.mark.parametrize("page", PAGES)
def test_phrases_stay_away(page):
    assert phrases_in(read(page)) == []


def test_phrases_stay_away_from_docstrings():
    found = {path: phrases_in(docstrings(path)) for path in SOURCES}
    assert {path: phrases for path, phrases in found.items() if phrases} == {}


def test_the_splitter_sees_what_is_too_long():
    """It would pass everything if it found no sentences."""
    text = "# A heading.\n\nOne `a. b` two [three four](x.md). Five!\nSix $x. y$, et al. seven.\n\n| a. | b. |\n"
    text += (
        "\n- eight nine\n- ten\n\n```sh\nno. sentence.\n```\n\n    python code.py\n\nEleven: 3.5 twelve (thirteen). Fourteen.\n"
    )
    assert [len(words(s)) for s in sentences(text) if words(s)] == [5, 1, 5, 2, 1, 4, 1]
    assert phrases_in("All of it,\nBut for one") == ["but for"]
    assert not phrases_in("a debut for one")
