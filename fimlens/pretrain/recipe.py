"""What every training has, whatever it trains: an optimizer, its rate, batches, a precision; and what the loop asks of it."""

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from fimlens.optimizers import OPTIMIZERS
from fimlens.optimizers.mixture import recommended
from fimlens.pretrain.schedule import warm_up, warmup_cosine
from fimlens.pretrain.shuffled import Shuffled
from fimlens.transforms.momentum import store_state_in
from fimlens.transforms.monitor import monitor

DTYPES = ("float32", "bfloat16")


TRAINABLE = OPTIMIZERS | {"recommended": recommended}


def known_options(optimizer: str) -> dict[str, Any]:
    """Return the options of an optimizer, by name, and their defaults."""
    _, *options = inspect.signature(TRAINABLE[optimizer]).parameters.values()  # the first is the learning rate
    return {option.name: option.default for option in options}


@runtime_checkable
class Data(Protocol):
    """Examples to train on and examples held out, in a form that the recipe knows."""

    @property
    def fingerprint(self) -> str:
        """A checksum that tells these data from others."""


@dataclass(frozen=True)
class Recipe(ABC):
    """A training of any kind: `Plan` is that of pre-training, and `Finetuning` that of a task.

    It is checked when made, before hours of training. The loop, the run directory and the timing know only this class.

    Args:
        model: which model; its name or its path.
        optimizer: the name of an optimizer of fimlens; "recommended" needs the option `choices`.
        rate: peak of the learning rate.
        steps: number of steps.
        batch: sequences in a step, over all devices.
        length: tokens of a sequence that the model reads.
        options: keyword arguments of the optimizer.
        accumulate: number of equal parts of a batch. Their gradients are computed one after the other and averaged, which
            saves memory.
        clip: bound on the global norm of the gradient; no bound by default.
        seed: determines the weights that are drawn and the order of the data.
        dtype: dtype of weights and activations: "float32" or "bfloat16".
        state_dtype: dtype in which the optimizer's state is stored between steps. [G] has bfloat16 for both dtypes. Roots and
            sums are computed in float32 in any case.
        scan: scan over the layers, so that one layer is compiled instead of all.
        remat: recompute each layer in the backward pass, which saves memory and costs time.
        on_nonfinite: what to do when a step's loss, gradient or update is not finite. Its update is never applied; the run
            then stops ("stop") or continues with the next batch ("skip").
        monitor: steps between readings of `fl.monitor`, which has the whole optimizer within; no monitor by default.

    Raises:
        ValueError: a name is unknown, a number is out of its range, the optimizer lacks a given option, or an option that is a
            number or a bool is a word.
    """

    command: ClassVar[str]  # the name of the command that trains so, with which its errors begin
    evaluations: ClassVar[int] = 20  # measurements on what is held out, in a run of a comparison

    model: str
    optimizer: str = "adam"
    rate: float = 1e-2
    steps: int = 400
    batch: int = 16
    length: int = 128
    options: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    clip: float | None = None
    seed: int = 0
    dtype: str = "float32"
    state_dtype: str = "float32"
    scan: bool = False
    remat: bool = False
    on_nonfinite: str = "stop"
    monitor: int | None = None

    def __post_init__(self) -> None:
        self.require_known("optimizer", TRAINABLE)
        self.require_known("dtype", DTYPES)
        self.require_known("state_dtype", DTYPES)
        self.require_known("on_nonfinite", ("stop", "skip"))
        known = known_options(self.optimizer)
        if unknown := sorted(set(self.options) - set(known)):
            raise ValueError(f"{self.command}: {self.optimizer} has no option {unknown[0]!r}. It has {', '.join(known)}.")
        for name, value in self.options.items():  # an optimizer may meet a wrong one only in its first step
            if isinstance(value, str) and isinstance(known[name], float | int):
                raise ValueError(f"{self.command}: {name} of {self.optimizer} is {known[name]} by default; got {value!r}.")
        for name in ("steps", "batch", "length", "accumulate", "monitor"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{self.command}: {name} is a positive number; got {getattr(self, name)}.")
        for name, value in (("rate", self.rate), ("clip", 1.0 if self.clip is None else self.clip)):
            if not 0 < value < math.inf:
                raise ValueError(f"{self.command}: {name} is a positive number; got {value}.")
        if self.batch % self.accumulate:
            raise ValueError(f"{self.command}: a batch of {self.batch} has no {self.accumulate} equal parts. Take a divisor.")

    def require_known(self, name: str, known: Any, remedy: str = "") -> None:
        """Refuse a field whose value is not among those known, and say what else can be done."""
        if getattr(self, name) not in known:
            raise ValueError(f"{self.command}: {name} is one of {', '.join(known)}; got {getattr(self, name)!r}.{remedy}")

    @property
    @abstractmethod
    def config(self) -> Any:
        """The sizes of the model."""

    def pretrained(self) -> PyTree:
        """Return the weights that are read and not drawn: the argument of `initial_weights`."""
        return ()

    @abstractmethod
    def initial_weights(self, pretrained: PyTree = ()) -> PyTree:
        """Return the weights before the first step. It is traced, so that each device makes only its own part of them."""

    @abstractmethod
    def loss(self, weights: PyTree, batch: PyTree) -> Float[Array, ""]:
        """Return the mean loss over the rows of a batch."""

    @abstractmethod
    def batches(self, data: Any) -> Shuffled:
        """Return the batches of these data."""

    @abstractmethod
    def held_out(self, data: Any) -> PyTree:
        """Return the rows on which every run of these data is measured: arrays whose first axis is that of the rows."""

    @abstractmethod
    def outputs(self, weights: PyTree, rows: PyTree) -> Float[Array, "rows ..."]:
        """Return what `measure` needs to know of each held-out row."""

    @abstractmethod
    def measure(self, outputs: Float[np.ndarray, "rows ..."], rows: PyTree) -> tuple[float, dict[str, float]]:
        """Return the held-out loss, and the scores by name."""

    def perplexity(self, loss: float) -> float | None:
        """Return the exponential of a loss in nats per token; None if the loss is another."""
        return math.exp(min(loss, 700.0))  # exp(700) is still finite in float64; a larger loss is that of a run that diverges

    @property
    def rate_scale(self) -> float:
        """The usual rates of such a training over those of a pre-training."""
        return 1.0

    @property
    def usual_rank(self) -> int:
        """The rank of low-rank methods where none is given: that in [G] for its 60M model, in proportion to the width."""
        return max(self.config.hidden // 4, 1)

    @property
    def weight_dtype(self) -> Any:
        """The dtype of weights and activations."""
        return jnp.dtype(self.dtype)

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate as a function of the step."""
        return warmup_cosine(self.rate, self.steps)

    @property
    def warm_up(self) -> int:
        """The number of steps in which the rate rises."""
        return warm_up(self.steps)

    @property
    def update_interval(self) -> int:
        """The number of steps between refreshes of the optimizer's bases; 1 for an optimizer without refreshes."""
        return (known_options(self.optimizer) | self.options).get("update_interval") or 1

    def transform(self) -> optax.GradientTransformation:
        """Make the optimizer, with clipping, the dtype of its state, and the monitor.

        Raises:
            ValueError: the optimizer refuses the value of an option.
        """
        tx = TRAINABLE[self.optimizer](self.schedule, **self.options)
        tx = tx if self.state_dtype == "float32" else store_state_in(tx, self.state_dtype)
        tx = tx if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), tx)
        return tx if self.monitor is None else monitor(tx, self.monitor)
