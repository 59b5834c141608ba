"""Prose as docstrings have it, with LaTeX and `code`, as HTML that loads nothing: formulas are outlines drawn by mathtext."""

import re
from html import escape
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path

MARKED = re.compile(r"(\$\$.+?\$\$|\$.+?\$|`.+?`)", re.S)


FONT = FontProperties(math_fontfamily="cm")


EM = text_to_path.FONT_SCALE


COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def plain(text: str) -> str:
    """Text without marks, (x) between matrices as the sign of their Kronecker product."""
    return escape(text.replace(" (x) ", " ⊗ "))


def prose(text: str) -> str:
    """Text with $formulas$, $$formulas on a line of their own$$ and `code`.

    Raises ValueError, naming the place, for LaTeX that mathtext does not know.
    """
    return "".join(_marked(part) for part in MARKED.split(text))


def _marked(part: str) -> str:
    if part.startswith("$$"):
        return f'<span class="display">{formula(part[2:-2])}</span>'
    if part.startswith("$"):
        return formula(part[1:-1])
    if part.startswith("`"):
        return f"<code>{escape(part[1:-1])}</code>"
    return plain(part)


def formula(latex: str) -> str:
    """LaTeX as one outline in the size and colour of the text around it, on its baseline; ValueError as in `prose`."""
    outline = Path(*text_to_path.get_text_path(FONT, f"${' '.join(latex.split())}$", ismath=True))
    (left, bottom), (width, height) = outline.get_extents().min, outline.get_extents().size
    strokes = [(COMMANDS[code], points.reshape(-1, 2)) for points, code in outline.iter_segments(simplify=False)]
    d = "".join(c if c == "Z" else c + " ".join(f"{x:.1f} {-y:.1f}" for x, y in points) for c, points in strokes)
    return (
        f'<span class="formula" style="vertical-align:{bottom / EM:.3f}em">'
        f'<svg role="img" aria-label="{escape(latex)}" style="width:{width / EM:.3f}em;height:{height / EM:.3f}em" '
        f'viewBox="{left:.1f} {-bottom - height:.1f} {width:.1f} {height:.1f}"><path d="{d}"/></svg></span>'
    )


def fence(source: str, language: str, css_class: str, options: dict[str, Any], md: Any, **attributes: Any) -> str:
    """A ```math fence of the documentation as a formula on a line of its own: a formatter of pymdownx.superfences."""
    return f'<p class="{css_class}">{formula(source)}</p>'
