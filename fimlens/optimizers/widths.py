"""Learning rates across widths: what a rate that was tuned at one width is multiplied by at another."""

from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree

from fimlens._validate import path_name
from fimlens.optimizers.full_chain import Number, Transform
from fimlens.transforms.as_matrix import LeafView
from fimlens.transforms.axes import Axes
from fimlens.transforms.leaf_rules import Rule
from fimlens.transforms.momentum import compute_in_float32
from fimlens.transforms.orthogonalize import SCALES, require_scale
from fimlens.transforms.routing import leaf_views


def _by_entry(m: int, n: int, rows: int, columns: int) -> float:
    """Entries of one size whatever the shape: on a gradient of rank one their spectral norm is sqrt(m n)."""
    return 1 / m


def _by_spectrum(m: int, n: int, rows: int, columns: int) -> float:
    """Each block has a spectral norm of one, and blocks side by side have the root of their number."""
    return (n / m / (rows * columns)) ** 0.5


RULES = dict.fromkeys(("adam", "adamw", "racs", "sinkgd"), _by_entry) | dict.fromkeys(
    ("soap", "shampoo", "kl_shampoo", "kl_soap", "muon", "normuon", "soap_muon", "alice_muon"), _by_spectrum
)


SCALED = ("muon", "normuon", "soap_muon", "alice_muon")  # those whose argument `scale` gives each block a factor already


def width_multipliers(
    optimizer: str,
    shapes: PyTree,
    base_shapes: PyTree,
    *,
    scale: str = "width",
    weight_decay: Number = 0.0,
    route: Rule | str | PyTree | None = None,
    head: bool = False,
    axes: Axes | Rule | PyTree | None = None,
) -> Transform:
    """Scale each leaf's update so that a rate tuned on a narrow model suits a wide one. Use it to tune rates where it is cheap.

    The multiplier of a d_in x d_out matrix is a factor at its own shape over that at the base shape:

    - `adam`, `adamw`, and `racs` and `sinkgd`, whose entries are of one size too: 1 / d_in;
    - `soap`, `shampoo`, `kl_shampoo` and `kl_soap`: sqrt(d_out / d_in / blocks), with `fl.Axes(rows=..., columns=...)` blocks;
    - `muon`, `normuon`, `soap_muon` and `alice_muon`: the same over what their `scale` gives each block, such as
      sqrt(max(1, d_out / d_in)).

    Matrices that the optimizer leaves to Adam have Adam's factor. Embeddings, vectors and leaves whose axes are unknown keep
    their rate. So updates change the outputs of layers alike at every width (Yang et al., 2022), provided that initial weights
    have a standard deviation of 1 / sqrt(d_in).

    It stands after an optimizer, as in the example. There it scales the optimizer's weight decay too, which is right for Adam:
    a decay times its rate falls as 1 / d_in. For others let this link add the decay, and put it between a direction and its
    rate: optax.chain(fl.matrices(fl.scale_by_muon()), fl.width_multipliers(..., weight_decay=0.1),
    optax.scale_by_learning_rate(0.02)).

    Args:
        optimizer: name of the optimizer, one of those above.
        shapes: the parameters, as arrays or jax.ShapeDtypeStructs.
        base_shapes: the same of the model at which the rate was tuned.
        scale: as in `muon` and its relatives: "width", "fisher" or "rms". Default: "width", as theirs; `alice_muon`
            has "rms".
        weight_decay: number times the weights that is added to the update of each leaf; for a matrix also times the base d_in
            over its own. Default: 0.
        route: as in the optimizer. Default: None, the rule of `fl.matrices`.
        head: whether the output head goes to the method, as in the optimizer. Default: False.
        axes: as in the optimizer. Default: None, by the evidence that `fl.as_matrix` describes.

    Raises:
        TypeError: a shape is given as a tuple, or the decay is no number.
        ValueError: there is no rule for the optimizer, or no such scale; or the two models have other leaves, or an update has
            a leaf that `shapes` does not have.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> base, wide = ({"up": jnp.ones((d, 4 * d)), "head": jnp.ones((d, 50))} for d in (8, 32))
        >>> tx = optax.chain(fl.adamw(1e-3), fl.width_multipliers("adamw", wide, base))
        >>> scale = fl.width_multipliers("muon", wide, base)
        >>> updates, _ = scale.update(wide, scale.init(wide))
        >>> float(updates["up"][0, 0]), float(updates["head"][0, 0])  # the head is Adam's
        (1.0, 0.25)
    """
    if optimizer not in RULES:
        raise ValueError(f"width_multipliers: there is no rule for {optimizer!r}. There are {', '.join(RULES)}.")
    require_scale("width_multipliers", scale)
    if callable(weight_decay) or isinstance(weight_decay, str):
        raise TypeError(f"width_multipliers: weight_decay is a number or an array; got {weight_decay!r}.")
    for leaf in jax.tree.leaves((shapes, base_shapes)):
        if not hasattr(leaf, "shape"):
            kind = type(leaf).__name__
            raise TypeError(
                f"width_multipliers: shapes are arrays or those of jax.eval_shape, in the tree of parameters; got {kind}."
            )
    here, base = (_matrices(tree, route, head, axes) for tree in (shapes, base_shapes))
    if here.keys() != base.keys():
        raise ValueError(f"width_multipliers: only one of the two models has {', '.join(sorted(here.keys() ^ base.keys()))}.")

    def rate(is_method: bool, m: int, n: int, rows: int, columns: int) -> float:
        rule = RULES[optimizer] if is_method else _by_entry
        taken = SCALES[scale](m / rows, n / columns) if is_method and optimizer in SCALED else 1.0
        return rule(m, n, rows, columns) / taken

    rates, decays = {path_name(path): 1.0 for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}, {}
    for path, (is_method, sides) in here.items():
        base_sides = base[path][1]
        rates[path] = rate(is_method, *sides) / rate(is_method, *base_sides)
        decays[path] = weight_decay * _by_entry(*sides) / _by_entry(*base_sides)

    def scaled(key: Any, u: Array, *weights: Array) -> Array:
        path = path_name(key)
        if path not in rates:
            raise ValueError(f"width_multipliers: shapes have no leaf {path}. Pass those of all parameters.")
        return rates[path] * u + sum(decays.get(path, weight_decay) * W for W in weights)

    def update(updates: PyTree, params: PyTree) -> PyTree:
        if isinstance(weight_decay, float | int) and weight_decay == 0:
            return jax.tree_util.tree_map_with_path(scaled, updates)
        if params is None:
            raise ValueError("width_multipliers: a decay needs the parameters. Call tx.update(gradients, state, params).")
        return jax.tree_util.tree_map_with_path(scaled, updates, params)

    return compute_in_float32(optax.stateless(update))


def _matrices(tree: PyTree, route: Any, head: bool, axes: Any) -> dict[str, tuple[bool, tuple[int, int, int, int]]]:
    """Whether the method has a matrix, and its d_in, d_out and blocks along them, by path; the head is among the matrices."""
    own = leaf_views("width_multipliers", route, head, axes)(tree)
    all_views = leaf_views("width_multipliers", None, True, axes, "Until then they keep their rate.")(tree, warn=True)

    def sides(view: LeafView) -> tuple[int, int, int, int]:
        (*_, m, n), (rows, columns) = view.matrix, view.grid
        return m * rows, n * columns, rows, columns

    views = {path: (own[path] is not None, own[path] or view) for path, view in all_views.items()}
    return {
        path: (is_own, sides(view))
        for path, (is_own, view) in views.items()
        if view and len(view.matrix) >= 2 and 0 not in view.matrix
    }
