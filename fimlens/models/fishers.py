"""Empirical Fishers of a model: for any JAX loss, any pytree of parameters and any iterable of batches, without hooks.

Per-example gradients of the chosen matrices are computed in chunks, as many at a time as fit in a given number of bytes.
"""

from collections.abc import Iterable, Sequence

import jax
from jaxtyping import PyTree

from fimlens.fisher.fisher import Fisher
from fimlens.models.batches import (
    MAX_BYTES,
    Loss,
    collect,
    count_examples,
    make_fishers,
    map_in_chunks,
    open_model,
    require_scalar_loss,
)
from fimlens.models.matrices import Matrices
from fimlens.transforms.axes import Axes
from fimlens.transforms.leaf_rules import Rule


def empirical_fisher(
    loss: Loss,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    matrices: Sequence[str] = ("*",),
    route: Rule | str | PyTree | None = None,
    axes: Axes | Rule | PyTree | None = None,
    reduction: str = "mean",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fisher]:
    """Compute the empirical Fisher of each matrix of a model: the mean of g g^T over per-example gradients of the loss.

    Use it for the Fisher of a trained model on data with labels. `minibatch_fisher` is the one that an optimizer sees, and
    `model_fisher` the true one, with labels drawn from the model.

    Args:
        loss: loss(params, batch), which returns a scalar. It is called on batches of one example, sliced from the leading
            axes of a batch.
        params: any pytree. Its floating-point leaves of two axes or more are matrices or stacks of them, as an optimizer sees
            them; other leaves, functions among them, are passed by. Leaves of unknown axes are named in a warning.
        batches: an iterable of batches. A batch is a pytree of arrays whose leading axes have one length.
        matrices: which matrices: paths such as "layers/0/query", or patterns such as "layers/*/query". In a leaf that stacks
            matrices each has a place, as in "layers/query/0", and the leaf's path names all. All by default.
        route: which leaves count as matrices, as in `fl.matrices`. All by default, embeddings and the head too.
        axes: which axes of a leaf are a matrix; see `fl.as_matrix`. By default, by the evidence described there.
        reduction: "mean" or "sum" over the examples.
        max_bytes: bound on the memory of a chunk of gradients, and on that of the gradients kept.

    Returns:
        A Fisher for each matrix chosen, by its name.

    Raises:
        TypeError: `batches` is a single batch.
        ValueError: no matrix has such a name, there is no matrix or no batch, or two parameters have one path. Also: the arrays
            of a batch have different leading axes, the loss is not a scalar, or gradients are not finite. Also: the gradients
            of one example, or all gradients kept, exceed `max_bytes`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> loss = lambda params, batch: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
        >>> batch = {"x": jnp.ones((6, 3)), "y": jnp.zeros((6, 2))}
        >>> fl.empirical_fisher(loss, {"w": jnp.ones((3, 2))}, [batch])["w"]
        Fisher of a 3 x 2 matrix from 6 samples: empirical, one gradient an example, mean over 6 examples
    """
    chosen, others, merge, take_apart = open_model("empirical_fisher", params, batches, matrices, route, axes, reduction)

    def one(example: PyTree, weights: tuple[Matrices, Matrices]) -> Matrices:
        chosen, others = weights
        return take_apart(jax.grad(lambda W: loss(merge(others | W), jax.tree.map(lambda x: x[None], example)))(chosen))

    # Per-example gradients: vmap over a loss of one example works for every loss, and needs no hooks into layers.
    chunked = map_in_chunks("empirical_fisher", one, (chosen, others), max_bytes)

    def gradients(batch: PyTree) -> Matrices:
        count_examples("empirical_fisher", batch)
        require_scalar_loss("empirical_fisher", loss, params, jax.tree.map(lambda x: x[:1], batch))
        return chunked(batch)

    kept = collect("empirical_fisher", (gradients(batch) for batch in batches), max_bytes)
    return make_fishers("empirical_fisher", kept, "empirical, one gradient an example", "examples", reduction)


def minibatch_fisher(
    loss: Loss,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    matrices: Sequence[str] = ("*",),
    route: Rule | str | PyTree | None = None,
    axes: Axes | Rule | PyTree | None = None,
    reduction: str = "mean",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fisher]:
    """Compute the Fisher that an optimizer sees: the mean of g g^T over the gradients of minibatches.

    Use it to ask how well an optimizer's structure fits what it is fed. Each batch gives one gradient, of the loss as given,
    so usually of the mean over the batch. Arguments, result and errors are those of `empirical_fisher`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> loss = lambda params, x: jnp.mean((x @ params["w"]) ** 2)
        >>> fl.minibatch_fisher(loss, {"w": jnp.ones((3, 2))}, [jnp.ones((6, 3)), jnp.zeros((6, 3))])["w"]
        Fisher of a 3 x 2 matrix from 2 samples: empirical, one gradient a minibatch, mean over 2 minibatches
    """
    chosen, others, merge, take_apart = open_model("minibatch_fisher", params, batches, matrices, route, axes, reduction)
    gradient = jax.jit(lambda W, rest, batch: take_apart(jax.grad(lambda W: loss(merge(rest | W), batch))(W)))

    def one(batch: PyTree) -> Matrices:
        require_scalar_loss("minibatch_fisher", loss, params, batch)
        return jax.tree.map(lambda g: g[None], gradient(chosen, others, batch))

    kept = collect("minibatch_fisher", (one(batch) for batch in batches), max_bytes)
    return make_fishers("minibatch_fisher", kept, "empirical, one gradient a minibatch", "minibatches", reduction)
