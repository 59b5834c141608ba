"""LLaMA as a Flax module: the functions of `fimlens.language_model.llama` applied to Flax's parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int, PyTree

from fimlens.language_model import llama

CONFIGS = {**llama.CPU_CONFIGS, **llama.CONFIGS}  # two for a CPU, and those in [G]


class Llama(nnx.Module):
    """A LLaMA for training loops in Flax NNX. The parameters have the names of the plain model: layers/0/attention/query etc.

    Args:
        config: the sizes of the model.
        rngs: the source of the initial weights.
        dtype: dtype of weights and activations, such as jnp.bfloat16.
        scan: stack the layers and scan over them, so that one layer is compiled instead of all.
        remat: recompute each layer in the backward pass, which saves memory and costs time.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = Llama(llama.Config(), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 5), int)).shape
        (2, 5, 256)
    """

    def __init__(
        self, config: llama.Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, scan: bool = False, remat: bool = False
    ) -> None:
        self.config, self.remat = config, remat
        weights = initial_weights(config, rngs.params(), dtype=dtype, scan=scan)
        for name, leaf in weights.items():
            setattr(self, name, _wrap(leaf))

    @property
    def weights(self) -> PyTree:
        """The parameters as the nested dict of arrays that `fimlens.language_model.llama` takes."""
        names = ("embedding", "layers", "norm", *(() if self.config.tied else ("head",)))
        return {name: _unwrap(getattr(self, name)) for name in names}

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T vocabulary"]:
        """Compute the scores of each next token, of shape (B, T, vocabulary)."""
        return llama.logits(self.config, self.weights, tokens, remat=self.remat)

    def loss(self, tokens: Int[Array, "B T"]) -> Float[Array, ""]:
        """Return the mean cross-entropy of each token given the tokens before it, in nats."""
        return llama.loss(self.config, self.weights, tokens, remat=self.remat)


def initial_weights(config: llama.Config, key: Array, *, dtype: DTypeLike = jnp.float32, scan: bool = False) -> PyTree:
    """Draw the weights before training: `llama.init` in the given dtype, with the layers stacked if they are to be scanned."""
    weights = llama.init(config, key)
    return jax.tree.map(lambda W: W.astype(dtype), llama.stack_layers(weights) if scan else weights)


def _wrap(tree: Any) -> Any:
    """Turn dicts, lists and arrays into the containers and parameters of Flax."""
    # NNX tracks parameters only inside its own containers, not inside plain dicts and lists.
    if isinstance(tree, dict):
        return nnx.Dict({name: _wrap(leaf) for name, leaf in tree.items()})
    return nnx.List([_wrap(leaf) for leaf in tree]) if isinstance(tree, list) else nnx.Param(tree)


def _unwrap(node: Any) -> Any:
    """Undo `_wrap`."""
    if isinstance(node, nnx.Dict):
        return {name: _unwrap(leaf) for name, leaf in node.items()}
    return [_unwrap(leaf) for leaf in node] if isinstance(node, nnx.List) else node[...]
