"""fimlens memory: what weights and optimizer state take."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from fimlens.cli.arguments import attribute, console, errors, named_dtype, refusal, require_writable, table
from fimlens.costs.memory import FORMULAS, GIB, Row, account
from fimlens.language_model import llama

SHOWN = {"matrices": ("matrices",), "head": ("head",), "others": ("embedding", "vectors")}


def memory(
    more: Annotated[list[str] | None, typer.Argument(help="More optimizers, after the option or in its place.")] = None,
    model: Annotated[
        str, typer.Option(help=f"{', '.join(llama.CONFIGS)}, all of these, or module:function giving shapes.")
    ] = "llama-60m",
    optimizer: Annotated[list[str] | None, typer.Option(help="An optimizer; all by default.")] = None,
    weight_dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    state_dtype: Annotated[str, typer.Option(help="Of the optimizer's state.")] = "bfloat16",
    rank: Annotated[int | None, typer.Option(min=1, help="Of the low-rank methods; the paper's for its models.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here as well, in bytes.")] = None,
) -> None:
    """Weights and optimizer state in GiB, by group, from shapes alone; beside the formula's and the paper's figure.

    Where a method can have the output head ("own") or leave it to Adam, one row for each. The state is counted from what
    init makes, keys and counters included; the formula counts [G]'s numbers (p and Q~ of Alice at four bytes, as its figure
    needs).
    """
    try:
        require_writable("--json", json_file)
        names = [name for given in [*(optimizer or []), *(more or [])] for name in given.split(",")] or list(FORMULAS)
        dtypes = {
            "weight_dtype": named_dtype("--weight-dtype", weight_dtype),
            "state_dtype": named_dtype("--state-dtype", state_dtype),
        }
        models = list(llama.CONFIGS) if model == "all" else [model]
        rows = {name: account(_shapes(name), names, model=name, rank=rank, **dtypes) for name in models}
        if json_file is not None:
            numbers = [{"model": name} | row._asdict() for name in models for row in rows[name]]
            json_file.write_text(json.dumps(numbers, indent=2) + "\n")
    except (ValueError, TypeError, OSError) as error:
        errors.print(refusal("memory", error), style="red", markup=False)
        raise typer.Exit(2) from error
    for name in models:
        title = f"{name}: weights in {weight_dtype}, state in {state_dtype}; GiB."
        console.print(title, style="bold", markup=False, highlight=False)
        shown = table("optimizer", "head", "weights", *(f"+{part}" for part in SHOWN), "total", "formula", "paper")
        for row in rows[name]:
            shown.add_row(*_cells(row))
        console.print(shown)


def _cells(row: Row) -> list[str]:
    state = (sum(row.state[group] for group in groups) / GIB for groups in SHOWN.values())
    parts = [sum(row.weights.values()) / GIB, *state, row.total, row.formula / GIB]
    head = "own" if row.head == row.optimizer else row.head
    return [row.optimizer, head, *(f"{part:.2f}" for part in parts), "" if row.paper is None else f"{row.paper:.2f}"]


def _shapes(model: str) -> Any:
    if model in llama.CONFIGS:
        return jax.eval_shape(partial(llama.init, llama.CONFIGS[model]), jax.random.key(0))
    if ":" not in model:
        raise ValueError(
            f"--model: there is no model {model!r}. There are {', '.join(llama.CONFIGS)}, or your own as module:function."
        )
    made = attribute("--model", model)
    return jax.eval_shape(made) if callable(made) else made
