"""The plan of a pre-training: everything that determines its losses. Two runs of one plan on one text have the same losses."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fimlens.language_model import llama
from fimlens.pretrain.data import Batches, Corpus, evaluation_windows
from fimlens.pretrain.model import CONFIGS, initial_weights
from fimlens.pretrain.recipe import Recipe

EVALUATION_WINDOWS = 128


@dataclass(frozen=True)
class Plan(Recipe):
    """The pre-training of a language model: model, optimizer, data order and precision.

    It is checked when made, before hours of training. All arguments have defaults; those not listed are as in `Recipe`.

    Args:
        model: a name in `fimlens.pretrain.model.CONFIGS`.
        rate: peak of the learning rate, which follows `warmup_cosine`, the schedule in [G].
        tied: use the embedding as the output head.

    Raises:
        ValueError: a name is unknown or a number is out of its range.
    """

    command: ClassVar[str] = "pretrain"

    model: str = "cpu-1m"
    tied: bool = False

    def __post_init__(self) -> None:
        self.require_known("model", CONFIGS, " A model of others, in a directory, is trained by `fimlens finetune`.")
        super().__post_init__()

    @property
    def config(self) -> llama.Config:
        """The sizes of the model."""
        return replace(CONFIGS[self.model], tied=True) if self.tied else CONFIGS[self.model]

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

    def initial_weights(self, pretrained: PyTree = ()) -> PyTree:
        """Draw the weights before the first step."""
        return initial_weights(self.config, jax.random.key(self.seed), dtype=self.weight_dtype, scan=self.scan)

    def loss(self, weights: PyTree, batch: Int[Array, "rows window"]) -> Float[Array, ""]:
        """Return the mean cross-entropy of each token given the tokens before it, in nats."""
        return llama.loss(self.config, weights, batch, remat=self.remat)

    def batches(self, data: Corpus) -> Batches:
        """Return the batches of a text.

        Raises:
            ValueError: the text is too short or has too many kinds of token.
        """
        self.require_vocabulary("the text", data.vocabulary)
        return Batches(data.train, batch=self.batch, length=self.length, seed=self.seed)

    def held_out(self, data: Corpus) -> Int[np.ndarray, "rows window"]:
        """Return evenly spaced windows of the held-out text."""
        return evaluation_windows(data.held_out, count=EVALUATION_WINDOWS, length=self.length)

    def outputs(self, weights: PyTree, rows: Int[Array, "rows window"]) -> Float[Array, " rows"]:
        """Return the mean loss per token of each window."""
        return jax.vmap(lambda row: llama.loss(self.config, weights, row[None]))(rows)

    def measure(self, outputs: Float[np.ndarray, " rows"], rows: PyTree) -> tuple[float, dict[str, float]]:
        """Return the mean loss per token over all windows. There are no other scores."""
        return float(np.mean(outputs, dtype=float)), {}
