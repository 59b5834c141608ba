"""What an accelerator costs and gets right: one run of at most six minutes, which continues where an earlier one stopped.

    python benchmarks/accelerator.py [--out FILE] [--seconds 330] [--only SECTION]
    python benchmarks/accelerator.py --small  # a minute or two on CPU cores, to try the script

Each result is one line of JSON with the name of the device. A result that FILE already has, of the same device and size, is not
measured again. No measurement starts after `--seconds`, and one that is running may end later. The sections:

    copy      bytes a second that a copy of one large array moves, and seconds of an empty call
    tiny      RACS on gradients of size 1e-10 to 1e-38, against its update of the same gradient of size 1
    step      a step of each optimizer on the matrices of LLaMA-60M: compile, between refreshes, with a refresh
    adam      where Adam's time goes: one flat array or many leaves, called or in a loop, alone or with the training's checks
    share     the optimizer's share of a training step, LLaMA-60M, 512 x 256 tokens in bfloat16
    compile   seconds to compile Alice's step without XLA's autotuning, and without Triton's products; `step` has it with both
    tests     the tests of numerics, of which each file is one result

`needs` are the bytes that a step cannot avoid: it reads gradients, weights and state, and writes weights and state.
`of_copy` is needs / seconds as a share of the bytes a second of the copy.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # sections in processes of their own need memory too
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the time of a compilation is a result

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step_cost import OPTIMIZERS, Stepper, matrices

import fimlens as fl
from fimlens._records import add_records, known_records
from fimlens.experiments.comparison import make_entry, plan_for
from fimlens.pretrain.data import read_files
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import TrainState, make_update
from fimlens.pretrain.timing import least_seconds, measure_step

HERE = Path(__file__).parent
FIRST = ("optax.adam", "adam", "racs", "alice")  # those that we ask about most
TESTS = ("decompositions", "robustness", "fidelity", "low_rank", "transform")
SECTIONS = ("copy", "tiny", "step", "adam", "share", "compile", "tests")
COMPILERS = {"not autotuned": "--xla_gpu_autotune_level=0", "no Triton": "--xla_gpu_enable_triton_gemm=false"}


def weights(small: bool) -> dict:
    """The matrices of LLaMA-60M, or seven small ones whose shorter side is still over the rank of the low-rank optimizers."""
    return {k: x[:192, :256] for k, x in matrices(1)["layer 0"].items()} if small else matrices(8)


def size(tree: object) -> int:
    """Bytes of all arrays of a tree."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


class Run:
    """The results so far, and the time that is left."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.small, self.out, self.end = given.small, given.out, time.monotonic() + given.seconds
        self.where = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "small": self.small}
        mine = (record for record in known_records(self.out) if self.where.items() <= record.items())
        self.done = {(record["section"], record["name"]): record for record in mine}

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def add(self, section: str, name: str, measure: Callable[[], dict]) -> None:
        """Measure, unless it is known, and append the result to the file at once."""
        if (section, name) in self.done:
            return
        start = time.monotonic()
        try:
            found = measure()
        except Exception as error:  # of one measurement; the others are still wanted
            found = {"error": f"{type(error).__name__}: {error}"[-500:]}
        took = round(time.monotonic() - start, 1)
        row = {"section": section, "name": name, **found, "took": took, **self.where}
        self.done[section, name] = row
        add_records(self.out, row)
        print(json.dumps(row), flush=True)

    def speed(self, needs: int, seconds: float) -> dict:
        """The bytes that a step needs, and its share of the copy's bytes a second."""
        copied = self.done.get(("copy", "copy"), {}).get("bytes_a_second")
        return {"needs": needs, "of_copy": copied and needs / seconds / copied}


def copy(run: Run, loops: int = 20) -> dict:
    def repeated(x: jax.Array) -> jax.Array:  # x + 1 reads and writes each number once; a bare copy could be left out
        return jax.lax.fori_loop(0, loops, lambda _, x: x + 1, x)

    x = jnp.zeros(2**24 if run.small else 2**28, jnp.float32)
    seconds = least_seconds(jax.jit(repeated), x) / loops
    return {"bytes_a_second": 2 * x.nbytes / seconds, "empty_call": least_seconds(jax.jit(lambda x: x + 1), x[:1], calls=20)}


def tiny(run: Run) -> dict:
    G = jax.random.normal(jax.random.key(0), (64, 96) if run.small else (512, 1376))
    tx = fl.scale_by_racs()
    step = jax.jit(lambda G: tx.update(G, tx.init(G))[0])
    usual = np.asarray(step(G))
    made = {f"{c:.0e}": np.asarray(step(jnp.float32(c) * G)) for c in (1e-10, 1e-18, 1e-20, 1e-30, 1e-38)}
    return {
        "finite": {c: bool(np.isfinite(x).all()) for c, x in made.items()},
        "zero": {c: float((x == 0).mean()) for c, x in made.items()},
        "off": {c: float(np.linalg.norm(x - usual) / np.linalg.norm(usual)) for c, x in made.items()},
    }


def step(run: Run, name: str) -> dict:
    make, interval = OPTIMIZERS[name]
    every = {} if interval == 1 else {"update_proj_gap" if name.startswith("optax.") else "update_interval": 5}
    stepper = Stepper(make(**every), weights(run.small))
    stepper()  # the first step starts the bases, which costs more than a later refresh
    seconds = sorted(stepper() for _ in range(20))
    plain, refresh = (seconds[:16], seconds[16:]) if every else (seconds, None)  # of 20 steps 4 refresh, the slowest
    between = statistics.median(plain)
    needs = size(stepper.gradients) + 2 * size(stepper.params) + 2 * size(stepper.state)
    return {
        "compile": stepper.compile_seconds,
        "between": between,
        "refresh": refresh and statistics.median(refresh),
        "interval": interval,
        "bytes_by_xla": stepper.compiled.cost_analysis().get("bytes accessed"),
        **run.speed(needs, between),
    }


def adam(run: Run, name: str, loops: int = 20) -> dict:
    """Adam's step by a call, and by a loop of steps in one call, where no time goes to calls."""
    params, tx = weights(run.small), fl.adam(1e-3)
    if name == "one flat array":
        params = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    if name == "Optax, many leaves":
        tx = optax.adam(1e-3)
    gradients = jax.tree.map(lambda x: 0.01 * x, params)

    def plain(carry: tuple, G: object) -> tuple:
        W, state = carry
        updates, state = tx.update(G, state, W)
        return optax.apply_updates(W, updates), state

    def checked(state: TrainState, G: object) -> TrainState:
        return make_update(tx)(state, jnp.float32(1), G)[0]

    carry, one = (params, tx.init(params)), plain
    if name == "with the training's checks":
        carry, one = TrainState(jnp.int32(0), *carry), checked
    needs = size(gradients) + 2 * size(params) + 2 * size(tx.init(params))

    def repeat(carry: tuple, G: object) -> tuple:
        return jax.lax.fori_loop(0, loops, lambda _, carry: one(carry, G), carry)

    called = least_seconds(jax.jit(one), carry, gradients, calls=10)
    looped = least_seconds(jax.jit(repeat), carry, gradients) / loops
    return {"called": called, "looped": looped, "leaves": len(jax.tree.leaves(params)), **run.speed(needs, looped)}


def share(run: Run, name: str) -> dict:
    large = {"steps": 4000, "batch": 512, "length": 256, "dtype": "bfloat16", "accumulate": 4}
    plan = Plan("cpu-1m", steps=400, batch=4, length=64) if run.small else Plan("llama-60m", **large)
    cost = measure_step(plan_for(make_entry(name, plan, {}), plan, 0, 0), read_files())
    return {**cost._asdict(), "share": cost.share}


def in_process(run: Run, *arguments: str, flags: str = "") -> str:
    """The output of a Python process that may take the time that is left."""
    env = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=HERE, env=env, capture_output=True, text=True, timeout=max(run.left, 60)
    )
    return done.stdout + done.stderr


def compiled(run: Run, name: str) -> dict:
    code = f"from accelerator import *; print(Stepper(OPTIMIZERS['alice'][0](), weights({run.small})).compile_seconds)"
    return {"compile": float(in_process(run, "-c", code, flags=COMPILERS[name]).split()[-1]), "flags": COMPILERS[name]}


def tested(run: Run, name: str) -> dict:
    told = in_process(run, "-m", "pytest", "-n", "0", f"../tests/test_{name}.py")
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|error)", told.splitlines()[-1])}
    return counts | {"which": re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", told, re.MULTILINE)}


def tasks(run: Run) -> Iterator[tuple[str, str, Callable[[], dict]]]:
    """All measurements, the most wanted first."""
    yield "copy", "copy", partial(copy, run)
    yield "tiny", "racs", partial(tiny, run)
    for name in FIRST:
        yield "step", name, partial(step, run, name)
    for name in ("one flat array", "many leaves", "Optax, many leaves", "with the training's checks"):
        yield "adam", name, partial(adam, run, name)
    for name in ("alice",) if run.small else ("adam", "racs", "alice"):
        yield "share", name, partial(share, run, name)
    for name in COMPILERS:
        yield "compile", name, partial(compiled, run, name)
    for name in TESTS[:1] if run.small else TESTS:
        yield "tests", name, partial(tested, run, name)
    if not run.small:
        for name in OPTIMIZERS:
            yield "step", name, partial(step, run, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("accelerator.jsonl"))
    parser.add_argument("--seconds", type=float, default=330)
    parser.add_argument("--only", action="append", choices=SECTIONS, default=[])
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    run, left = Run(given), []
    for section, name, measure in tasks(run):
        if section not in (given.only or SECTIONS):
            continue
        if run.left > 0:
            run.add(section, name, measure)
        elif (section, name) not in run.done:
            left.append(f"{section}: {name}")
    print(f"left for another run: {', '.join(dict.fromkeys(left)) or 'nothing'}")


if __name__ == "__main__":
    main()
