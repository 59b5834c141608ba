"""Weights of a file, under the names and in the layout of the plain model: every one of them once, and of the right shape."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree


class Stored(NamedTuple):
    """A tensor of a file, read only when it is needed.

    Attributes:
        shape: its shape; that of a matrix is (outputs, inputs), as files have it.
        read: returns its numbers.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def assemble(
    path: Path,
    config: Any,
    init: Callable[[Any, Array], PyTree],
    names: PyTree,
    stored: Mapping[str, Stored],
    dtype: DTypeLike,
) -> PyTree:
    """Return the parameters of a plain model from tensors of a file.

    Args:
        path: the file or directory, for messages.
        config: the sizes, which say the shape of each tensor.
        init: makes the parameters of these sizes from a key, as `llama.init` does.
        names: the tensors' names in the file, as a tree like the parameters.
        stored: the tensors by these names.
        dtype: dtype of the parameters.

    Raises:
        ValueError: tensors are missing or left over, or one has another shape.
    """
    expected = set(jax.tree.leaves(names))
    for what, which in (("lacks", expected - stored.keys()), ("has, beyond this model,", stored.keys() - expected)):
        if which:
            some = ", ".join(sorted(which)[:3]) + (f" and {len(which) - 3} more" if len(which) > 3 else "")
            raise ValueError(
                f"load: {path} {what} {some}. A {config.family} of {config.layers} layers has {len(expected)} tensors."
            )

    def leaf(at: Any, name: str, wanted: jax.ShapeDtypeStruct) -> Array:
        # A row of an embedding is one token's, in files as here. Every other matrix is stored as outputs x inputs.
        transposed = at[0].key != "embedding"
        shape = wanted.shape[::-1] if transposed else wanted.shape
        if stored[name].shape != shape:
            raise ValueError(f"load: {name} in {path} has shape {stored[name].shape}, and the sizes of the model say {shape}.")
        values = stored[name].read()
        return jnp.array(values.T if transposed else values, dtype)  # a copy: the numbers may be a view of the open file

    return jax.tree_util.tree_map_with_path(leaf, names, jax.eval_shape(partial(init, config), jax.random.key(0)))
