"""Turn the text of docstrings, with LaTeX and `code`, into HTML that loads nothing.

Matplotlib's mathtext draws each formula as an SVG outline, so a page needs no fonts and no scripts.
"""

import re
from functools import cache
from html import escape
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path

MARKED = re.compile(r"(\$\$.+?\$\$|\$.+?\$|`.+?`)", re.S)


FONT = FontProperties(math_fontfamily="cm")


EM = text_to_path.FONT_SCALE  # units of an outline to one em of the text around it


COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def escape_text(text: str) -> str:
    """HTML of text without formulas or code; " (x) " becomes the sign of the Kronecker product."""
    return escape(text.replace(" (x) ", " ⊗ "))


def prose(text: str) -> str:
    """HTML of text with $formulas$, $$formulas on a line of their own$$ and `code`.

    Raises:
        ValueError: mathtext does not know the LaTeX of a formula; the message names the place.
    """
    return "".join(_element(part) for part in MARKED.split(text))


def _element(part: str) -> str:
    """HTML of one part of a text: a formula, code, or plain text."""
    if part.startswith("$$"):
        return f'<span class="display">{formula(part[2:-2])}</span>'
    if part.startswith("$"):
        return formula(part[1:-1])
    if part.startswith("`"):
        return f"<code>{escape(part[1:-1])}</code>"
    return escape_text(part)


@cache  # half of the formulas of a page stand there twice
def formula(latex: str) -> str:
    """HTML of a formula: one outline, with the size, colour and baseline of the text around it.

    Raises:
        ValueError: mathtext does not know the LaTeX; the message names the place.
    """
    outline = Path(*text_to_path.get_text_path(FONT, f"${' '.join(latex.split())}$", ismath=True))
    # Mathtext's y axis points up and that of SVG down, so every ordinate changes its sign.
    box = outline.get_extents()  # it solves for the extrema of each curve, which takes most of the time
    (left, bottom), (width, height) = box.min, box.size
    strokes = [(COMMANDS[code], points.reshape(-1, 2)) for points, code in outline.iter_segments(simplify=False)]
    d = "".join(c if c == "Z" else c + " ".join(f"{x:.1f} {-y:.1f}" for x, y in points) for c, points in strokes)
    return (
        f'<span class="formula" style="vertical-align:{bottom / EM:.3f}em">'
        f'<svg role="img" aria-label="{escape(latex)}" style="width:{width / EM:.3f}em;height:{height / EM:.3f}em" '
        f'viewBox="{left:.1f} {-bottom - height:.1f} {width:.1f} {height:.1f}"><path d="{d}"/></svg></span>'
    )


def fence(source: str, language: str, css_class: str, options: dict[str, Any], md: Any, **attributes: Any) -> str:
    """HTML of a ```math block of the documentation: a formatter for pymdownx.superfences."""
    return f'<p class="{css_class}">{formula(source)}</p>'
