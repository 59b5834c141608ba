"""The cost of a training run as one interactive HTML page that needs no network."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

import sympy

from fimlens.costs.formulas import Quantity, devices_needed, hours, memory, money, saving
from fimlens.costs.run import Row, Terms

FORMULAS = (devices_needed, memory, hours, money, saving)


COEFFICIENTS = ("optimizer", "held", "working", "flops_per_token", "adams_flops_per_token")


TERMS = ("tokens", "usable", "peak", "utilisation", "price")


def page(title: str, rows: Sequence[Row], terms: Terms, sequences: int, assumptions: Mapping[str, str]) -> str:
    """Write the page: sliders for the terms and the speed-ups, and the costs that follow from them.

    Args:
        title: the page's heading.
        rows: one for each optimizer, with the speed-ups at which their sliders start.
        terms: the tokens, devices and price at which the other sliders start.
        sequences: the sequences of a step, of which each device takes at least one.
        assumptions: what the figures rest on, listed below the tables.
    """
    data = {
        "title": title,
        "optimizers": [{name: getattr(row, name) for name in COEFFICIENTS} | {"speed_up": row.speed_up.ratio} for row in rows],
        "terms": {name: getattr(terms, name) for name in TERMS} | {"devices": terms.devices or 0},
        "most_devices": min(sequences, max(64, *(4 * row.devices for row in rows))),
        "assumptions": assumptions,
    }
    formulas = ",\n".join(f"  {formula.__name__}: {in_javascript(formula)}" for formula in FORMULAS)
    blank = files("fimlens.costs").joinpath("page.html").read_text(encoding="utf-8")
    data_in_script = json.dumps(data).replace("<", "\\u003c")  # a "</script>" in a name would end the script
    return blank.replace("/* formulas */", f"{{\n{formulas},\n}}").replace("/* data */", data_in_script)


def in_javascript(formula: Callable[..., Quantity]) -> str:
    """A formula as an arrow function of one object, whose fields are the formula's parameters."""
    names = list(inspect.signature(formula).parameters)
    value = formula(**{name: sympy.Symbol(name, positive=True) for name in names})
    return f"({{ {', '.join(names)} }}) => {sympy.jscode(value)}"
