"""Does a smaller Fisher error mean faster training? The error of each structure, and the loss after 100 steps with it.

    python benchmarks/error_and_progress.py [--minutes 5] [--layers NAME ...] [--json FILE]

The protocol, fixed before the runs. A pilot with Adam and SOAP on one matrix chose the rates.

A model of two layers, 48 wide, is trained by Adam on the sources of Python's standard library, in batches of four windows of 48
bytes. From its weights and Adam's state after 100 steps ("early") and after 1000 ("late"), training goes on for 100 steps. One
matrix of the second layer alone (query, value or down) has another structure than Adam's; all else keeps Adam at its rate. The
structures are all named ones, except "dense", of rank 12 where they are of low rank, with at most five sweeps. The direction is
`fl.scale_by_recommended` with b1 = 0.9, b2 = 0.99 and a refresh every ten steps, and its averages begin anew. Each of its
updates is scaled to a root mean square of 0.2 times the rate, Adam's usual one, so that structures differ in direction alone.
Each structure has three rates a factor of four apart, and the same three orders of the data. Its progress is the mean over the
orders at the best rate of the loss on 128 held-out windows, and, secondly, of the training loss over the last 20 steps.

The errors are those of `fl.estimate` in the three divergences, held out and plug-in, in eight folds. They come from the
gradients of 256 batches at the same weights, drawn as in training. Secondly, each fit is multiplied by its best scale, as
updates of one size do not tell scales apart.

The answer is the rank correlation (Spearman's) over structures of error and held-out loss, for each matrix and stage, and its
mean over the six. It is 1 if a smaller error always means a lower loss, and 0 if the error says nothing. Its interval is from
2000 bootstrap samples of structures, the same in all six. "Seeds agree" is the rank correlation of the losses of two orders,
over all pairs: no error can be expected to correlate much better.

Each structure, matrix and stage is one JSON line, and so are the errors of a matrix and stage: a second run continues the file.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

import fimlens as fl
from fimlens._records import add_records, known_records
from fimlens._validate import as_json, path_name, read_number
from fimlens.language_model import llama, text
from fimlens.lens.estimate import estimate_each, folds_of
from fimlens.lens.nearness import DIVERGENCES
from fimlens.lens.split import Split
from fimlens.lens.trial import Trial
from fimlens.structure import Structure
from fimlens.structures.named import named_structures

FILE = Path(__file__).with_suffix(".jsonl")
CONFIG = llama.Config(vocabulary=256, hidden=48, mlp=96, heads=4, layers=2)
WINDOW, BATCH = 49, 4  # bytes in a window, the last of which is only predicted; windows in a batch
STAGES = {"early": 100, "late": 1000}
LAYERS = {"query": "layers/1/attention/query", "value": "layers/1/attention/value", "down": "layers/1/mlp/down"}
STRUCTURES = {name: structure for name, structure in named_structures(12, sweeps=5).items() if name != "dense"}
ADAM = optax.adam(3e-3)  # of all but the one matrix
RATES, SIZE = (0.0005, 0.002, 0.008), 0.2
STEPS, SEEDS, SAMPLES, FOLDS, DRAWS = 100, 3, 256, 8, 2000
KINDS = {"held out": 0, "plug-in": 2, "held out, scaled": 3, "plug-in, scaled": 4}  # places in a row of errors

loss = partial(llama.loss, CONFIG)
TRAINING, HELD_OUT = map(text.read, text.split(text.standard_library()))


def batches(source: np.ndarray, count: int, seed: int, size: int = BATCH) -> Int[Array, "count size window"]:
    """Draw batches of windows of a text."""
    drawn = text.batches(source, size=size, length=WINDOW, seed=seed)
    return jnp.asarray(np.stack(list(itertools.islice(drawn, count))), jnp.int32)


@cache
def checkpoints() -> dict[str, PyTree]:
    """Train, and return the weights and Adam's state at each stage."""

    def step(checkpoint: PyTree, batch: Array) -> tuple[PyTree, None]:
        params, state = checkpoint
        updates, state = ADAM.update(jax.grad(loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    params, found, done = llama.init(CONFIG, jax.random.key(0)), {}, 0
    checkpoint, data = (params, ADAM.init(params)), batches(TRAINING, max(STAGES.values()), 0)
    for stage, steps in STAGES.items():
        found[stage] = checkpoint = jax.jit(partial(jax.lax.scan, step))(checkpoint, data[done:steps])[0]
        done = steps
    return found


def leaf(tree: PyTree, path: str) -> Array:
    """Return the leaf of this name."""
    return next(x for key, x in jax.tree_util.tree_leaves_with_path(tree) if path_name(key) == path)


@jax.jit
@partial(jax.vmap, in_axes=(0, None))
def held_out_losses(params: PyTree, windows: Int[Array, "count size window"]) -> Float[Array, " runs"]:
    """Return the mean loss of each run."""
    return jax.lax.map(lambda batch: loss(params, batch), windows).mean()


@jax.jit
@jax.vmap
def adam_step(params: PyTree, state: PyTree, batch: Array) -> tuple[PyTree, PyTree, PyTree, Array]:
    """Return the weights and the state after a step of Adam for all leaves, the gradient, and the loss before the step."""
    value, gradient = jax.value_and_grad(loss)(params, batch)
    updates, state = ADAM.update(gradient, state)
    return optax.apply_updates(params, updates), state, gradient, value


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, 0, 0, 0))
def own_step(structure: Structure, W: Array, state: PyTree, G: Array, rate: Array) -> tuple[Array, PyTree]:
    """Return a matrix and the state after a step with its structure."""
    u, state = direction(structure).update(G, state)
    return W - rate * SIZE * u / jnp.sqrt(jnp.mean(u**2)), state


def direction(structure: Structure) -> optax.GradientTransformation:
    """Return the optimizer of the one matrix."""
    return fl.scale_by_recommended({"*": structure}, b2=0.99)


def measure_losses(stage: str, layer: str, structure: str) -> dict[str, Any]:
    """Return the losses of a structure, [rate][order]. All runs advance together; only `own_step` is compiled anew."""
    runs = list(itertools.product(RATES, range(SEEDS)))
    rates, orders = (jnp.array(each) for each in zip(*runs, strict=True))
    data = jnp.stack([batches(TRAINING, STEPS, 1 + seed) for seed in range(SEEDS)])[orders]
    params, adam = jax.tree.map(lambda x: jnp.stack([x] * len(runs)), checkpoints()[stage])
    path, values = LAYERS[layer], []
    own = jax.vmap(lambda W: direction(STRUCTURES[structure]).init(W))(leaf(params, path))
    for k in range(STEPS):
        W = leaf(params, path)
        params, adam, gradient, value = adam_step(params, adam, data[:, k])
        W, own = own_step(STRUCTURES[structure], W, own, leaf(gradient, path), rates)
        params = jax.tree_util.tree_map_with_path(lambda key, x, W=W: W if path_name(key) == path else x, params)
        values.append(value)
    held_out = held_out_losses(params, batches(HELD_OUT, 2, 1234, size=64))
    found = {"held_out": held_out, "training": jnp.mean(jnp.stack(values[-20:]), axis=0)}
    shape = len(RATES), SEEDS
    return {
        name: [[as_json(float(x)) for x in row] for row in jnp.nan_to_num(each, nan=jnp.inf).reshape(shape)]
        for name, each in found.items()
    }


def measure_errors(stage: str, layer: str) -> dict[str, Any]:
    """Return by divergence and structure: the held-out error, its standard error, the plug-in error, and both when scaled."""
    params, data = checkpoints()[stage][0], batches(TRAINING, SAMPLES, 99)
    fisher = fl.minibatch_fisher(loss, params, list(data), matrices=[LAYERS[layer]])[LAYERS[layer]]
    folds, key = folds_of(np.arange(SAMPLES), FOLDS, jax.random.key(0))
    split = Split(fisher, folds)
    asked = [(name, scaled) for name in DIVERGENCES for scaled in (False, True)]
    trials = {f"{name} {scaled}": Trial(split, DIVERGENCES[name], scaled, False) for name, scaled in asked}
    found = estimate_each(STRUCTURES, split, trials, key, lambda name: None)
    errors: dict[str, dict[str, list[Any]]] = {}
    for name in DIVERGENCES:
        plain, scaled = (found[f"{name} {flag}"].rows for flag in (False, True))
        numbers = {s: (*plain[s][:2], plain[s].plug_in, scaled[s].relative, scaled[s].plug_in) for s in plain}
        errors[name] = {s: [as_json(x) for x in row] for s, row in numbers.items()}
    return {"errors": errors, "reliable": found["Frobenius False"].reliable}


def measure(path: Path, layers: Sequence[str], minutes: float, console: Console) -> None:
    """Measure what the file does not have, until the time is up."""
    start, done = time.monotonic(), {(x["stage"], x["layer"], x["structure"]) for x in known_records(path)}
    for layer, structure, stage in itertools.product(layers, (None, *STRUCTURES), STAGES):
        if (stage, layer, structure) in done:
            continue
        if time.monotonic() - start > 60 * minutes:
            console.print("Time is up. The same command continues.")
            return
        begun = time.monotonic()
        found = measure_losses(stage, layer, structure) if structure else measure_errors(stage, layer)
        line = {"stage": stage, "layer": layer, "structure": structure, **found}
        line |= {"seconds": round(time.monotonic() - begun, 1), "device": jax.devices()[0].device_kind}
        add_records(path, line)


def losses_of(line: dict[str, Any], which: str) -> Float[np.ndarray, "rates orders"]:
    """Return the losses of a line."""
    return np.array([[read_number(x) for x in row] for row in line[which]])


def best_rate(line: dict[str, Any]) -> int:
    """Return the place of the rate of the least mean held-out loss."""
    return int(losses_of(line, "held_out").mean(axis=1).argmin())


def at_best_rate(line: dict[str, Any], which: str) -> Float[np.ndarray, " orders"]:
    """Return the loss of each order at the best rate."""
    return losses_of(line, which)[best_rate(line)]


def correlation(first: Float[np.ndarray, "*k s"], second: Float[np.ndarray, "*k s"]) -> Float[np.ndarray, "*k"]:
    """Return Spearman's rank correlation along the last axis; 0 where all values of one are equal."""
    first, second = (rankdata(x, axis=-1) - (x.shape[-1] + 1) / 2 for x in (first, second))
    norms = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return (first * second).sum(-1) / np.where(norms > 0, norms, 1)


def with_interval(per_cell: np.ndarray) -> str:
    """Write a mean and its interval: the first entry, and 95 % of the others."""
    low, high = np.quantile(per_cell[1:], (0.025, 0.975))
    return f"{per_cell[0]:.2f} ({low:.2f} to {high:.2f})"


def report(lines: list[dict[str, Any]], console: Console) -> None:
    """Print the rank correlations of the cells that are complete, and the structures."""
    of = {(x["stage"], x["layer"], x["structure"]): x for x in lines}
    cells = [c for c in itertools.product(STAGES, LAYERS) if all((*c, s) in of for s in (None, *STRUCTURES))]
    if not cells:
        console.print("No matrix is complete yet.")
        return
    names = list(STRUCTURES)
    each = {c: np.array([at_best_rate(of[*c, s], "held_out") for s in names]) for c in cells}
    training = {c: np.array([at_best_rate(of[*c, s], "training").mean() for s in names]) for c in cells}
    random = np.random.default_rng(0)
    draws = np.concatenate([np.arange(len(names))[None], random.integers(len(names), size=(DRAWS, len(names)))])
    table = Table("divergence", "error", *(f"{stage} {layer}" for stage, layer in cells), "mean", "with training loss")
    means: dict[tuple[str, str], np.ndarray] = {}
    for divergence, (kind, place) in itertools.product(DIVERGENCES, KINDS.items()):
        errors = {c: np.array([read_number(of[*c, None]["errors"][divergence][s][place]) for s in names]) for c in cells}
        found, trained = (
            np.stack([correlation(errors[c][draws], of_losses[c][draws]) for c in cells], axis=1)
            for of_losses in ({c: each[c].mean(axis=1) for c in cells}, training)
        )
        means[divergence, kind] = found.mean(axis=1)
        cells_shown = [f"{x:.2f}" for x in found[0]]
        table.add_row(divergence, kind, *cells_shown, *map(with_interval, (found.mean(axis=1), trained.mean(axis=1))))
    pairs = list(itertools.combinations(range(SEEDS), 2))
    agree = [np.mean([correlation(each[c][:, a], each[c][:, b]) for a, b in pairs]) for c in cells]
    table.add_row("", "seeds agree", *(f"{x:.2f}" for x in agree), f"{np.mean(agree):.2f}", "")
    console.print(table)
    for stage, layer in cells:
        counts = np.bincount([best_rate(of[stage, layer, s]) for s in names], minlength=len(RATES))
        shown = ", ".join(f"{rate:g} for {count}" for rate, count in zip(RATES, counts, strict=True))
        console.print(f"{stage} {layer}: the best rate is {shown}", highlight=False)
    for divergence in DIVERGENCES:
        gain = means[divergence, "held out"] - means[divergence, "plug-in"]
        console.print(f"{divergence}: held out less plug-in {with_interval(gain)}", highlight=False)
    table = Table("structure", "loss less Adam's, 1e-3: mean", *(f"{stage} {layer}" for stage, layer in cells), *DIVERGENCES)
    less = {s: [1e3 * (each[c][k] - each[c][names.index("adam")]) for c in cells] for k, s in enumerate(names)}
    for s in sorted(names, key=lambda s: np.mean(less[s])):
        shown = [f"{x.mean():.1f} ± {x.std(ddof=1) / SEEDS**0.5:.1f}" for x in less[s]]
        errors = [np.mean([read_number(of[*c, None]["errors"][d][s][0]) for c in cells]) for d in DIVERGENCES]
        table.add_row(s, f"{np.mean(less[s]):.1f}", *shown, *(f"{x:.3f}" for x in errors))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--layers", nargs="*", default=list(LAYERS), choices=list(LAYERS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=60.0, help="start nothing new after this time")
    options = parser.parse_args()
    console = Console(width=200)
    measure(options.json, options.layers, options.minutes, console)
    report(known_records(options.json), console)


if __name__ == "__main__":
    main()
