"""fimlens cost: what a training run costs with one optimizer and with another."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fimlens.cli.arguments import console, errors, named_dtype, refusal, require_writable, table
from fimlens.costs.devices import DEVICES
from fimlens.costs.memory import GIB, RANKS
from fimlens.costs.page import page
from fimlens.costs.run import USABLE, Batch, Row, SpeedUp, Terms, costs, require_known
from fimlens.language_model import llama

COMPARED = ["adam", "racs", "alice"]


TOKENS = 13.1e9


UTILISATION = 0.4


GIVEN = "given"


def cost(
    more: Annotated[
        list[str] | None, typer.Argument(help="More optimizers, and speed-ups as name=ratio, after their options.")
    ] = None,
    model: Annotated[str, typer.Option(help=", ".join(llama.CONFIGS))] = "llama-1b",
    tokens: Annotated[float, typer.Option(help="That Adam is trained on.")] = TOKENS,
    optimizer: Annotated[list[str] | None, typer.Option(help=f"An optimizer; {', '.join(COMPARED)} by default.")] = None,
    speed_up: Annotated[
        list[str] | None, typer.Option(help="name=ratio, Adam's steps over the optimizer's to one loss; by default [G]'s.")
    ] = None,
    hardware: Annotated[str, typer.Option(help=", ".join(DEVICES))] = "h100",
    devices: Annotated[int | None, typer.Option(min=1, help="How many; by default as few as fit.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Of a device, in place of the vendor's.")] = None,
    flops: Annotated[float | None, typer.Option(help="Peak FLOP/s of a device, in place of the vendor's.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a device and hour.")] = None,
    utilisation: Annotated[float | None, typer.Option(help=f"Share of the peak; {UTILISATION} is assumed.")] = None,
    dtype: Annotated[str, typer.Option(help="Of weights, gradients, state and activations.")] = "bfloat16",
    rank: Annotated[int | None, typer.Option(help="Of the low-rank methods; the paper's for its models.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 512,
    sequence: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")] = 256,
    micro_batch: Annotated[int, typer.Option(min=1, help="Sequences on a device at once.")] = 8,
    rematerialise: Annotated[bool, typer.Option("--rematerialise", help="Compute activations anew in the backward.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write an interactive page here as well.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here as well.")] = None,
) -> None:
    """Memory, devices, hours and money of a training run, the saving against Adam, and every assumption behind them."""
    try:
        require_writable("--html", html)
        require_writable("--json", json_file)
        words = [word for given in [*(optimizer or []), *(more or [])] for word in given.split(",")]
        names = list(dict.fromkeys(word for word in words if "=" not in word)) or COMPARED
        measured = _speed_ups([*(speed_up or []), *(word for word in words if "=" in word)], names)
        require_known("hardware", hardware, DEVICES)
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
            names, model=model, terms=terms, speed_ups=measured, batch=shape, dtype=named_dtype("--dtype", dtype), rank=rank
        )
        title = f"{model} on {hardware}"
        sources = {
            "memory": device.source if memory_gib is None else GIVEN,
            "peak": device.source if flops is None else GIVEN,
            "price": "assumed; set it with --price" if price is None else GIVEN,
            "utilisation": "assumed; set it with --utilisation" if utilisation is None else GIVEN,
            "rank": "[G]'s; GaLore's at 7B" if rank is None else GIVEN,
        }
        assumed = _assumptions(rows, terms, shape, dtype, RANKS[model] if rank is None else rank, sources)
        if html is not None:
            html.write_text(page(title, rows, terms, batch, assumed), encoding="utf-8")
        if json_file is not None:
            numbers = [row._asdict() | {"speed_up": row.speed_up._asdict()} for row in rows]
            report = {"model": model, "hardware": hardware, "terms": terms._asdict(), "rows": numbers, "assumptions": assumed}
            json_file.write_text(json.dumps(report, indent=2) + "\n")
    except (ValueError, TypeError, OSError) as error:
        errors.print(refusal("cost", error), style="red", markup=False)
        raise typer.Exit(2) from error
    console.print(f"{title}, {tokens:.4g} tokens for Adam.", style="bold", markup=False, highlight=False)
    shown = table("optimizer", "speed-up", "GiB each", "needs", "devices", "hours", "money", "saving")
    for row in rows:
        shown.add_row(*_cells(row))
    console.print(shown)
    for what, why in assumed.items():
        console.print(f"{what}: {why}.", markup=False, highlight=False)


def _cells(row: Row) -> list[str]:
    counts = f"{row.speed_up.ratio:.2f}", f"{row.memory / GIB:.1f}", str(row.devices_needed), str(row.devices)
    amounts = (f"{amount:,.0f}" if amount >= 1000 else f"{amount:.2f}" for amount in (row.hours, row.money))
    return [row.optimizer, *counts, *amounts, f"{row.saving:.1%}"]


def _speed_ups(words: list[str], names: list[str]) -> dict[str, SpeedUp]:
    """name=ratio, of optimizers that are in the table."""
    found = {}
    for word in (part for given in words for part in given.split(",")):
        name, _, ratio = word.partition("=")
        if name == "adam":
            raise ValueError("--speed-up: adam is what the others are compared with; its speed-up is 1.")
        require_known("optimizer in the table, for --speed-up,", name, names)
        try:
            found[name] = SpeedUp(float(ratio), GIVEN)
        except ValueError as error:
            raise ValueError(f"--speed-up: expected name=ratio, such as alice=2.0; got {word!r}") from error
    return found


def _assumptions(rows: list[Row], terms: Terms, batch: Batch, dtype: str, rank: int, sources: dict[str, str]) -> dict[str, str]:
    """What the figures rest on, and where each is from."""
    steps = terms.tokens / (batch.sequences * batch.length)
    own = ", ".join(f"{row.optimizer} {1 - row.adams_flops_per_token / row.flops_per_token:.1%}" for row in rows)
    once_more = "with a second forward, as activations are rematerialised" if batch.rematerialise else "no rematerialisation"
    return {
        "[G]": "Gong, Scetbon, Ma and Meeds, 2025, arXiv 2502.07752: LLaMA of 60M to 1.3B parameters on C4",
        "Tokens for Adam": f"{terms.tokens:.4g} ({'[G], 1.3B: 100K steps' if terms.tokens == TOKENS else GIVEN})",
        "Tokens for the others": "as many over the speed-up (assumed to hold at this size, and with a schedule that short)",
        "Batch": f"{batch.sequences} sequences of {batch.length} tokens, so {steps:,.0f} steps of Adam's ([G]: 512 of 256)",
        **{f"Speed-up of {row.optimizer}": f"{row.speed_up.ratio:g} ({row.speed_up.source})" for row in rows},
        "Memory of a device": f"{terms.memory / GIB:.1f} GiB ({sources['memory']}), of which {USABLE:.0%} usable (assumed)",
        "Peak of a device": f"{terms.peak:.3g} FLOP/s, dense, of products in bfloat16 whatever --dtype ({sources['peak']})",
        "Price of a device and hour": f"{terms.price:g} ({sources['price']})",
        "Utilisation": f"{terms.utilisation:g} of the peak, on any number of devices ({sources['utilisation']})",
        "Weights, gradients and state": f"{dtype}, shared evenly by the devices (assumed), counted as by `fimlens memory`",
        "Activations": f"{rows[0].working / GIB:.2f} GiB, {batch.at_once} sequences on a device at once, {dtype}: 8 hidden + 4 "
        f"mlp numbers of a token and layer, and logits in float32 (assumed: fused attention; {once_more})",
        "Output head, embedding and norms": "left to Adam, where an optimizer has the choice (assumed)",
        "Rank": f"{rank} of the low-rank methods ({sources['rank']})",
        "The model's FLOPs": f"{rows[0].adams_flops_per_token:.4g} a token: 6 a weight that multiplies (Kaplan et al., 2020), "
        f"12 x sequence x hidden a layer for attention (Chowdhery et al., 2022); {once_more}",
        "The optimizer's FLOPs": f"products, and decompositions at the default intervals; of all FLOPs: {own}",
        "Left out": "the optimizer's passes over single elements (benchmarks/README.md has measured steps), communication, "
        "evaluation, restarts, tuning (assumed: within the utilisation, or alike for all)",
    }
