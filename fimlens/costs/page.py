"""The cost of a training run as one interactive page that needs no network: cost.py's formulas and their coefficients."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

import sympy

from fimlens.costs import run as cost
from fimlens.costs.run import Row, Terms

FORMULAS = (cost.devices_needed, cost.memory, cost.hours, cost.money, cost.saving)


COEFFICIENTS = ("optimizer", "held", "working", "flops_per_token", "adams_flops_per_token")


TERMS = ("tokens", "usable", "peak", "utilisation", "price")


def page(title: str, rows: Sequence[Row], terms: Terms, sequences: int, assumptions: Mapping[str, str]) -> str:
    """HTML. Its sliders start at the terms and the rows' speed-ups; no device is without one of a step's `sequences`."""
    data = {
        "title": title,
        "optimizers": [{name: getattr(row, name) for name in COEFFICIENTS} | {"speed_up": row.speed_up.ratio} for row in rows],
        "terms": {name: getattr(terms, name) for name in TERMS} | {"devices": terms.devices or 0},
        "most_devices": min(sequences, max(64, *(4 * row.devices for row in rows))),
        "assumptions": assumptions,
    }
    formulas = ",\n".join(f"  {formula.__name__}: {in_javascript(formula)}" for formula in FORMULAS)
    blank = files("fimlens.costs").joinpath("page.html").read_text(encoding="utf-8")
    data_in_script = json.dumps(data).replace("<", "\\u003c")  # nothing in it can end the script
    return blank.replace("/* formulas */", f"{{\n{formulas},\n}}").replace("/* data */", data_in_script)


def in_javascript(formula: Callable[..., cost.Quantity]) -> str:
    """A formula as an arrow function of one object, with its parameters for names."""
    names = list(inspect.signature(formula).parameters)
    value = formula(**{name: sympy.Symbol(name, positive=True) for name in names})
    return f"({{ {', '.join(names)} }}) => {sympy.jscode(value)}"
