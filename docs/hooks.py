"""What the site adds to its Markdown: drawn formulas, pages that programs write, and a word on top of each notebook."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.structure.files import File

from fimlens.proofs import typeset

ROOT = Path(__file__).parent.parent
TITLE = re.compile(r'<h\d id="([^"]+)">(.*?)<a class="headerlink"', re.S)
REDUCED = """
!!! note "A reduced run"
    The outputs on this page are those of a reduced run (`FIMLENS_QUICK=1`): fewer steps, structures and rates.
    `make lab` opens the notebook in Jupyter, to run it whole.
"""


class Formulas(Extension):
    """$LaTeX$ and $$LaTeX$$ as outlines, where it is not code, and (x) between matrices as its sign."""

    def extendMarkdown(self, md: Any) -> None:
        md.inlinePatterns.register(Drawn(r"(\$\$?).+?\1| \(x\) ", md), "formula", 185)  # after code, before escapes


class Drawn(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(typeset.prose(m[0])), m.start(), m.end()


def on_config(config: Any) -> None:
    config.markdown_extensions.append(Formulas())


def on_files(files: Any, *, config: Any) -> None:
    """The benchmarks' README and the help of every command as pages."""
    help_pages = [sys.executable, "-m", "typer", "fimlens.cli.app", "utils", "docs", "--name", "fimlens", "--title", "Commands"]
    commands = subprocess.run(help_pages, capture_output=True, check=True, text=True).stdout
    commands = re.sub(r"^\*\*Commands\*\*.*?(?=^## )", "", commands, flags=re.S | re.M)  # a list of them, cut short
    benchmarks = (ROOT / "benchmarks" / "README.md").read_text().replace("](../docs/", "](")
    files.append(File.generated(config, "commands.md", content=commands))
    files.append(File.generated(config, "benchmarks.md", content=benchmarks))


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    if page.file.src_uri.startswith("notebooks/"):
        title, rest = markdown.split("\n", 1)
        return f"{title}\n{REDUCED}{rest}"
    return markdown.replace("](../benchmarks/README.md", "](benchmarks.md")


def on_page_content(html: str, *, page: Any, **_: Any) -> None:
    """Formulas in headings stand in the table of contents too."""
    titles = dict(TITLE.findall(html))
    for item in _items(page.toc):
        if "formula" in titles.get(item.id, ""):
            item.title = titles[item.id]


def _items(toc: Any) -> Iterator[Any]:
    for item in toc:
        yield item
        yield from _items(item.children)
