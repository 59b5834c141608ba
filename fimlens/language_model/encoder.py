"""BERT and RoBERTa in plain JAX: encoders whose norms follow each residual sum (Devlin et al., 2019; Liu et al., 2019).

Parameters are a nested dict of arrays. Every weight has shape (inputs, outputs), because the model computes x @ W + b. They may
have any floating dtype; norms and attention scores are computed in float32. Dropout is left out.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fimlens.language_model.llama import at_least_float32, project, through_layers

INITIAL_STD = 0.02  # of every matrix before training, as in BERT


@dataclass(frozen=True)
class Config:
    """The sizes of an encoder.

    Args:
        vocabulary: number of different tokens.
        hidden: width of the residual stream.
        mlp: width inside the MLP.
        heads: attention heads of a layer.
        layers: number of layers.
        positions: rows in the table of positions.
        types: number of token types; BERT's are 0 in a first sentence and 1 in a second.
        first_position: the row of the first token's position. RoBERTa skips the rows up to its padding token.
        pooler: whether the model has the layer that BERT applies to its first token after the last layer.
        norm_eps: added to the variance in each norm.

    Raises:
        ValueError: `heads` does not divide `hidden`.
    """

    family: ClassVar[str] = "BERT"

    vocabulary: int = 256
    hidden: int = 12
    mlp: int = 32
    heads: int = 2
    layers: int = 2
    positions: int = 64
    types: int = 2
    first_position: int = 0
    pooler: bool = True
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"Config: heads is a divisor of the width, {self.hidden}; got {self.heads}.")

    @property
    def longest(self) -> int:
        """The most tokens that the model reads at once."""
        return self.positions - self.first_position


def init(config: Config, key: Array) -> PyTree:
    """Draw the parameters before training: normal matrices, biases of zero, and norms that change nothing."""
    d, keys = config.hidden, iter(jax.random.split(key, 4 + 6 * config.layers))

    def matrix(m: int, n: int) -> Float[Array, "m n"]:
        return INITIAL_STD * jax.random.normal(next(keys), (m, n))

    def dense(m: int, n: int) -> PyTree:
        return {"weight": matrix(m, n), "bias": jnp.zeros(n)}

    def norm() -> PyTree:
        return {"weight": jnp.ones(d), "bias": jnp.zeros(d)}

    def layer() -> PyTree:
        return {
            "attention": {name: dense(d, d) for name in ("query", "key", "value", "output")},
            "attention_norm": norm(),
            "mlp": {"up": dense(d, config.mlp), "down": dense(config.mlp, d)},
            "mlp_norm": norm(),
        }

    tables = {"token": config.vocabulary, "position": config.positions, "type": config.types}
    params = {
        "embedding": {name: matrix(rows, d) for name, rows in tables.items()} | {"norm": norm()},
        "layers": [layer() for _ in range(config.layers)],
    }
    return params | {"pooler": dense(d, d)} if config.pooler else params


def hidden(
    config: Config,
    params: PyTree,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    types: Int[Array, "B T"] | None = None,
    *,
    remat: bool = False,
) -> Float[Array, "B T d"]:
    """Compute the states of all tokens after the last layer.

    Args:
        config: the sizes.
        params: as `init` returns them, or as `llama.stack_layers` does, whose layers are scanned.
        tokens: token ids, of shape (B, T). Each row may end with padding, which no token attends to.
        lengths: the number of tokens of each row before its padding.
        types: the type of each token; by default 0.
        remat: recompute each layer in the backward pass and store only its input. This saves memory and costs time.

    Returns:
        States of shape (B, T, d). Those of padding have no meaning.
    """

    def block(x: Float[Array, "B T d"], layer: PyTree) -> Float[Array, "B T d"]:
        x = normalize(x + attention(config, layer["attention"], x, lengths), layer["attention_norm"])
        inner = jax.nn.gelu(dense(x, layer["mlp"]["up"]), approximate=False)
        return normalize(x + dense(inner, layer["mlp"]["down"]), layer["mlp_norm"])

    normalize, table = partial(layer_norm, eps=config.norm_eps), params["embedding"]
    positions = config.first_position + jnp.arange(tokens.shape[1])
    x = table["token"][tokens] + table["position"][positions] + table["type"][0 if types is None else types]
    return through_layers(jax.checkpoint(block) if remat else block, normalize(x, table["norm"]), params["layers"])


def attention(config: Config, weights: PyTree, x: Float[Array, "B T d"], lengths: Int[Array, " B"]) -> Float[Array, "B T d"]:
    """Apply attention in both directions, to the first `lengths` tokens of each row."""
    B, T, d = x.shape
    heads = (dense(x, weights[name]).reshape(B, T, config.heads, -1) for name in ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(*heads, key_value_seq_lengths=lengths)
    return dense(mixed.reshape(B, T, d), weights["output"])


def dense(x: Float[Array, "... m"], weights: PyTree) -> Float[Array, "... n"]:
    """Compute x @ weight + bias."""
    return project(x, weights["weight"]) + weights["bias"]


def layer_norm(x: Float[Array, "B T d"], weights: PyTree, eps: float) -> Float[Array, "B T d"]:
    """Shift and scale x to mean 0 and variance 1, in float32 (Ba et al., 2016), then scale and shift it by `weights`."""
    wide = at_least_float32(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype) * weights["weight"] + weights["bias"]
