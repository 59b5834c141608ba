"""The English of pages, notebooks and code: README is short, sentences are short, and phrases that puzzled readers stay away.

A sentence has at most 30 words. Blocks of code, formulas, tables and headings are no sentences; a list item is one. A piece of
code or a formula inside a sentence counts as one word. Of Python files every string counts: docstrings, help of commands,
messages of errors.
"""

import ast
import inspect
import json
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README_WORDS, SENTENCE_WORDS = 900, 30
PAGES = ["README.md", "benchmarks/README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("**/*.md"))]
PAGES = [page for page in PAGES if not page.startswith("docs/notebooks/")]  # generated from these:
PAGES += sorted(str(notebook.relative_to(ROOT)) for notebook in (ROOT / "notebooks").glob("*.ipynb"))
ROOMS = "fimlens", "derivations", "examples", "benchmarks"
SOURCES = sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
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
    text = re.sub(r"\.\s*\$\$(?=\s|$)", "$$.", text)  # the full stop of a displayed formula
    text = re.sub(r"``.+?``|`[^`]+`|\$\$.+?\$\$|\$[^$]+\$", "code", text, flags=re.S)
    text = re.sub(r"\[([^]]+)\](\([^)]*\)|\[[^]]*\])", r"\1", text)  # links keep their words
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        plain = re.sub(r"\b(et al|e\.g|i\.e|vs|cf|Fig|Alg|Eq)\.", r"\1", " ".join(paragraph.replace("*", "").split()))
        yield from re.split(r"(?<=[.!?])[)\"]* (?=[(\[]*[A-Z0-9\"]|code|fimlens|[a-z-]+: )", plain)


def words(sentence):
    return [word for word in sentence.split() if re.search(r"\w", word)]


def phrases_in(text):
    flat = " ".join(text.split()).lower()
    return [phrase for phrase in PHRASES if re.search(rf"\b{re.escape(phrase.lower())}\b", flat)]


def markdown(docstring):
    """A docstring as Markdown: without doctests, and with a paragraph, not a name, for each entry of a section."""
    text = re.sub(r"^ *>>> .*?(?=\n *\n|\Z)", "", inspect.cleandoc(docstring), flags=re.S | re.M)
    text, *sections = re.split(r"^(?:Args|Attributes|Examples|Raises|Returns|Warns):\n", text, flags=re.M)
    text = re.sub(r"^\S[^\n{]*\{[^{}]*;\s*\}", "", text, flags=re.M)  # style sheets
    text = re.sub(r"(?<=\n\n) {4,}(?! *[-*]).*?(?=\n\n|\Z)", "", text, flags=re.S)  # formulas
    entries = [re.sub(r"^[\w.*]+(?:, [\w.*]+)*: ", "\n", textwrap.dedent(section), flags=re.M) for section in sections]
    return "\n\n".join([text, *entries])


def strings(source):
    """The strings of a Python source as Markdown. A value inside an f-string counts as a piece of code."""
    nodes = list(ast.walk(ast.parse(source)))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in joined for part in ast.walk(node) if part is not node}
    for node in nodes:
        if isinstance(node, ast.JoinedStr) and id(node) not in inside:
            yield markdown("".join(part.value if isinstance(part, ast.Constant) else "code" for part in node.values))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield markdown(node.value)


def too_long(text):
    return [sentence for sentence in sentences(text) if len(words(sentence)) > SENTENCE_WORDS]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short(page):
    assert too_long(read(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_phrases_stay_away(page):
    assert phrases_in(read(page)) == []


@pytest.mark.parametrize("path", SOURCES)
def test_strings_of_code_are_plain(path):
    found = list(strings((ROOT / path).read_text()))
    assert [sentence for text in found for sentence in too_long(text)] == []
    assert [phrase for text in found for phrase in phrases_in(text)] == []


def test_the_splitter_sees_what_is_too_long():
    """It would pass everything if it found no sentences."""
    text = "# A heading.\n\nOne `a. b` two [three four](x.md). Five!\nSix $x. y$, et al. seven.\n\n| a. | b. |\n"
    text += (
        "\n- eight nine\n- ten\n\n```sh\nno. sentence.\n```\n\n    python code.py\n\nEleven: 3.5 twelve (thirteen). Fourteen.\n"
    )
    assert [len(words(s)) for s in sentences(text) if words(s)] == [5, 1, 5, 2, 1, 4, 1]
    assert phrases_in("All of it,\nBut for one") == ["but for"]
    assert not phrases_in("a debut for one")


def test_the_strings_of_code_are_seen():
    source = '''"""One two.

Three four five:

    y = a b c

Args:
    x: six seven,
        eight. "nine" ten.
    **y: eleven.

Returns:
    Twelve
    thirteen. where: fourteen.

Examples:
    >>> no
    no
"""
raise ValueError(f"fifteen {no:.3g} sixteen." " Seventeen.")
'''
    counts = [[len(words(s)) for s in sentences(text) if words(s)] for text in strings(source)]
    assert counts == [[2, 3, 3, 2, 1, 2, 2], [3, 1]]
