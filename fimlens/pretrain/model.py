"""LLaMA as a Flax module: the core's functions over Flax's parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int, PyTree

from fimlens.language_model import llama

# Beside those of [G], models of some 1M and 5M parameters for a CPU, byte-level.
CONFIGS = {
    "cpu-1m": llama.Config(vocabulary=256, hidden=128, mlp=344, heads=4, layers=5),
    "cpu-5m": llama.Config(vocabulary=256, hidden=256, mlp=688, heads=8, layers=6),
    **llama.CONFIGS,
}


class Llama(nnx.Module):
    """`fimlens.language_model.llama` with Flax's parameters, by the same names: layers/0/attention/query and so on.

    Args:
        config: the sizes; `tied` makes the embedding the head.
        rngs: the source of the first weights.
        dtype: of weights and activations, such as jnp.bfloat16.
        scan: layers stacked and scanned over, so that one is compiled.
        remat: layers computed again for their gradients.

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
        weights = first_weights(config, rngs.params(), dtype=dtype, scan=scan)
        for name, leaf in weights.items():
            setattr(self, name, _held(leaf))

    @property
    def weights(self) -> PyTree:
        """The parameters as `fimlens.language_model.llama` has them."""
        names = ("embedding", "layers", "norm", *(() if self.config.tied else ("head",)))
        return {name: _bare(getattr(self, name)) for name in names}

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T vocabulary"]:
        """Scores of the token after each."""
        return llama.logits(self.config, self.weights, tokens, remat=self.remat)

    def loss(self, tokens: Int[Array, "B T"]) -> Float[Array, ""]:
        """The mean cross-entropy of each token given those before it, in nats."""
        return llama.loss(self.config, self.weights, tokens, remat=self.remat)


def first_weights(config: llama.Config, key: Array, *, dtype: DTypeLike = jnp.float32, scan: bool = False) -> PyTree:
    """`llama.init` in a dtype, its layers a list, or stacked to be scanned."""
    weights = llama.init(config, key)
    return jax.tree.map(lambda W: W.astype(dtype), llama.stacked(weights) if scan else weights)


def _held(tree: Any) -> Any:
    if isinstance(tree, dict):
        return nnx.Dict({name: _held(leaf) for name, leaf in tree.items()})
    return nnx.List([_held(leaf) for leaf in tree]) if isinstance(tree, list) else nnx.Param(tree)


def _bare(held: Any) -> Any:
    if isinstance(held, nnx.Dict):
        return {name: _bare(leaf) for name, leaf in held.items()}
    return [_bare(leaf) for leaf in held] if isinstance(held, nnx.List) else held[...]
