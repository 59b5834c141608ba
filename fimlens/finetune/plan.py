"""The plan of a fine-tuning: a model of others with a head for a task, trained whole or by its head alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from fimlens.finetune.examples import Each, Examples, Rows, States, encode, read_task
from fimlens.finetune.task import GLUE, Task
from fimlens.language_model import Pretrained, encoder, llama, load
from fimlens.pretrain.recipe import Recipe
from fimlens.pretrain.shuffled import Shuffled

READ_AT_ONCE = 128  # rows, where the head alone is trained


@dataclass(frozen=True)
class Finetuning(Recipe):
    """The fine-tuning of a model for a task.

    An encoder is read at its first token, through its pooler: the one in its file or, without one, a new one. A decoder is read
    at its last token. A new linear layer, the classifier, makes the outputs. The loss is the cross-entropy of the classes in
    nats, or the squared error of a regression. It is checked when made. Arguments not listed are as in `Recipe`.

    Args:
        model: what `fimlens.language_model.load` takes: a directory with BERT, RoBERTa or a LLaMA-family model, and others.
        rate: peak of the learning rate, which rises linearly during the warm-up and falls linearly to zero.
        task: the task.
        head_only: train pooler and classifier alone, on states that `states_of` computes once.
        warmup: the share of the steps in which the rate rises.
        tokenizer: a tokenizer.json to take instead of the model's own.

    Raises:
        ValueError: a name is unknown or a number is out of its range.
    """

    command: ClassVar[str] = "finetune"
    evaluations: ClassVar[int] = 1  # at the end alone: it reads all rows that are held out, which takes as long as many steps
    usual_rank: ClassVar[int] = 8  # [G] and GaLore fine-tune with 4 and 8

    rate: float = 1e-4
    task: Task = GLUE["sst2"]
    head_only: bool = False
    warmup: float = 0.1
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup < 1:
            raise ValueError(f"finetune: warmup is a share of the steps, from 0 to below 1; got {self.warmup}.")

    @property
    def source(self) -> Pretrained:
        """The model as it was before."""
        return _load(self.model, self.tokenizer, self.dtype)

    @property
    def config(self) -> llama.Config | encoder.Config:
        """The sizes of the model."""
        return self.source.config

    @property
    def rate_scale(self) -> float:
        """The usual rates of a fine-tuning over those of a pre-training; a new head alone is trained at larger ones."""
        return 0.1 if self.head_only else 0.01

    @property
    def warm_up(self) -> int:
        """The number of steps in which the rate rises."""
        return round(self.warmup * self.steps)

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate as a function of the step."""
        rising = self.warm_up
        parts = optax.linear_schedule(0.0, self.rate, rising), optax.linear_schedule(self.rate, 0.0, self.steps - rising)
        return optax.join_schedules(parts, [rising])

    def pretrained(self) -> PyTree:
        """Return the weights of the model without its own head; those of its pooler alone if nothing else is trained."""
        params = {name: leaf for name, leaf in self.source.params.items() if name != "head"}
        if self.head_only:
            return {name: leaf for name, leaf in params.items() if name == "pooler"}
        return llama.stack_layers(params) if self.scan else params

    def initial_weights(self, pretrained: PyTree = ()) -> PyTree:
        """Return the weights of the model with a new classifier, and with a new pooler where an encoder has none."""
        d, keys = self.config.hidden, jax.random.split(jax.random.key(self.seed))

        def new(key: Array, outputs: int) -> PyTree:
            weight = encoder.INITIAL_STD * jax.random.normal(key, (d, outputs), self.weight_dtype)
            return {"weight": weight, "bias": jnp.zeros(outputs, self.weight_dtype)}

        pooler = {"pooler": new(keys[1], d)} if isinstance(self.config, encoder.Config) else {}
        # Copied, as a step donates its weights: it would otherwise delete those that are remembered for the next run.
        return pooler | jax.tree.map(jnp.copy, dict(pretrained)) | {"classifier": new(keys[0], self.task.width)}

    def states(self, weights: PyTree, rows: Rows) -> Float[Array, "rows d"]:
        """Return the state of each row that its head reads."""
        if isinstance(self.config, encoder.Config):
            return encoder.hidden(self.config, weights, rows.tokens, rows.lengths, rows.types, remat=self.remat)[:, 0]
        hidden = llama.hidden(self.config, weights, rows.tokens, remat=self.remat)
        return jnp.take_along_axis(hidden, rows.lengths[:, None, None] - 1, axis=1)[:, 0]

    def outputs(self, weights: PyTree, rows: Rows | States) -> Float[Array, "rows width"]:
        """Return the scores of the classes, or the predicted number, of each row."""
        state = rows.states if self.head_only else self.states(weights, rows)
        if "pooler" in weights:
            state = jnp.tanh(encoder.dense(state, weights["pooler"]))
        return llama.at_least_float32(encoder.dense(state, weights["classifier"]))

    def losses(self, outputs: Float[Array, "rows width"], labels: Array) -> Float[Array, " rows"]:
        """Return the loss of each row."""
        if self.task.classes:
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        return optax.squared_error(outputs[:, 0], labels)

    def loss(self, weights: PyTree, batch: Rows | States) -> Float[Array, ""]:
        """Return the mean loss over the rows of a batch."""
        return self.losses(self.outputs(weights, batch), batch.labels).mean()

    def batches(self, data: Examples) -> Shuffled:
        """Return the batches of a task's examples."""
        return Shuffled([Each(self._as_read(data.train))], batch=self.batch, seed=self.seed)

    def held_out(self, data: Examples) -> Rows | States:
        """Return all rows that are held out."""
        return self._as_read(data.held_out)

    def measure(self, outputs: Float[np.ndarray, "rows width"], rows: Rows | States) -> tuple[float, dict[str, float]]:
        """Return the mean loss over all rows, and the scores of the task."""
        losses = self.losses(jnp.asarray(outputs), jnp.asarray(rows.labels))
        return float(losses.mean()), self.task.score(rows.labels, outputs)

    def perplexity(self, loss: float) -> None:
        """Return None: the loss is not of a token."""

    def _as_read(self, rows: Rows | States) -> Rows | States:
        """Refuse rows that are not those that the plan trains on."""
        if isinstance(rows, States) != self.head_only:
            raise ValueError("finetune: the head alone is trained on what states_of returns, and a whole model on tokens.")
        return rows


def prepare(model: str, task: str, *, epochs: float, reading: Mapping[str, Any], **fields: Any) -> tuple[Finetuning, Examples]:
    """Read a task, and return the plan of a fine-tuning and its examples: all that the loop needs.

    Args:
        model: as in `Finetuning`.
        task: as in `read_task`.
        epochs: passes over the examples, which say the number of steps.
        reading: further arguments of `read_task`.
        fields: further arguments of `Finetuning`.

    Raises:
        ValueError: the task, the model or an argument is refused.
    """
    if not 0 < epochs < math.inf:
        raise ValueError(f"finetune: epochs is a positive number; got {epochs}.")
    plan = Finetuning(model, **fields)
    source = plan.source  # so that a wrong number and a wrong model are refused before the task is read
    given, train, held_out = read_task(task, **reading)
    plan = replace(plan, task=given, steps=math.ceil(epochs * len(train.texts) / plan.batch))
    examples = encode(source, given, train, held_out, plan.length)
    return plan, states_of(plan, examples) if plan.head_only else examples


def states_of(plan: Finetuning, examples: Examples) -> Examples:
    """Return what the head reads of each example, computed once, for a plan that trains the head alone."""
    params = plan.source.params
    weights, read = llama.stack_layers(params) if plan.scan else params, jax.jit(plan.states)

    def part(rows: Rows) -> States:
        starts = range(0, len(rows.labels), READ_AT_ONCE)
        states = [read(weights, jax.tree.map(lambda leaf, k=k: leaf[k : k + READ_AT_ONCE], rows)) for k in starts]
        return States(np.concatenate(states), rows.labels)

    return examples._replace(train=part(examples.train), held_out=part(examples.held_out))


@lru_cache(maxsize=1)
def _load(path: str, tokenizer: str | None, dtype: str) -> Pretrained:
    # Remembered, since a comparison makes many plans of one model.
    return load(path, tokenizer=tokenizer, dtype=dtype)
