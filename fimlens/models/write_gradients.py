"""Write per-example gradients of a JAX model to files, for estimates on more of them than memory holds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, PyTree

from fimlens._validate import write_atomically
from fimlens.models.batches import Loss, count_examples, open_model, require_scalar_loss
from fimlens.models.gradient_files import ABOUT, fingerprint, read_about
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

    A run that was interrupted continues with the same call: gradients.json counts what is done, and has a checksum of all
    parameters and batches. Of the loss there is none, so name it in `kind`.

    Args:
        loss: loss(params, batch), which returns a scalar. It is called on batches of one example.
        params: any pytree.
        batches: a list of batches, each a pytree of arrays whose leading axes have one length.
        directory: made if it is not there.
        matrices, route, axes: as in `empirical_fisher`.
        units: whole numbers, the sampling unit of each example, such as its document. By default each is one.
        kind: what the gradients are gradients of, in words.
        progress: called with the numbers of examples that are done, and of all: at the start and after each example.

    Raises:
        ValueError: as `empirical_fisher`; the directory holds gradients of another run; two matrices would have one file; or
            units are not one an example.
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
    example = jax.tree.map(lambda x: x[:1], batches[0])
    require_scalar_loss("write_gradients", loss, params, example)
    gradient = jax.jit(lambda W, rest, batch: take_apart(jax.grad(lambda W: loss(merge(rest | W), batch))(W)))
    shapes = {name: G.shape for name, G in jax.eval_shape(gradient, chosen, others, example).items()}
    paths = {name: directory / f"{name.replace('/', '.')}.npy" for name in shapes}
    if len(set(paths.values())) < len(paths):
        raise ValueError("write_gradients: two matrices have one name once '.' stands for '/'. Rename a key that holds a dot.")
    about = {"kind": kind, "normalisation": f"mean over {N} examples", "matrices": list(shapes)}
    about |= {} if units is None else {"units": [int(unit) for unit in units]}
    about["fingerprint"] = fingerprint([*chosen.values(), *others.values(), *jax.tree.leaves(batches)])
    directory.mkdir(parents=True, exist_ok=True)
    found = read_about(path)
    done = found.pop("done", N) if found else 0
    if found != about if found else any(file.exists() for file in paths.values()):
        raise ValueError(f"write_gradients: {directory} holds gradients of another run. Name another directory.")
    if not done:
        write_atomically(path, json.dumps(about | {"done": 0}))  # first, so that zeros never pass for gradients
        for name, shape in shapes.items():
            np.lib.format.open_memmap(paths[name], "w+", np.float32, (N, *shape))
    progress(done, N)  # a run that continues begins where the last one ended
    starts = {name: np.load(file, mmap_mode="r").offset for name, file in paths.items()}
    places = [(batch, k) for batch, count in zip(batches, counts, strict=True) for k in range(count)]
    for number, (batch, k) in list(enumerate(places))[done:]:
        for name, G in gradient(chosen, others, jax.tree.map(lambda x, k=k: x[k : k + 1], batch)).items():
            numbers = np.asarray(G, np.float32)
            with paths[name].open("r+b") as file:  # a full disk raises OSError here; in a mapped file it kills the process
                file.seek(starts[name] + number * numbers.nbytes)
                file.write(numbers.tobytes())
        write_atomically(path, json.dumps(about | {"done": number + 1}))
        progress(number + 1, N)
    write_atomically(path, json.dumps(about))
