"""A LLaMA-like language model in plain JAX: RMSNorm, rotary attention, SwiGLU, no biases (Touvron et al., 2023).

Parameters are a nested dict of arrays. Every weight has shape (inputs, outputs), because the model computes x @ W. Parameters
may have any floating dtype; norms, attention scores and losses are computed in float32.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


@dataclass(frozen=True)
class Config:
    """The sizes of a model.

    Args:
        vocabulary: number of different tokens.
        hidden: width of the residual stream. It must be a multiple of 2 * heads, since rotary positions act on pairs.
        mlp: width inside the MLP.
        heads: attention heads of a layer.
        layers: number of layers.
        tied: use the transposed embedding as the output head.
    """

    vocabulary: int = 256
    hidden: int = 12
    mlp: int = 32
    heads: int = 2
    layers: int = 2
    tied: bool = False


# The architectures in [G]. The sizes of its 1.3B model are chosen to reproduce its parameter count.
CONFIGS = {
    "llama-60m": Config(32000, 512, 1376, 8, 8),
    "llama-130m": Config(32000, 768, 2048, 12, 12),
    "llama-350m": Config(32000, 1024, 2736, 16, 24),
    "llama-1b": Config(32000, 2048, 5461, 32, 24),
    "llama-7b": Config(32000, 4096, 11008, 32, 32),
}


def init(config: Config, key: Array) -> PyTree:
    """Draw the parameters before training.

    Each matrix is normal with variance 1 / inputs. The matrices that write to the residual stream are scaled by
    1 / sqrt(2 layers), so that its variance does not grow with depth.
    """
    d, keys = config.hidden, iter(jax.random.split(key, 2 + 7 * config.layers))

    def matrix(m: int, n: int, scale: float = 1.0) -> Float[Array, "m n"]:
        return jax.random.normal(next(keys), (m, n)) * scale / math.sqrt(m)

    residual = 1 / math.sqrt(2 * config.layers)

    def layer() -> PyTree:
        return {
            "attention_norm": jnp.ones(d),
            "attention": {"query": matrix(d, d), "key": matrix(d, d), "value": matrix(d, d), "output": matrix(d, d, residual)},
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

    def block(x: Float[Array, "B T d"], layer: PyTree) -> Float[Array, "B T d"]:
        x = x + attention(config, layer["attention"], rms_norm(x, layer["attention_norm"]))
        return x + swiglu(layer["mlp"], rms_norm(x, layer["mlp_norm"]))

    block = jax.checkpoint(block) if remat else block
    x, layers = params["embedding"][tokens], params["layers"]
    if isinstance(layers, list):
        for layer in layers:
            x = block(x, layer)
    else:
        x = jax.lax.scan(lambda x, layer: (block(x, layer), None), x, layers)[0]
    head = params["embedding"].T if config.tied else params["head"]
    return rms_norm(x, params["norm"]) @ head


def loss(config: Config, params: PyTree, tokens: Int[Array, "B T"], *, remat: bool = False) -> Float[Array, ""]:
    """Return the mean cross-entropy of each token given the tokens before it, in nats. `remat` is as in `logits`."""
    log_p = jax.nn.log_softmax(_at_least_float32(logits(config, params, tokens[:, :-1], remat=remat)))
    return -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1).mean()


def attention(config: Config, weights: PyTree, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """Apply causal multi-head attention with rotary positions."""
    B, T, d = x.shape
    query, key, value = ((x @ weights[name]).reshape(B, T, config.heads, -1) for name in ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(rotary(query), rotary(key), value, is_causal=True)
    return mixed.reshape(B, T, d) @ weights["output"]


def rotary(x: Float[Array, "B T heads k"], base: float = 10000.0) -> Float[Array, "B T heads k"]:
    """Rotate each pair of coordinates by an angle proportional to the position (Su et al., 2021)."""
    T, k = x.shape[1], x.shape[3]
    angles = jnp.arange(T)[:, None] * base ** (-jnp.arange(0, k, 2) / k)
    # The angles are float32 whatever x is: positions in bfloat16 would be exact only up to 256.
    cos, sin = jnp.cos(angles)[:, None].astype(x.dtype), jnp.sin(angles)[:, None].astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def swiglu(weights: PyTree, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """Apply the SwiGLU MLP: down(silu(gate x) * up x) (Shazeer, 2020)."""
    return (jax.nn.silu(x @ weights["gate"]) * (x @ weights["up"])) @ weights["down"]


def rms_norm(x: Float[Array, "B T d"], weight: Float[Array, " d"], eps: float = 1e-6) -> Float[Array, "B T d"]:
    """Divide x by its root mean square, computed in float32 (Zhang and Sennrich, 2019), and multiply by `weight`."""
    mean_square = jnp.mean(jnp.square(_at_least_float32(x)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype) * weight


def _at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Convert bfloat16 and float16 to float32; leave float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
