"""A mixture: each matrix has the optimizer of the structure that was chosen for it, as `fl.recommend` chooses them."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from fimlens._validate import names_like, path_name
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.solver.sizes import state_size
from fimlens.structure import Structure, require_structure
from fimlens.structures import Diagonal, RowColumn
from fimlens.structures.named import read_structure
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.state import state_layout
from fimlens.transforms.structure_transform import scale_by_structure

Choices = Mapping[str, Structure | str] | Path | str


def scale_by_recommended(
    choices: Choices,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """A structure for each matrix, as `fl.recommend` chooses them. Use it where memory pays in some matrices alone.

    H is the chosen structure's. A matrix that no pattern names has Adam's diagonal. State: m n for the momentum, and what
    `fl.state_size` counts, with average="fits" where the structure has no bases. One rate serves all: F~^{-1/2} G has a root
    mean square of about 1 whenever F~ is near the Fisher of G. It is smaller for a structure that drops a part of G. Without
    bases, the fits of single gradients are averaged. `fl.RowColumn` then takes the five sweeps and the cap of `fl.racs`.

    Args:
        choices: by pattern, such as "layers/*/attention/query", a structure, or a text that names or writes one: "soap",
            "LowRank(Diagonal(), 32)". The first pattern that suits a path counts; "." stands for "/" too, as in names of
            files. Or the path of the file that `fimlens recommend` wrote.
        b1: decay of the momentum. Default: 0.9, as in Adam.
        b2: decay of the averages. Default: 0.999, as in Adam.
        eps: number added to the root of each eigenvalue. Default: 1e-8, as in Adam.
        update_interval: steps between refreshes of the bases, the first at the first step. Default: 10.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        OSError: the file cannot be read.
        TypeError: the choices are neither a mapping nor a path, a choice is neither a structure nor a text, or (at init) a
            parameter is not of real floating point.
        ValueError: a text is no structure, the file holds no choices, an option is out of its range, or (at init) a
            structure does not suit a matrix.

    Warns:
        UserWarning: (at init) no matrix has a name like a pattern.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_recommended({"*/query": fl.Rotated(fl.Diagonal(), "LR"), "*/value": "rows"})
        >>> state = tx.init({"layer": {"query": jnp.ones((3, 4)), "value": jnp.ones((3, 4)), "key": jnp.ones((3, 4))}})
        >>> list(state.inner_states)
        ['Diagonal()', 'Rotated(Diagonal())', 'Rows()']
    """
    chosen = {pattern: _structure(choice) for pattern, choice in _given(choices).items()}
    options = {"b1": b1, "b2": b2, "eps": eps, "update_interval": update_interval, "dtypes": dtypes}
    structures = {str(structure): structure for structure in (Diagonal(), *chosen.values())}
    directions = {name: _direction(structure, options) for name, structure in sorted(structures.items())}

    def labels(tree: PyTree) -> PyTree:
        paths, own = _paths(tree), dict[str, str]()
        for pattern, structure in chosen.items():
            own = dict.fromkeys(names_like(paths, pattern), str(structure)) | own  # the first pattern counts
        return jax.tree_util.tree_map_with_path(lambda key, _: own.get(path_name(key), str(Diagonal())), tree)

    # Labels are made by a function: a tree of them may be a module of Equinox, which partition would call.
    tx = optax.partition(directions, labels)

    def init(params: PyTree) -> Any:
        paths = _paths(params)
        unused = [pattern for pattern in chosen if paths and not names_like(paths, pattern)]
        if unused:
            warnings.warn(
                f"recommended: no matrix is named like {', '.join(unused)}. There are {', '.join(paths)}; those without a "
                "choice have Adam's diagonal.",
                stacklevel=2,
            )
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


def _paths(tree: PyTree) -> list[str]:
    return [path_name(key) for key, _ in jax.tree_util.tree_leaves_with_path(tree)]


def kept_size(structure: Structure, shape: tuple[int, int]) -> int:
    """Count the numbers that the mixture keeps for a matrix beside its momentum: what every table of the lens calls kept."""
    return state_size(structure, shape, average=_averaged_of(structure))


def _averaged_of(structure: Structure) -> str:
    """Return what the mixture averages: "statistics", or "fits" where there are no bases, which may take less memory."""
    return "statistics" if state_layout(structure, "statistics").stacked else "fits"


def read_texts(path: Path) -> dict[str, str]:
    """Return the structures by pattern, as texts, which a file of `fimlens recommend` holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no choices.
    """
    try:
        return dict(json.loads(path.read_text())["choices"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"recommended: {path} holds no choices. Let `fimlens recommend` write it.") from error


def _given(choices: Any) -> Mapping[str, Any]:
    if isinstance(choices, Mapping):
        return choices
    if not isinstance(choices, Path | str):
        kind = type(choices).__name__
        raise TypeError(f"recommended: expected structures by pattern, such as the `choices` of fl.recommend; got a {kind}.")
    return read_texts(Path(choices))


def _structure(choice: Any) -> Structure:
    if isinstance(choice, str):
        return read_structure("recommended", choice)
    require_structure("recommended", choice)
    return choice


def _direction(structure: Structure, options: dict[str, Any]) -> Transform:
    average = _averaged_of(structure)
    # The exact product for one gradient may be zero almost everywhere.
    if isinstance(structure, RowColumn) and structure.sweeps is None:
        structure = RowColumn(5, 30.0, structure.divergence)
    return scale_by_structure(structure, average=average, **options)


recommended = full_chain(scale_by_recommended)
