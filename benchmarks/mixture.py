"""Does the mixture that `fl.recommend` chooses train better than any single structure of no more memory?

    python benchmarks/mixture.py [--minutes 5] [--json FILE]

The protocol, fixed before the runs.

The model has two layers, 48 wide, and learns the sources of Python's standard library in batches of eight windows of 48 bytes.
Adam trains it for 100 steps. Then every named structure except "dense" is estimated on the seven matrices of the second layer,
from the gradients of 256 batches in four folds. The rank is 12 where a structure is of low rank, and sweeps are at most five.
The budget is the memory of one-sided SOAP ("osoap") on these matrices. `fl.recommend` chooses a structure for each of them,
once by the errors in the Frobenius norm and once by those in LogDet. A choice holds for the same matrix of both layers.

Each arm is `fl.recommended` with its defaults except b2 = 0.99: the two mixtures, and each single structure of no more memory
than the budget. It trains from new weights for 150 steps, on the schedule of `fimlens pretrain`. Embedding, head and norms keep
Adam at 0.01 in every arm. One rule finds the rate of each arm: 0.01 and powers of two around it, five tries at most, by the
held-out loss of the first seed. At the best rate, three seeds are trained, which differ in weights and data.

Each estimate, choice and training is one JSON line, written when it ends: a second run continues the file. The table has the
held-out loss on 128 windows, in nats per byte: the mean over seeds, and the difference to the first mixture, seed by seed.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from error_and_progress import CONFIG, HELD_OUT, STRUCTURES, TRAINING, batches, loss
from jaxtyping import Array, Float, Int, PyTree
from rich.console import Console
from rich.table import Table

import fimlens as fl
from fimlens._records import add_records, known_records
from fimlens.experiments.tuning import best_power, tuned
from fimlens.language_model import llama
from fimlens.lens.estimate import estimate_each, folds_of
from fimlens.lens.estimates import Estimates
from fimlens.lens.nearness import DIVERGENCES
from fimlens.lens.recommend import COSTS
from fimlens.lens.split import Split
from fimlens.lens.trial import Trial
from fimlens.pretrain.schedule import warmup_cosine
from fimlens.structure import Structure

FILE = Path(__file__).with_suffix(".jsonl")
BATCH = 8  # windows in a batch
BEFORE, SAMPLES, FOLDS = 100, 256, 4
STEPS, SEEDS, TRIES, RATE, ADAM_RATE = 150, 3, 5, 0.01, 0.01
BUDGET = "osoap"
MIXTURES = {f"mixture by {name}": name for name in ("Frobenius", "LogDet")}

gradient = jax.jit(jax.grad(loss))


def trainer(make: Callable[[Array], optax.GradientTransformation]) -> Callable[[float, int, Array], PyTree]:
    """Return a function of rate, seed and data that trains new weights. Only the optimizer is compiled for it."""

    @jax.jit
    def step(rate: Array, params: PyTree, state: PyTree, slope: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = make(rate).update(slope, state, params)
        return optax.apply_updates(params, updates), state

    def train(rate: float, seed: int, data: Array) -> PyTree:
        params = llama.init(CONFIG, jax.random.key(seed))
        state = make(jnp.asarray(rate)).init(params)
        for batch in data:
            params, state = step(rate, params, state, gradient(params, batch))
        return params

    return train


def recommended(choices: dict[str, Structure], rate: Array) -> optax.GradientTransformation:
    """Return the optimizer of an arm."""
    schedule = warmup_cosine(1.0, STEPS)
    rates = {"learning_rate": lambda t: rate * schedule(t), "adam_learning_rate": lambda t: ADAM_RATE * schedule(t)}
    return fl.recommended(**rates, choices=choices, b2=0.99)


@jax.jit
def mean_loss(params: PyTree, windows: Int[Array, "count size window"]) -> Float[Array, ""]:
    """Return the mean loss."""
    return jax.lax.map(lambda batch: loss(params, batch), windows).mean()


class Record:
    """The lines of the file."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.end = path, time.monotonic() + 60 * minutes
        self.lines = known_records(path)

    def get(self, make: Any, **about: Any) -> Any:
        """Return the "found" of the line about this, which is made and written if it is new.

        Raises:
            TimeoutError: it is new, and the time is up.
        """
        for line in self.lines:
            if about.items() <= line.items():
                return line["found"]
        if time.monotonic() > self.end:
            raise TimeoutError
        begun = time.monotonic()
        line = about | {"found": make(), "device": jax.devices()[0].device_kind}
        line["seconds"] = round(time.monotonic() - begun, 1)
        add_records(self.path, line)
        self.lines.append(line)
        return line["found"]


def estimates(record: Record) -> dict[str, dict[str, Estimates]]:
    """Return the estimates by divergence and matrix."""
    params = llama.init(CONFIG, jax.random.key(0))
    names = [f"layers/1/{part}/{name}" for part in ("attention", "mlp") for name in params["layers"][1][part]]
    found: dict[str, dict[str, Estimates]] = {name: {} for name in DIVERGENCES}
    fishers: dict[str, fl.Fisher] = {}

    def estimate(matrix: str) -> dict[str, Any]:
        if not fishers:
            trained = trainer(optax.adam)(ADAM_RATE, 0, batches(TRAINING, BEFORE, 0, BATCH))
            fishers.update(fl.minibatch_fisher(loss, trained, list(batches(TRAINING, SAMPLES, 99, BATCH)), matrices=names))
        folds, key = folds_of(np.arange(SAMPLES), FOLDS, jax.random.key(0))
        split = Split(fishers[matrix], folds)
        trials = {name: Trial(split, divergence, False, False) for name, divergence in DIVERGENCES.items()}
        each = estimate_each(STRUCTURES, split, trials, key, lambda name: None)
        return {name: part.to_json() for name, part in each.items()}

    for matrix in names:
        for name, part in record.get(partial(estimate, matrix), estimates_of=matrix).items():
            found[name][matrix] = Estimates.from_json(part, STRUCTURES)
    return found


def memory(structure: Structure, shapes: list[tuple[int, int]]) -> float:
    """Return how many numbers the optimizer of a structure stores for matrices of these shapes, without the momentum."""
    return sum(COSTS["memory"](structure, shape) for shape in shapes)


def run(record: Record, console: Console) -> None:
    """Estimate, choose, train, and print the table."""
    found = estimates(record)
    shapes = [part.shape for part in found["Frobenius"].values()]
    budget = memory(STRUCTURES[BUDGET], shapes)
    arms = {}
    for name, divergence in MIXTURES.items():
        choice = fl.recommend(found[divergence], budget)
        chosen = {matrix.replace("/1/", "/*/"): structure for matrix, structure in choice.choices.items()}
        record.get(lambda chosen=chosen: {matrix: str(structure) for matrix, structure in chosen.items()}, choices_of=name)
        console.print(f"{name}: {choice.in_words()}", highlight=False)
        arms[name] = chosen, choice.total_cost
    singles = {name: ({"*": structure}, memory(structure, shapes)) for name, structure in STRUCTURES.items()}
    arms |= {name: arm for name, arm in singles.items() if arm[1] <= budget}
    windows = batches(HELD_OUT, 2, 1234, size=64)
    table = Table("arm", "memory of a layer", "rate", "held-out loss", "less the first mixture's", "seeds", "rates")
    first: np.ndarray | None = None
    for name, (choices, cost) in sorted(arms.items(), key=lambda arm: (arm[0] not in MIXTURES, -arm[1][1])):
        train = trainer(partial(recommended, choices))

        def trained(power: int, seed: int, name=name, train=train) -> float:
            def make() -> float | None:
                value = float(mean_loss(train(RATE * 2.0**power, seed, batches(TRAINING, STEPS, 1 + seed, BATCH)), windows))
                return value if math.isfinite(value) else None  # JSON knows no infinity

            value = record.get(make, arm=name, power=power, seed=seed)
            return math.inf if value is None else value

        losses = tuned(trained, TRIES, SEEDS)
        best = best_power(losses)
        each = np.array([losses[best, seed] for seed in range(SEEDS)])
        first = each if first is None else first
        less = each - first
        table.add_row(
            name, f"{cost:,.0f}", f"{RATE * 2.0**best:g}", f"{each.mean():.4f}",
            f"{less.mean():.4f} ± {less.std(ddof=1) / SEEDS**0.5:.4f}", " ".join(f"{x:.4f}" for x in each),
            ", ".join(f"{RATE * 2.0**power:g}: {losses[power, 0]:.4f}" for power, seed in sorted(losses) if seed == 0),
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--minutes", type=float, default=60.0, help="start nothing new after this time")
    options = parser.parse_args()
    console = Console(width=200)
    try:
        run(Record(options.json, options.minutes), console)
    except TimeoutError:
        console.print("Time is up. The same command continues.")


if __name__ == "__main__":
    main()
