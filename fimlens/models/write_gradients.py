"""Write per-example gradients of a JAX model to files, for estimates on more of them than memory holds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, PyTree

from fimlens.models.batches import Loss, count_examples, open_model, require_scalar_loss
from fimlens.models.gradient_files import ABOUT, read_about
from fimlens.transforms.axes import Axes
from fimlens.transforms.leaf_rules import Rule


def write_gradients(
    loss: Loss,
    params: PyTree,
    batches: Sequence[PyTree],
    directory: str | Path,
    *,
    matrices: Sequence[str] = ("*",),
    route: Rule | str | PyTree | None = None,
    axes: Axes | Rule | PyTree | None = None,
    units: Int[np.ndarray, " N"] | Sequence[int] | None = None,
    kind: str = "empirical, one gradient an example",
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> None:
    """Write the gradients that `empirical_fisher` would hold in memory to files that `fimlens lens --gradients` reads.

    A run that was interrupted continues with the same call: it counts what is done in gradients.json.

    Args:
        loss: loss(params, batch), which returns a scalar. It is called on batches of one example.
        params: any pytree.
        batches: a list of batches, each a pytree of arrays whose leading axes have one length.
        directory: made if it is not there.
        matrices, route, axes: as in `empirical_fisher`.
        units: whole numbers, the sampling unit of each example, such as its document. By default each is one.
        kind: what the gradients are gradients of, in words.
        progress: called with the numbers of examples that are done, and of all.

    Raises:
        ValueError: as `empirical_fisher`; the directory holds gradients of another run; or units are not one an example.
        OSError: the disk is full.

    Examples:
        >>> import jax.numpy as jnp, pathlib, tempfile, fimlens as fl
        >>> loss = lambda params, batch: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
        >>> batch = {"x": jnp.ones((6, 3)), "y": jnp.zeros((6, 2))}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     fl.write_gradients(loss, {"w": jnp.ones((3, 2))}, [batch], directory)
        ...     sorted(path.name for path in pathlib.Path(directory).iterdir())
        ['gradients.json', 'w.npy']
    """
    directory, path = Path(directory), Path(directory) / ABOUT
    chosen, others, merge, take_apart = open_model("write_gradients", params, batches, matrices, route, axes, "mean")
    counts = [count_examples("write_gradients", batch) for batch in batches]
    N = sum(counts)
    if units is not None and len(units) != N:
        raise ValueError(f"write_gradients: there are {N} examples and {len(units)} units. Give one an example.")
    about = {"kind": kind, "normalisation": f"mean over {N} examples"}
    about |= {} if units is None else {"units": [int(unit) for unit in units]}
    directory.mkdir(parents=True, exist_ok=True)
    found = read_about(path)
    done = found.pop("done", N) if found else 0
    if found and found != about:
        raise ValueError(f"write_gradients: {directory} holds gradients of another run. Name another directory.")
    example = jax.tree.map(lambda x: x[:1], batches[0])
    require_scalar_loss("write_gradients", loss, params, example)
    gradient = jax.jit(lambda W, rest, batch: take_apart(jax.grad(lambda W: loss(merge(rest | W), batch))(W)))
    shapes = {name: G.shape for name, G in jax.eval_shape(gradient, chosen, others, example).items()}
    paths = {name: directory / f"{name.replace('/', '.')}.npy" for name in shapes}
    if not done:
        for name, shape in shapes.items():
            np.lib.format.open_memmap(paths[name], "w+", np.float32, (N, *shape))
    files = {name: np.lib.format.open_memmap(file, "r+") for name, file in paths.items()}
    places = [(batch, k) for batch, count in zip(batches, counts, strict=True) for k in range(count)]
    for number, (batch, k) in list(enumerate(places))[done:]:
        for name, G in gradient(chosen, others, jax.tree.map(lambda x, k=k: x[k : k + 1], batch)).items():
            files[name][number] = np.asarray(G, np.float32)
            files[name].flush()
        path.write_text(json.dumps(about | {"done": number + 1}))
        progress(number + 1, N)
    path.write_text(json.dumps(about))
