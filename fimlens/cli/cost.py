"""fimlens cost: what a training run costs with each optimizer."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fimlens._validate import require_known
from fimlens.cli.arguments import (
    console,
    named_dtype,
    named_optimizers,
    refusing,
    require_apart,
    require_ranked,
    require_writable,
    table,
)
from fimlens.costs.devices import DEVICES
from fimlens.costs.memory import GIB
from fimlens.costs.page import page
from fimlens.costs.papers import RANKS
from fimlens.costs.run import USABLE, Row, Terms, costs
from fimlens.costs.speed_ups import SpeedUp
from fimlens.costs.training import Batch
from fimlens.language_model import llama

COMPARED = ["adam", "racs", "alice"]


TOKENS = 13.1e9


UTILISATION = 0.4


GIVEN = "given"


LEGEND = """
speed-up: Adam's steps over the optimizer's to the same loss. GiB each: weights, gradients, state and activations on each \
device. needed: the fewest devices that hold the run; devices: those that it has. saving: the share of Adam's dollars."""


def cost(
    context: typer.Context,
    more: Annotated[
        list[str] | None, typer.Argument(help="More optimizers, and speed-ups as name=ratio, after their options.")
    ] = None,
    model: Annotated[str, typer.Option(help=", ".join(llama.CONFIGS))] = "llama-1b",
    tokens: Annotated[float, typer.Option(help="Tokens that Adam is trained on.")] = TOKENS,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            help=f"An optimizer, or your own as module:function of the learning rate; default: {', '.join(COMPARED)}."
        ),
    ] = None,
    speed_up: Annotated[
        list[str] | None,
        typer.Option(help="name=ratio: Adam's steps over the optimizer's to the same loss; default: as we measured, else 1."),
    ] = None,
    hardware: Annotated[str, typer.Option(help=", ".join(DEVICES))] = "h100",
    devices: Annotated[int | None, typer.Option(min=1, help="Number of devices; default: as few as fit.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory of a device in GiB; default: the vendor's figure.")] = None,
    flops: Annotated[float | None, typer.Option(help="Peak FLOP/s of a device; default: the vendor's figure.")] = None,
    price: Annotated[float | None, typer.Option(help="Dollars for an hour of a device; default: an assumed price.")] = None,
    utilisation: Annotated[
        float | None, typer.Option(help=f"Share of the peak that training reaches; default: {UTILISATION}, assumed.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Data type of weights, gradients, state and activations.")] = "bfloat16",
    rank: Annotated[int | None, typer.Option(help="Rank of the low-rank methods; default: the paper's for the model.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 512,
    sequence: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")] = 256,
    micro_batch: Annotated[int, typer.Option(min=1, help="Sequences on a device at once.")] = 8,
    rematerialise: Annotated[
        bool, typer.Option("--rematerialise", help="Compute activations again in the backward pass.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write an interactive page to this file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
) -> None:
    """Compare what a training run costs with each optimizer: memory, devices, hours, dollars, and the saving against Adam.

    Every assumption behind the figures is printed below the table. Nothing is trained: the counts take some seconds.
    """
    with refusing("cost"):
        require_writable("--html", html)
        require_writable("--json", json_file)
        require_apart({"--html": html, "--json": json_file})
        words = [word for given in [*(optimizer or []), *(more or [])] for word in given.split(",")]
        chosen = named_optimizers("--optimizer", [word for word in words if "=" not in word] or COMPARED)
        require_ranked(context, chosen)
        measured = _speed_ups([*(speed_up or []), *(word for word in words if "=" in word)], list(chosen))
        require_known("--hardware", "hardware", hardware, DEVICES)
        device, shape = DEVICES[hardware], Batch(batch, sequence, micro_batch, rematerialise)
        terms = Terms(
            tokens=tokens,
            devices=devices,
            memory=device.memory if memory_gib is None else memory_gib * GIB,
            peak=device.peak if flops is None else flops,
            utilisation=UTILISATION if utilisation is None else utilisation,
            price=device.price if price is None else price,
        )
        rows = costs(
            chosen, model=model, terms=terms, speed_ups=measured, batch=shape, dtype=named_dtype("--dtype", dtype), rank=rank
        )
        title = f"{model} on {hardware}"
        sources = {
            "memory": device.source if memory_gib is None else GIVEN,
            "peak": device.source if flops is None else GIVEN,
            "price": "assumed; set it with --price" if price is None else GIVEN,
            "utilisation": "assumed; set it with --utilisation" if utilisation is None else GIVEN,
            "rank": "as in [G]; GaLore's at 7B" if rank is None else GIVEN,
        }
        assumed = _assumptions(rows, terms, shape, dtype, RANKS[model] if rank is None else rank, sources)
        if html is not None:
            html.write_text(page(title, rows, terms, batch, assumed), encoding="utf-8")
        if json_file is not None:
            numbers = [row._asdict() | {"speed_up": row.speed_up._asdict()} for row in rows]
            report = {"model": model, "hardware": hardware, "terms": terms._asdict(), "rows": numbers, "assumptions": assumed}
            json_file.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"{title}, {tokens:.4g} tokens for Adam.", style="bold")
    shown = table("optimizer", "speed-up", "GiB each", "needed", "devices", "hours", "dollars", "saving")
    for row in rows:
        shown.add_row(*_cells(row))
    console.print(shown)
    console.print(LEGEND, style="dim")
    console.print(_conclusion(rows))
    for what, why in assumed.items():
        console.print(f"{what}: {why}.")


def _conclusion(rows: list[Row]) -> str:
    """Say which run is the cheapest, and what it saves."""
    best = min(rows, key=lambda row: row.money)
    if best.saving <= 0:
        return f"None of these is cheaper than Adam; {best.optimizer} takes {1 - best.saving:.2f} times Adam's dollars."
    so = f"{best.saving:.0%} less than Adam, if its speed-up of {best.speed_up.ratio:g} holds"
    return f"The cheapest of these is {best.optimizer}: {so}."


def _cells(row: Row) -> list[str]:
    counts = f"{row.speed_up.ratio:.2f}", f"{row.memory / GIB:.1f}", str(row.devices_needed), str(row.devices)
    amounts = (f"{amount:,.0f}" if amount >= 1000 else f"{amount:.2f}" for amount in (row.hours, row.money))
    return [row.optimizer, *counts, *amounts, f"{round(row.saving, 3) + 0:.1%}"]


def _speed_ups(words: list[str], names: list[str]) -> dict[str, SpeedUp]:
    """Speed-ups given as name=ratio, for optimizers of the table."""
    found = {}
    for word in (part for given in words for part in given.split(",")):
        name, _, ratio = word.partition("=")
        if name == "adam":
            raise ValueError("--speed-up: adam is what the others are compared with; its speed-up is 1.")
        require_known("--speed-up", "optimizer in the table", name, names)
        if name in found:
            raise ValueError(f"--speed-up: that of {name} is given twice. Give one.")
        try:
            found[name] = SpeedUp(float(ratio), GIVEN)
        except ValueError as error:
            raise ValueError(f"--speed-up: expected name=ratio, such as alice=2.0; got {word!r}") from error
    return found


def _assumptions(rows: list[Row], terms: Terms, batch: Batch, dtype: str, rank: int, sources: dict[str, str]) -> dict[str, str]:
    """What the figures rest on, each with its source."""
    steps = terms.tokens / (batch.sequences * batch.length)
    own = ", ".join(f"{row.optimizer} {1 - row.adams_flops_per_token / row.flops_per_token:.1%}" for row in rows)
    once_more = "a second forward pass, as activations are rematerialised" if batch.rematerialise else "no rematerialisation"
    return {
        "[G]": "Gong, Scetbon, Ma and Meeds, 2025, arXiv 2502.07752: LLaMA of 60M to 1.3B parameters on C4",
        "Tokens for Adam": f"{terms.tokens:.4g} ({'[G], 1.3B: 100K steps' if terms.tokens == TOKENS else GIVEN})",
        "Tokens for the others": "Adam's divided by the speed-up (assumed to hold at this size and with the shorter schedule)",
        "Batch": f"{batch.sequences} sequences of {batch.length} tokens, so Adam takes {steps:,.0f} steps ([G]: 512 of 256)",
        **{f"Speed-up of {row.optimizer}": f"{row.speed_up.ratio:g} ({row.speed_up.source})" for row in rows},
        "Memory of a device": f"{terms.memory / GIB:.1f} GiB ({sources['memory']}), of which {USABLE:.0%} is usable (assumed)",
        "Peak of a device": f"{terms.peak:.3g} FLOP/s, dense, for products in bfloat16 whatever --dtype ({sources['peak']})",
        "Price of a device for an hour": f"{terms.price:g} dollars ({sources['price']})",
        "Utilisation": f"{terms.utilisation:g} of the peak, on any number of devices ({sources['utilisation']})",
        "Weights, gradients and state": f"{dtype}, shared evenly by the devices (assumed), counted as by `fimlens memory`",
        "Activations": f"{rows[0].working / GIB:.2f} GiB, {batch.at_once} sequences on a device at once, {dtype}: 8 hidden + 4 "
        f"mlp numbers for each token and layer, and logits in float32 (assumed: fused attention; {once_more})",
        "Output head, embedding and norms": "left to Adam, where an optimizer has the choice (assumed)",
        "Rank": f"{rank} for the low-rank methods ({sources['rank']})",
        "The model's FLOPs": f"{rows[0].adams_flops_per_token:.4g} a token: 6 for each weight that multiplies (Kaplan et al., "
        f"2020), 12 x sequence x hidden a layer for attention (Chowdhery et al., 2022); {once_more}",
        "The optimizer's FLOPs": "products and decompositions at the default intervals, counted on its traced update; share of "
        f"all FLOPs: {own}",
        "Left out": "the optimizer's passes over single elements (benchmarks/README.md has measured steps), communication, "
        "evaluation, restarts and tuning (assumed: within the utilisation, or the same for all)",
    }
