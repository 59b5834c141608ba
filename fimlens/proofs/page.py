"""Write proofs as an HTML page: every statement with its mathematics, steps and verdicts, in one file that loads nothing."""

import inspect
from collections.abc import Iterable, Sequence
from html import escape

from fimlens.proofs.theorem import Step, Verdict
from fimlens.proofs.typeset import escape_text, prose
from fimlens.proofs.verdicts import Proof
from fimlens.structure import Claim, Structure
from fimlens.structures import EXAMPLES
from fimlens.structures.named import STRUCTURES

STYLE = """
:root { color-scheme: light dark; --good: light-dark(#1a7037, #5fcf87); --bad: light-dark(#b3261e, #ff8a80);
  --line: light-dark(#d8d8d2, #44443f); --soft: light-dark(#f4f4f0, #26262a); --quiet: light-dark(#63635c, #a5a59d); }
body { margin: 0 auto; max-width: 46rem; padding: 1.5rem 1rem 4rem; background: light-dark(#fffffd, #19191c);
  color: light-dark(#1d1d1b, #e6e6e1); font: 1.06rem/1.6 Charter, "Bitstream Charter", Cambria, Georgia, serif; }
h1, h2, h3 { line-height: 1.25; margin: 2.6em 0 .6em; } h1 { font-size: 1.7rem; margin-top: 0; }
h2 { font-size: 1.25rem; border-top: 1px solid var(--line); padding-top: 1.3em; }
h3 { font-size: 1.06rem; margin: 1.8em 0 .3em; }
a { color: inherit; text-decoration-color: var(--quiet); text-underline-offset: .15em; }
code { font: .86em ui-monospace, Menlo, Consolas, monospace; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92em; line-height: 1.4; }
th, td { text-align: left; vertical-align: baseline; padding: .32em .9em .32em 0; border-bottom: 1px solid var(--line); }
th { font-weight: normal; font-size: .9em; color: var(--quiet); }
.proved { color: var(--good); } .failed { color: var(--bad); font-weight: bold; }
.failure { overflow-x: auto; background: var(--soft); padding: .6em .8em; }
.display { display: block; text-align: center; margin: .8em 0; }
.formula { display: inline-block; max-width: 100%; margin: -.1em .06em; padding: .1em 0;
  overflow: auto hidden; line-height: 0; }
.formula svg { display: block; overflow: visible; fill: currentColor; }
"""


def page(proofs: Sequence[Proof]) -> str:
    """The HTML page of these proofs, followed by a description of every structure.

    Raises:
        ValueError: mathtext does not know the LaTeX of a docstring.
    """
    proved = sum(proof.proved for proof in proofs)
    summary = _table(["statement", "sizes", "seconds", "verdict"], map(_summary, proofs))
    sections = "".join(map(_section, proofs))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>fimlens: proofs</title><style>{STYLE}</style></head><body>
<h1>Proofs of the shipped functions</h1>
<p>{proved} of {len(proofs)} statements are proved. The text of each statement argues for every matrix size. SymPy decides its
steps exactly, on the JAX functions that fimlens runs, <em>for all entries at the sizes listed</em>.</p>
{summary}{sections}{_structures()}</body></html>
"""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; the cells are HTML already."""
    lines = ["".join(f"<th>{cell}</th>" for cell in heads), *("".join(f"<td>{cell}</td>" for cell in row) for row in rows)]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table>\n{body}</table></div>\n'


def _size(size: tuple[int, int]) -> str:
    return "{}&#160;&#215;&#160;{}".format(*size)


def _mark(holds: bool, yes: str, no: str) -> str:
    return f'<span class="proved">{yes}</span>' if holds else f'<span class="failed">{no}</span>'


def _summary(proof: Proof) -> Sequence[str]:
    sizes = ", ".join(_size(verdict.size) for verdict in proof.verdicts)
    verdict = _mark(proof.proved, "proved", "not&#160;proved")
    return f'<a href="#{proof.name}">{escape_text(proof.paragraphs[0])}</a>', sizes, f"{proof.seconds:.1f}", verdict


def _section(proof: Proof) -> str:
    title, *paragraphs = proof.paragraphs
    text = "".join(f"<p>{prose(paragraph)}</p>\n" for paragraph in paragraphs)
    failures = "".join(_failure(*failure) for failure in proof.failures)
    return f'<h2 id="{proof.name}">{escape_text(title)}</h2>\n{text}{_steps(proof.verdicts)}{failures}'


def _steps(verdicts: Sequence[Verdict]) -> str:
    """A table of the steps: a row for each description, a column for each size."""
    columns = [{step.description: _mark(step.holds, "holds", "fails") for step in verdict.steps} for verdict in verdicts]
    # Some steps are stated at some sizes only, so the rows are the union over the columns.
    descriptions = dict.fromkeys(description for column in columns for description in column)
    rows = [[escape_text(each), *(column.get(each, "") for column in columns)] for each in descriptions]
    seconds = ["", *(f"{verdict.seconds:.1f}&#160;s" for verdict in verdicts)]
    return _table(["step", *(_size(verdict.size) for verdict in verdicts)], [*rows, seconds])


def _failure(verdict: Verdict, step: Step) -> str:
    residue = f"; the residue is <code>{escape(step.residue_text)}</code>" if step.residue_text else ""
    return f'<p class="failure">Not proved at {_size(verdict.size)}: {escape_text(step.description)}{residue}</p>\n'


def _structures() -> str:
    """A section that explains the structures in a figure of the lens."""
    listed = dict.fromkeys([*EXAMPLES, *STRUCTURES.values()])
    kinds = "".join(_kind(kind, [H for H in listed if type(H) is kind]) for kind in dict.fromkeys(map(type, listed)))
    claims = _table(["claim", "its closed form is"], ((claim.name, escape_text(claim.value)) for claim in Claim))
    error = prose(r"$\Vert \tilde F - F \Vert^2 / \Vert F \Vert^2$")
    return f"""<h2 id="structures">The structures in the figures of the lens</h2>
<p>In a figure of <code>fimlens lens</code> every bar is a structure. Its length is the error {error}, split into a part of the
basis and a part of the eigenvalues; a stroke marks the numeric optimum. The claim says what the closed form minimises, and
so whether its bar may be longer than the optimum:</p>
{claims}{kinds}"""


def _kind(kind: type[Structure], members: Sequence[Structure]) -> str:
    names = {H: name for name, H in STRUCTURES.items()}
    caption = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    rows = ((f"<code>{escape(str(H))}</code>", escape_text(names.get(H, "")), H.claim.name) for H in members)
    return f"<h3>{kind.__name__}</h3>\n<p>{prose(caption)}</p>\n{_table(['structure', 'in the figure', 'claim'], rows)}"
