"""What the site makes of notebooks: their formulas drawn, as all others are."""

import re
from typing import Any

from fimlens import typeset

CODE = re.compile(r"(```.*?```|`[^`\n]+`|^(?: {4}[^\n]*\n?)+)", re.S | re.M)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.S)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """LaTeX between dollars as outlines, on pages of notebooks, where it is not code."""
    if not page.file.src_uri.startswith("notebooks/"):
        return markdown
    return "".join(part if k % 2 else FORMULA.sub(_drawn, part) for k, part in enumerate(CODE.split(markdown)))


def _drawn(found: re.Match[str]) -> str:
    display, inline = found.groups()
    return typeset.formula(inline) if display is None else f'<p class="math">{typeset.formula(display)}</p>'
