"""A LLaMA-like language model in plain JAX: RMSNorm, rotary attention, SwiGLU, no biases (Touvron et al., 2023).

Parameters are a nested dict of arrays. Every weight has shape (inputs, outputs), because the model computes x @ W. Parameters
may have any floating dtype; norms, attention scores and losses are computed in float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


@dataclass(frozen=True)
class Config:
    """The sizes of a model.

    Args:
        vocabulary: number of different tokens.
        hidden: width of the residual stream.
        mlp: width inside the MLP.
        heads: attention heads of a layer.
        layers: number of layers.
        tied: use the transposed embedding as the output head.
        kv_heads: heads of keys and values, each shared by a group of query heads (Ainslie et al., 2023); by default `heads`.
        head_size: numbers in a head; by default hidden / heads.
        rotary_base: the rotary angles of pair k fall as rotary_base ** (-2k / head_size).
        norm_eps: added to the mean square in each norm.

    Raises:
        ValueError: the size of a head is not even, as rotary positions need, or `kv_heads` does not divide `heads`.
    """

    family: ClassVar[str] = "LLaMA"

    vocabulary: int = 256
    hidden: int = 12
    mlp: int = 32
    heads: int = 2
    layers: int = 2
    tied: bool = False
    kv_heads: int | None = None
    head_size: int | None = None
    rotary_base: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        size = self.head_size or self.hidden / self.heads
        if size % 2:
            raise ValueError(f"Config: the size of a head is an even number, for rotary pairs; got {size:g}.")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"Config: kv_heads is a divisor of the {self.heads} heads; got {self.kv_heads}.")

    @property
    def head_width(self) -> int:
        """Width of one head: `head_size`, by default hidden / heads."""
        return self.head_size or self.hidden // self.heads


# The architectures in [G]. The sizes of its 1.3B model are chosen to reproduce its parameter count.
CONFIGS = {
    "llama-60m": Config(32000, 512, 1376, 8, 8),
    "llama-130m": Config(32000, 768, 2048, 12, 12),
    "llama-350m": Config(32000, 1024, 2736, 16, 24),
    "llama-1b": Config(32000, 2048, 5461, 32, 24),
    "llama-7b": Config(32000, 4096, 11008, 32, 32),
}
# Two byte-level models of about 1M and 5M parameters, small enough for a CPU.
CPU_CONFIGS = {
    "cpu-1m": Config(vocabulary=256, hidden=128, mlp=344, heads=4, layers=5),
    "cpu-5m": Config(vocabulary=256, hidden=256, mlp=688, heads=8, layers=6),
}


def init(config: Config, key: Array) -> PyTree:
    """Draw the parameters before training.

    Each matrix is normal with variance 1 / inputs. The matrices that write to the residual stream are scaled by
    1 / sqrt(2 layers), so that its variance does not grow with depth.
    """
    d, keys = config.hidden, iter(jax.random.split(key, 2 + 7 * config.layers))
    queries, values = (heads * config.head_width for heads in (config.heads, config.kv_heads or config.heads))

    def matrix(m: int, n: int, scale: float = 1.0) -> Float[Array, "m n"]:
        return jax.random.normal(next(keys), (m, n)) * scale / math.sqrt(m)

    residual = 1 / math.sqrt(2 * config.layers)

    def layer() -> PyTree:
        return {
            "attention_norm": jnp.ones(d),
            "attention": {
                "query": matrix(d, queries), "key": matrix(d, values),
                "value": matrix(d, values), "output": matrix(queries, d, residual),
            },
            "mlp_norm": jnp.ones(d),
            "mlp": {"gate": matrix(d, config.mlp), "up": matrix(d, config.mlp), "down": matrix(config.mlp, d, residual)},
        }  # fmt: skip

    # matrix() divides by sqrt(vocabulary). This factor gives the embedding unit variance, or variance 1 / d when it is tied,
    # since it then also maps d inputs to the scores.
    params = {
        "embedding": matrix(config.vocabulary, d, math.sqrt(config.vocabulary / (d if config.tied else 1))),
        "layers": [layer() for _ in range(config.layers)],
        "norm": jnp.ones(d),
    }
    return params if config.tied else params | {"head": matrix(d, config.vocabulary)}


def stack_layers(params: PyTree) -> PyTree:
    """Stack the layers' parameters along a new leading axis. `logits` then scans over them and compiles one layer only."""
    return params | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["layers"])}


def unstack_layers(params: PyTree) -> PyTree:
    """Undo `stack_layers`: every layer's parameters are then leaves of their own, such as layers/0/attention/query."""
    count = len(jax.tree.leaves(params["layers"])[0])
    return params | {"layers": [jax.tree.map(lambda leaf, k=k: leaf[k], params["layers"]) for k in range(count)]}


def logits(config: Config, params: PyTree, tokens: Int[Array, "B T"], *, remat: bool = False) -> Float[Array, "B T vocabulary"]:
    """Compute the scores of each next token.

    Args:
        config: the sizes.
        params: as `init` returns them, or as `stack_layers` does.
        tokens: token ids, of shape (B, T).
        remat: recompute each layer in the backward pass and store only its input. This saves memory and costs time.

    Returns:
        Scores of shape (B, T, vocabulary): entry t is for the token after token t.
    """
    head = params["embedding"].T if config.tied else params["head"]
    return project(hidden(config, params, tokens, remat=remat), head)


def hidden(config: Config, params: PyTree, tokens: Int[Array, "B T"], *, remat: bool = False) -> Float[Array, "B T d"]:
    """Compute the states of all tokens after the last norm, from which the head makes scores. Arguments are as in `logits`."""

    def block(x: Float[Array, "B T d"], layer: PyTree) -> Float[Array, "B T d"]:
        x = x + attention(config, layer["attention"], rms_norm(x, layer["attention_norm"], config.norm_eps))
        return x + swiglu(layer["mlp"], rms_norm(x, layer["mlp_norm"], config.norm_eps))

    x = through_layers(jax.checkpoint(block) if remat else block, params["embedding"][tokens], params["layers"])
    return rms_norm(x, params["norm"], config.norm_eps)


def through_layers(
    block: Callable[[Float[Array, "B T d"], PyTree], Float[Array, "B T d"]], x: Float[Array, "B T d"], layers: PyTree
) -> Float[Array, "B T d"]:
    """Apply a block with the parameters of each layer in turn: a list of them, or a stack, over which it scans."""
    if isinstance(layers, list):
        return reduce(block, layers, x)
    return jax.lax.scan(lambda x, layer: (block(x, layer), None), x, layers)[0]


def loss(config: Config, params: PyTree, tokens: Int[Array, "B T"], *, remat: bool = False) -> Float[Array, ""]:
    """Return the mean cross-entropy of each token given the tokens before it, in nats. `remat` is as in `logits`."""
    log_p = jax.nn.log_softmax(at_least_float32(logits(config, params, tokens[:, :-1], remat=remat)))
    return -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1).mean()


def attention(config: Config, weights: PyTree, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """Apply causal attention with rotary positions, its query heads in groups that share a head of keys and values."""
    B, T, _ = x.shape
    query, key, value = (project(x, weights[name]).reshape(B, T, -1, config.head_width) for name in ("query", "key", "value"))
    query, key = rotary(query, config.rotary_base), rotary(key, config.rotary_base)
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return project(mixed.reshape(B, T, -1), weights["output"])


def rotary(x: Float[Array, "B T heads k"], base: float) -> Float[Array, "B T heads k"]:
    """Rotate each pair of coordinates by an angle proportional to the position (Su et al., 2021)."""
    T, k = x.shape[1], x.shape[3]
    angles = jnp.arange(T)[:, None] * base ** (-jnp.arange(0, k, 2) / k)
    # The angles are float32 whatever x is: positions in bfloat16 would be exact only up to 256.
    cos, sin = jnp.cos(angles)[:, None].astype(x.dtype), jnp.sin(angles)[:, None].astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def swiglu(weights: PyTree, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """Apply the SwiGLU MLP: down(silu(gate x) * up x) (Shazeer, 2020)."""
    return project(jax.nn.silu(project(x, weights["gate"])) * project(x, weights["up"]), weights["down"])


def project(x: Float[Array, "... m"], weight: Float[Array, "m n"]) -> Float[Array, "... n"]:
    """Compute x @ weight as one product of matrices."""
    # XLA's CPU backend takes 1.7 times as long for the gradient of a product with several leading axes.
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], -1)


def rms_norm(x: Float[Array, "B T d"], weight: Float[Array, " d"], eps: float) -> Float[Array, "B T d"]:
    """Divide x by its root mean square, computed in float32 (Zhang and Sennrich, 2019), and multiply by `weight`."""
    mean_square = jnp.mean(jnp.square(at_least_float32(x)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype) * weight


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Convert bfloat16 and float16 to float32; leave float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
