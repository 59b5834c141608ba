"""What one training step of the LLaMA models takes without its optimizer: activations and FLOPs."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from fimlens.language_model import llama


class Batch(NamedTuple):
    """The batch of a step: its sequences, the tokens in each, and the sequences that a device takes at once.

    With `rematerialise`, activations are computed again in the backward pass instead of stored.
    """

    sequences: int = 512
    length: int = 256
    at_once: int = 8
    rematerialise: bool = False


PAPERS_BATCH = Batch()  # the sequences and their length are [G]'s


def activations(config: llama.Config, batch: Batch, width: int) -> int:
    """Bytes of activations on a device, `width` bytes a number.

    A layer keeps 8 d + 4 mlp numbers a token. These are its input, the residual between its halves, the norms of both, queries,
    keys, values, the attention's output, and four of the width of the MLP. It keeps no attention scores, as fused kernels do
    not. With rematerialisation, the inputs of all layers are kept, and one layer in full. Logits and their gradient are in
    float32.
    """
    layer = 8 * config.hidden + 4 * config.mlp
    kept = config.layers * config.hidden + layer if batch.rematerialise else config.layers * layer
    return min(batch.at_once, batch.sequences) * batch.length * (width * kept + 2 * 4 * config.vocabulary)


def model_flops(config: llama.Config, groups: Mapping[str, PyTree], batch: Batch) -> float:
    """FLOPs of one token, forward and backward, without the optimizer's.

    Each weight that multiplies takes 6 (Kaplan et al., 2020), and attention 12 T d a layer (Chowdhery et al., 2022, appendix
    B, where a causal mask saves nothing). Rematerialisation adds a second forward pass, a third more.
    """
    weights = sum(leaf.size for group in ("matrices", "head") for leaf in jax.tree.leaves(groups[group]))
    once = 6 * weights + 12 * config.layers * config.hidden * batch.length
    return once * (4 / 3 if batch.rematerialise else 1.0)
