"""The plan of a training: everything that determines its losses. Two runs of one plan on one text have the same losses."""

import inspect
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import jax.numpy as jnp
import optax

from fimlens.language_model import llama
from fimlens.optimizers import OPTIMIZERS
from fimlens.optimizers.mixture import recommended
from fimlens.pretrain.model import CONFIGS
from fimlens.pretrain.schedule import warmup_cosine
from fimlens.transforms.momentum import store_state_in
from fimlens.transforms.monitor import monitor

DTYPES = ("float32", "bfloat16")


TRAINABLE = OPTIMIZERS | {"recommended": recommended}


@dataclass(frozen=True)
class Plan:
    """A training: model, optimizer, data order and precision. It is checked when made, before hours of training.

    Args:
        model: a name in `fimlens.pretrain.model.CONFIGS`.
        optimizer: the name of an optimizer of fimlens; "recommended" needs the option `choices`.
        rate: peak of the learning rate, which follows `warmup_cosine`, the schedule in [G].
        steps: number of steps.
        batch: sequences in a step, over all devices.
        length: tokens of a sequence that the model reads.
        options: keyword arguments of the optimizer.
        accumulate: number of equal parts of a batch. Their gradients are computed one after the other and averaged, which
            saves memory.
        clip: bound on the global norm of the gradient; no bound by default.
        seed: determines the initial weights and the order of the data.
        dtype: dtype of weights and activations: "float32" or "bfloat16".
        state_dtype: dtype in which the optimizer's state is stored between steps. [G] has bfloat16 for both dtypes. Roots and
            sums are computed in float32 in any case.
        tied: use the embedding as the output head.
        scan: scan over the layers, so that one layer is compiled instead of all.
        remat: recompute each layer in the backward pass, which saves memory and costs time.
        on_nonfinite: what to do when a step's loss, gradient or update is not finite. Its update is never applied; the run
            then stops ("stop") or continues with the next batch ("skip").
        monitor: steps between readings of `fl.monitor`, which has the whole optimizer within; no monitor by default.

    Raises:
        ValueError: a name is unknown or a number is out of its range.
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
    monitor: int | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("model", CONFIGS),
            ("optimizer", TRAINABLE),
            ("dtype", DTYPES),
            ("state_dtype", DTYPES),
            ("on_nonfinite", ("stop", "skip")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"pretrain: {name} is one of {', '.join(known)}; got {getattr(self, name)!r}.")
        for name in ("steps", "batch", "length", "accumulate", "monitor"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"pretrain: {name} is a positive number; got {getattr(self, name)}.")
        for name, value in (("rate", self.rate), ("clip", 1.0 if self.clip is None else self.clip)):
            if not 0 < value < math.inf:
                raise ValueError(f"pretrain: {name} is a positive number; got {value}.")
        if self.batch % self.accumulate:
            raise ValueError(f"pretrain: a batch of {self.batch} has no {self.accumulate} equal parts. Take a divisor.")

    @property
    def config(self) -> llama.Config:
        """The sizes of the model."""
        config = CONFIGS[self.model]
        return llama.Config(**(asdict(config) | {"tied": True})) if self.tied else config

    def require_vocabulary(self, what: str, count: int) -> None:
        """Refuse a text or a tokenizer with more different tokens than the model has.

        Raises:
            ValueError: `count` exceeds the model's vocabulary.
        """
        # JAX clamps an index that is out of bounds: a model would train on wrong tokens without an error.
        if count > self.config.vocabulary:
            raise ValueError(
                f"pretrain: {what} has {count} kinds of token and {self.model} knows {self.config.vocabulary}. "
                "Take a model with a larger vocabulary, or another tokenizer."
            )

    @property
    def weight_dtype(self) -> Any:
        """The dtype of weights and activations."""
        return jnp.dtype(self.dtype)

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate as a function of the step."""
        return warmup_cosine(self.rate, self.steps)

    @property
    def update_interval(self) -> int:
        """The number of steps between refreshes of the optimizer's bases; 1 for an optimizer without refreshes."""
        parameters = inspect.signature(TRAINABLE[self.optimizer]).parameters
        default = parameters["update_interval"].default if "update_interval" in parameters else 1
        return self.options.get("update_interval", default) or 1

    def transform(self) -> optax.GradientTransformation:
        """Make the optimizer, with clipping, the dtype of its state, and the monitor.

        Raises:
            ValueError: the optimizer has no option of a given name.
        """
        make = TRAINABLE[self.optimizer]
        known = list(inspect.signature(make).parameters)[1:]  # the first is the learning rate
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            raise ValueError(f"pretrain: {self.optimizer} has no option {unknown[0]!r}. It has {', '.join(known)}.")
        tx = make(self.schedule, **self.options)
        tx = tx if self.state_dtype == "float32" else store_state_in(tx, self.state_dtype)
        tx = tx if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), tx)
        return tx if self.monitor is None else monitor(tx, self.monitor)
