"""fimlens memory: the memory that weights and optimizer state take."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from fimlens.cli.arguments import (
    accepts,
    attribute,
    console,
    named_dtype,
    named_optimizers,
    refusing,
    require_ranked,
    require_writable,
    table,
)
from fimlens.costs.memory import GIB, NAMED, Row, account
from fimlens.language_model import llama

LEGEND = """
head: own, the optimizer has the output head too; adam, the head is left to Adam. The state of each group is under \
+matrices, +head and +others; others are the embedding and the vectors. formula: the total by the published formula of the \
state, which counts Alice's p and Q~ at four bytes a number. paper: the total that Gong et al. (2025) print. apollo \
projects at random; apollo-svd has singular vectors, and apollo-mini one random direction."""


SHOWN = {"matrices": ("matrices",), "head": ("head",), "others": ("embedding", "vectors")}


def memory(
    context: typer.Context,
    more: Annotated[list[str] | None, typer.Argument(help="More optimizers, with or without the option.")] = None,
    model: Annotated[
        str, typer.Option(help=f"{', '.join(llama.CONFIGS)}, all of these, or module:function that returns parameters.")
    ] = "llama-60m",
    optimizer: Annotated[
        list[str] | None, typer.Option(help="An optimizer, or your own as module:function of the rate; default: all.")
    ] = None,
    weight_dtype: Annotated[str, typer.Option(help="Data type of the weights.")] = "bfloat16",
    state_dtype: Annotated[str, typer.Option(help="Data type of the optimizer's state.")] = "bfloat16",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the low-rank methods; default: the paper's for its models, else 128.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file, in bytes.")] = None,
) -> None:
    """Count the memory of weights and optimizer state in GiB, from shapes alone.

    The state is counted on the arrays that the optimizer's init would make, step counters and random keys included. Nothing is
    allocated: all optimizers on one model take some seconds.
    """
    with refusing("memory"):
        require_writable("--json", json_file)
        names = [name for given in [*(optimizer or []), *(more or [])] for name in given.split(",")]
        chosen = named_optimizers("--optimizer", names or list(NAMED))
        require_ranked(context, chosen)
        dtypes = {
            "weight_dtype": named_dtype("--weight-dtype", weight_dtype),
            "state_dtype": named_dtype("--state-dtype", state_dtype),
        }
        models = list(llama.CONFIGS) if model == "all" else [model]
        rows = {name: account(_shapes(name), chosen, model=name, rank=rank, **dtypes) for name in models}
        if json_file is not None:
            numbers = [{"model": name} | row._asdict() for name in models for row in rows[name]]
            json_file.write_text(json.dumps(numbers, indent=2) + "\n")
    for name in models:
        title = f"{name}: weights in {weight_dtype}, state in {state_dtype}; GiB."
        console.print(title, style="bold")
        shown = table("optimizer", "head", "weights", *(f"+{part}" for part in SHOWN), "total", "formula", "paper")
        for row in rows[name]:
            shown.add_row(*_cells(row))
        console.print(shown)
    console.print(LEGEND, style="dim")
    for name in models:
        console.print(_conclusion(name, rows[name]))


def _conclusion(model: str, rows: list[Row]) -> str:
    """Say which optimizer takes the least and which the most."""
    least, most = min(rows, key=lambda row: row.total), max(rows, key=lambda row: row.total)
    if least.total == most.total:
        return f"{model}: weights and state take {least.total:.2f} GiB."
    ends = (f"{row.optimizer} takes the {word}, {row.total:.2f} GiB" for row, word in ((least, "least"), (most, "most")))
    return f"{model}: {'; '.join(ends)}."


def _cells(row: Row) -> list[str]:
    state = (sum(row.state[group] for group in groups) / GIB for groups in SHOWN.values())
    parts = [sum(row.weights.values()) / GIB, *state, row.total, None if row.formula is None else row.formula / GIB, row.paper]
    head = "own" if row.head == row.optimizer else row.head
    return [row.optimizer, head, *("" if part is None else f"{part:.2f}" for part in parts)]


def _shapes(model: str) -> Any:
    if model in llama.CONFIGS:
        return jax.eval_shape(partial(llama.init, llama.CONFIGS[model]), jax.random.key(0))
    if ":" not in model:
        raise ValueError(
            f"--model: there is no model {model!r}. Take {', '.join(llama.CONFIGS)}, or your own as module:function."
        )
    made = attribute("--model", model)
    if callable(made) and not accepts(made):
        raise ValueError(f"--model: {model} needs arguments. Name parameters, or a function of none that returns them.")
    shapes = jax.eval_shape(made) if callable(made) else made
    other = next((leaf for leaf in jax.tree.leaves(shapes) if not hasattr(leaf, "shape")), None)
    if other is not None:
        raise ValueError(
            f"--model: {model} is no tree of arrays: it has a {type(other).__name__}. Name parameters, or a function of none "
            "that returns them."
        )
    if not jax.tree.leaves(shapes):
        raise ValueError(f"--model: {model} has no arrays. Name parameters, or a function of none that returns them.")
    return shapes
