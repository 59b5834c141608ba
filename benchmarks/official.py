"""How far fimlens is from the original PyTorch codes after twenty steps, as docs/differences.md says.

    pip install -e '.[official]'
    python benchmarks/official.py [--only NAME]

The problem is a linear regression on noisy batches, with a 16 x 24 matrix, in float64. After four steps the inputs exchange
their scales, so that eigenvalues cross. Each pair of optimizers starts at the same weights, and each sees the gradients at its
own. The figure is ||ours - theirs|| / ||theirs - start||. In the row "held", options hold every difference that
docs/differences.md names; each other row brings one back.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fimlens as fl

STEPS, CHANGE, RANK, RATE = 20, 4, 6, 1e-2
GALORE = {"rank": RANK, "update_proj_gap": 5, "proj_type": "std"}
SUMS = {"b2": 1.0, "bias_correction": False, "learning_rate": RATE / 16**0.5}  # ours are means over 16, to the -1/4, twice
SUBSPACE = {"rank": RANK, "update_interval": 5, "eps": 1e-30}


class Problem:
    """Weights of x @ W at the start, and each batch's gradient: times `scale`, and the eleventh times `tiny`."""

    def __init__(self, m: int, n: int, tiny: float, scale: float) -> None:
        rng = np.random.default_rng(0)
        self.start, self.tiny, self.scale = rng.normal(size=(m, n)) / 4, tiny, scale
        scales = np.geomspace(1.5, 0.3, m)
        self.X = rng.normal(size=(STEPS, 32, m))
        self.X *= np.where(np.arange(STEPS)[:, None, None] < CHANGE, scales, scales[::-1])
        self.Y = self.X @ rng.normal(size=(m, n)) + 0.3 * rng.normal(size=(STEPS, 32, n))

    def __call__(self, t: int, W: np.ndarray) -> np.ndarray:
        G = self.scale * self.X[t].T @ (self.X[t] @ W - self.Y[t]) / 32
        return self.tiny * G if t == 10 else G


class Row(NamedTuple):
    """What a row of the table adds to the options of its pair, or changes in the problem."""

    ours: Mapping[str, Any] = MappingProxyType({})
    theirs: Mapping[str, Any] = MappingProxyType({})
    shape: tuple[int, int] | None = None
    tiny: float = 1.0
    scale: float = 1.0


class Pair(NamedTuple):
    """Two makers of an optimizer, and the options under which both make the same steps; each other row adds a difference.

    Where no options make the same steps, `agree` is False and `held` has what can be held.
    """

    ours: Callable[..., optax.GradientTransformation]
    theirs: Callable[..., Any]  # of a list of torch parameters
    held: Row
    differences: dict[str, Row]
    agree: bool = True


def torch_class(module: str, name: str) -> Callable[..., Any]:
    return lambda *given, **options: getattr(import_module(module), name)(*given, **options)


def grouped(module: str, name: str, *keys: str) -> Callable[..., Any]:
    """An optimizer that takes these options with a group of parameters."""

    def make(weights: list, **options: Any) -> Any:
        group = {"params": weights} | {key: options.pop(key) for key in keys if key in options}
        return torch_class(module, name)([group], **options)

    return make


def soap(weights: list, **options: Any) -> Any:
    """pytorch_optimizer's SOAP with second moments that turn with the basis and keep the means that its covariances state, as
    ours do; its own are only sorted. `means` are the sides to whose means they are scaled, in turn: our rows are its columns.
    """
    only_sorted, means = options.pop("only_sorted", False), options.pop("means", ("columns", "rows"))
    theirs = torch_class("pytorch_optimizer", "SOAP")(weights, **options)
    refresh = theirs.get_orthogonal_matrix_qr

    def turned(state: dict, *given: Any) -> list:
        old, squares = state["Q"], state["exp_avg_sq"]
        new = refresh(state, *given)
        L, R = ((V.T @ U) ** 2 for U, V in zip(old, new, strict=True))
        rows, columns = ((U * (C @ U)).sum(0) for C, U in zip(state["GG"], new, strict=True))
        squares, stated = L @ squares @ R.T, {"rows": (rows[:, None], 1), "columns": (columns[None], 0)}
        for side in means:
            squares = to_means(squares, *stated[side])
        state["exp_avg_sq"] = squares
        return new

    def to_means(squares: Any, means: Any, axis: int) -> Any:
        own = squares.mean(axis, keepdim=True)
        factor = (means / means.mean() / (own / own.mean())).clamp(0.01, 100)
        return squares * factor / (own / own.mean() * factor).mean()

    if not only_sorted:
        theirs.get_orthogonal_matrix_qr = turned
    return theirs


def alice(weights: list, **options: Any) -> Any:
    """pytorch_optimizer's Alice with our signs and our first subspace, the first gradient's; its own starts from zeros.

    It counts steps from 1 and refreshes at multiples of the interval, so that here the count starts one short of a multiple.
    """
    import torch

    (W,), own_start = weights, options.pop("own_start", False)
    theirs = torch_class(RACS, "Alice")(weights, **options)
    iterate = theirs.subspace_iteration

    def signed(*given: Any, **more: Any) -> tuple:
        values, U = iterate(*given, **more)
        return values, U * our_signs(U)

    theirs.subspace_iteration = signed
    if not own_start:
        rank, n = options["rank"], W.shape[1]
        U = torch.linalg.svd(W.first_gradient, full_matrices=False)[0][:, :rank]
        zeros = {"Q": U.new_zeros(rank, rank), "m": U.new_zeros(rank, n), "v": U.new_zeros(rank, n)}
        theirs.state[W].update(U=U * our_signs(U), p=U.new_zeros(n), phi=U.new_zeros(1), **zeros)
        theirs.param_groups[0]["step"] = options["update_interval"] - 1
    return theirs


EARLY_EPS = "eps of 1e-6, which theirs add before bias correction"
ONE_ZERO = "one gradient of zeros, the eleventh"
SIGNS = "signs of singular vectors at refreshes"
RACS = "pytorch_optimizer.optimizer.racs"
PAIRS = {
    "SOAP": Pair(
        fl.soap,
        soap,
        Row({"update_interval": 5, "eps": 1e-30}, {"precondition_frequency": 5, "eps": 1e-30, "weight_decay": 0.0}, (16, 16)),
        {
            "second moments at refreshes, which turn in ours": Row({}, {"only_sorted": True}),
            "turned, and not scaled to known means": Row({}, {"means": ()}),
            "turned, and scaled on the other side first": Row({}, {"means": ("rows", "columns")}),
            "a matrix that is not square": Row(shape=(16, 24)),
            "eps of 1e-8, at gradients times 1e-6": Row({"eps": 1e-8}, {"eps": 1e-8}, scale=1e-6),
            "decay of 0.01": Row({"weight_decay": 0.01}, {"weight_decay": 0.01}),
        },
    ),
    "Muon of PyTorch": Pair(
        fl.muon,
        torch_class("torch.optim", "Muon"),
        Row({"nesterov": False}, {"nesterov": False, "weight_decay": 0.0}),
        {
            "their iteration in bfloat16": Row({}, {"bfloat16": True}),
            "Nesterov, with bias correction in ours": Row({"nesterov": True}, {"nesterov": True}),
        },
    ),
    "Muon of Jordan": Pair(
        fl.muon,
        torch_class("muon", "SingleDeviceMuon"),
        Row(),
        {"defaults": Row({}, {"bfloat16": True})},
        agree=False,
    ),
    "NorMuon of pytorch_optimizer": Pair(
        fl.normuon,
        grouped("pytorch_optimizer", "NorMuon", "use_muon"),
        Row({"nesterov": False}, {"nesterov": False, "use_muon": True, "foreach": False}),
        {
            "their iteration in bfloat16": Row({}, {"bfloat16": True}),
            "Nesterov, with bias correction in ours": Row({"nesterov": True}, {"nesterov": True}),
        },
    ),
    "GaLore": Pair(
        fl.galore,
        grouped("galore_torch", "GaLoreAdamW", *GALORE, "scale"),
        Row({**SUBSPACE, "alpha": 0.25}, {**GALORE, "scale": 0.25, "eps": 1e-30}),
        {
            SIGNS: Row({}, {"signs": True}),
            EARLY_EPS: Row({"eps": 1e-6}, {"eps": 1e-6}),
        },
    ),
    "Fira": Pair(
        fl.fira,
        grouped("fira", "FiraAdamW", *GALORE, "alpha"),
        Row({**SUBSPACE, "alpha": 0.25}, {**GALORE, "alpha": 0.25, "eps": 1e-30}),
        {
            SIGNS: Row({}, {"signs": True}),
            ONE_ZERO: Row(tiny=0.0),
            EARLY_EPS: Row({"eps": 1e-6}, {"eps": 1e-6}),
        },
    ),
    "Apollo": Pair(
        fl.apollo,
        grouped("apollo_torch", "APOLLOAdamW", *GALORE, "scale", "proj", "scale_type"),
        Row(
            {**SUBSPACE, "variant": "svd", "alpha": 2.0},
            {**GALORE, "scale": 4, "proj": "svd", "scale_type": "channel", "eps": 1e-30},
        ),
        {
            SIGNS: Row({}, {"signs": True}),
            "random directions, of other seeds": Row({"variant": "random"}, {"proj": "random"}),
            ONE_ZERO: Row(tiny=0.0),
            EARLY_EPS: Row({"eps": 1e-6}, {"eps": 1e-6}),
        },
    ),
    "Alice of pytorch_optimizer": Pair(
        fl.alice,
        alice,
        Row(
            {**SUBSPACE, "leading": RANK, "moments": "keep"},
            {"rank": RANK, "leading_basis": RANK, "update_interval": 5, "eps": 1e-30, "short_first": True},
        ),
        {
            "their first subspace, and refreshes a step earlier": Row({}, {"own_start": True}),
            'moments="reset", our default': Row({"moments": "reset"}),
            "their rows, which are outputs": Row({}, {"short_first": False}),
            "the eleventh gradient times 1e-4": Row(tiny=1e-4),
            "all gradients times 1e-6": Row(scale=1e-6),
        },
    ),
    "RACS of pytorch_optimizer": Pair(fl.racs, torch_class(RACS, "RACS"), Row(), {"defaults": Row()}, agree=False),
    "Adafactor of PyTorch": Pair(
        fl.adafactor,
        torch_class("torch.optim", "Adafactor"),
        Row({"weight_decay": 0.01 * RATE}, {"weight_decay": 0.01, "eps": (1e-30, 1e-3)}),
        {"decay of 0.01": Row({"weight_decay": 0.01})},
    ),
    "Adafactor of Transformers": Pair(
        fl.adafactor,
        torch_class("transformers.optimization", "Adafactor"),
        Row({}, {"relative_step": False}),
        {"decay of 0.01": Row({"weight_decay": 0.01}, {"weight_decay": 0.01})},
    ),
    "Shampoo of pytorch_optimizer": Pair(
        fl.shampoo,
        torch_class("pytorch_optimizer", "Shampoo"),
        Row({**SUMS, "update_interval": 1, "eps": 1e-30}, {"matrix_eps": 1e-12}, (16, 16)),
        {
            "roots every five steps": Row({"update_interval": 5}, {"preconditioning_compute_steps": 5}),
            "matrix_eps of 1e-6, with which their sums start": Row({}, {"matrix_eps": 1e-6}),
            "our b2 of 0.999": Row({"b2": 0.999, "bias_correction": True}),
        },
    ),
}


def our_signs(U: Any) -> Any:
    """The signs that make the largest entry of each column of a torch matrix positive, as fimlens fixes them."""
    return U.gather(0, U.abs().argmax(0, keepdim=True)).sign()


@contextmanager
def held_without_options(bfloat16: bool, signs: bool) -> Iterator[None]:
    """Hold what their codes have no option for: LAPACK's signs of singular vectors, and Muon's iteration in bfloat16."""
    import torch

    svd = torch.linalg.svd

    def signed(G: Any, full_matrices: bool = False) -> tuple:
        U, s, V = svd(G, full_matrices=full_matrices)
        flips = our_signs(U if len(G) < G.shape[1] else V.T)
        return U * flips, s, V * flips.T

    with ExitStack() as stack:
        if not bfloat16:
            stack.enter_context(mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone))
            with suppress(ModuleNotFoundError):  # the iteration of pytorch_optimizer has the dtype as its last default
                iteration = import_module("pytorch_optimizer.optimizer.utils.matrix").zero_power_via_newton_schulz_5
                wide = *iteration.__defaults__[:-1], torch.float64
                stack.enter_context(mock.patch.object(iteration, "__defaults__", wide))
        if not signs:
            stack.enter_context(mock.patch.object(torch.linalg, "svd", signed))
        yield


def ours(make: Callable[..., optax.GradientTransformation], problem: Problem, options: dict) -> np.ndarray:
    tx, W = make(**{"learning_rate": RATE} | options), problem.start
    state, update = tx.init({"kernel": jnp.asarray(W)}), jax.jit(tx.update)
    for t in range(STEPS):
        updates, state = update({"kernel": jnp.asarray(problem(t, W))}, state, {"kernel": jnp.asarray(W)})
        W = W + np.asarray(updates["kernel"])
    return W


def theirs(make: Callable[..., Any], problem: Problem, options: dict) -> np.ndarray:
    """Their weights. PyTorch's matrices are outputs by inputs; `short_first` gives them with the shorter side first."""
    import torch

    options = {"lr": RATE} | options
    bfloat16, signs, short_first = (options.pop(key, False) for key in ("bfloat16", "signs", "short_first"))
    seen = (lambda x: x) if short_first and len(problem.start) < problem.start.shape[1] else np.transpose
    W = torch.nn.Parameter(torch.tensor(seen(problem.start).copy()))
    W.first_gradient = torch.tensor(seen(problem(0, problem.start)).copy())
    with held_without_options(bfloat16, signs):
        tx = make([W], **options)
        for t in range(STEPS):
            W.grad = torch.tensor(seen(problem(t, seen(W.detach().numpy()))).copy())
            tx.step()
    return seen(W.detach().numpy())


def apart(name: str, what: str = "held", transposed: bool = False) -> float:
    """How far the two are after all steps, relative to what theirs moved."""
    pair = PAIRS[name]
    row = Row() if what == "held" else pair.differences[what]
    m, n = row.shape or pair.held.shape or (16, 24)
    problem = Problem(*((n, m) if transposed else (m, n)), row.tiny, row.scale)
    with jax.enable_x64(True):
        W = ours(pair.ours, problem, {**pair.held.ours, **row.ours})
    V = theirs(pair.theirs, problem, {**pair.held.theirs, **row.theirs})
    return float(np.linalg.norm(W - V) / np.linalg.norm(V - problem.start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PAIRS)
    for name in parser.parse_args().only or PAIRS:
        for what in (*["held"] * PAIRS[name].agree, *PAIRS[name].differences):
            print(f"| {name} | {what} | {apart(name, what):.1e} |", flush=True)


if __name__ == "__main__":
    main()
