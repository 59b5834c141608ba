"""What makes a training what it is: two runs of one plan make the same losses."""

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import jax.numpy as jnp
import optax

from fimlens.language_model import llama
from fimlens.language_model.trial import papers_schedule
from fimlens.optimizers import OPTIMIZERS
from fimlens.pretrain.model import CONFIGS
from fimlens.transforms.momentum import kept_in

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Plan:
    """A training: model, optimizer and data order. Sizes are counts; `rate` is the peak of the learning rate.

    It warms up over a tenth of the steps and falls by a cosine to a tenth of its peak, as in [G]. `options` go to the
    optimizer, `accumulate` is the number of parts that each batch is taken in, `clip` bounds the gradient's norm, and
    `on_nonfinite` says what becomes of a step whose loss or gradient is not finite: its update is never made, and the run
    stops, or skips it. `dtype` is that of weights and activations, `state_dtype` what the optimizer's state is kept in
    between steps, bfloat16 both in [G]; roots and sums are in float32 in any case.

    Raises:
        ValueError: a name is unknown or a number out of its range.
    """

    model: str = "cpu-1m"
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
    tied: bool = False
    scan: bool = False
    remat: bool = False
    on_nonfinite: str = "stop"

    def __post_init__(self) -> None:
        for name, known in (
            ("model", CONFIGS),
            ("optimizer", OPTIMIZERS),
            ("dtype", DTYPES),
            ("state_dtype", DTYPES),
            ("on_nonfinite", ("stop", "skip")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"pretrain: {name} is one of {', '.join(known)}; got {getattr(self, name)!r}.")
        for name in ("steps", "batch", "length", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"pretrain: {name} is a positive number; got {getattr(self, name)}.")
        for name, value in (("rate", self.rate), ("clip", 1.0 if self.clip is None else self.clip)):
            if not 0 < value < math.inf:
                raise ValueError(f"pretrain: {name} is a positive number; got {value}.")
        if self.batch % self.accumulate:
            raise ValueError(f"pretrain: a batch of {self.batch} has no {self.accumulate} equal parts. Take a divisor.")

    @property
    def config(self) -> llama.Config:
        """The model's sizes."""
        config = CONFIGS[self.model]
        return llama.Config(**(asdict(config) | {"tied": True})) if self.tied else config

    def require_vocabulary(self, what: str, count: int) -> None:
        """Refuse what has more kinds of token than the model knows.

        Raises:
            ValueError: it has.
        """
        if count > self.config.vocabulary:
            raise ValueError(
                f"pretrain: {what} has {count} kinds of token and {self.model} knows {self.config.vocabulary}. "
                "Take a model with a larger vocabulary, or another tokenizer."
            )

    @property
    def weight_dtype(self) -> Any:
        """Of weights and activations."""
        return jnp.dtype(self.dtype)

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate by the step."""
        return papers_schedule(self.rate, self.steps)

    @property
    def update_interval(self) -> int:
        """Steps between the optimizer's refreshes; 1 where it has none."""
        parameters = inspect.signature(OPTIMIZERS[self.optimizer]).parameters
        default = parameters["update_interval"].default if "update_interval" in parameters else 1
        return self.options.get("update_interval", default) or 1

    def transform(self) -> optax.GradientTransformation:
        """The optimizer, a whole chain.

        Raises:
            ValueError: an option is none of the optimizer's.
        """
        make: Callable[..., optax.GradientTransformation] = OPTIMIZERS[self.optimizer]
        unknown = sorted(set(self.options) - set(list(inspect.signature(make).parameters)[1:]))
        if unknown:
            known = ", ".join(list(inspect.signature(make).parameters)[1:])
            raise ValueError(f"pretrain: {self.optimizer} has no option {unknown[0]!r}. It has {known}.")
        tx = make(self.schedule, **self.options)
        tx = tx if self.state_dtype == "float32" else kept_in(tx, self.state_dtype)
        return tx if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), tx)
