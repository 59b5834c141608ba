"""What a step takes: its gradient, which is alike for all optimizers, and what follows it, each timed alone.

Their difference is never taken: of a small model's step an optimizer is a hundredth, and two compilations of one gradient
differ by more.
"""

import statistics
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from fimlens.pretrain.data import Batches, Corpus
from fimlens.pretrain.mesh import mesh_of
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import batch_of, first, gradient_of, move_of, shardings_of, timed

LEAST = 20  # of each that are timed


class Speed(NamedTuple):
    """Seconds of a step's gradient, and of the rest: the update, applied if all is finite; bytes of weights and of state."""

    gradient: float
    optimizer: float
    weights: int
    state: int

    @property
    def share(self) -> float:
        """What follows the gradient, as a part of a step."""
        return self.optimizer / (self.gradient + self.optimizer)


def speed(plan: Plan, corpus: Corpus, mesh: Mesh | None = None) -> Speed:
    """Of a plan's steps on a mesh, by default all devices.

    Twenty of each in turns, and then as many updates as whole refresh intervals take. The gradient's is a median; the
    optimizer's a mean, in which refreshes are shared out.
    """
    tx, batches = plan.transform(), Batches(corpus.train, batch=plan.batch, length=plan.length, seed=plan.seed)
    mesh = mesh_of() if mesh is None else mesh
    tokens = [batch_of(plan, batches, mesh, k) for k in range(2)]
    shardings = shardings_of(jax.eval_shape(lambda: first(plan, tx)), tx, mesh)
    gradients_taken, optimizer_taken = [], []
    with jax.set_mesh(mesh):
        training = jax.jit(lambda: first(plan, tx), out_shardings=shardings)()
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (training.weights, training.optimizer)]
        gradient = jax.jit(gradient_of(plan), out_shardings=(None, shardings.weights))
        move = jax.jit(move_of(tx), donate_argnums=0, out_shardings=(shardings, None))
        seen = gradient(training.weights, tokens[0])
        training, _ = jax.block_until_ready(move(training, *seen))  # compiled, and bases begun
        for k in range(-(-LEAST // plan.update_interval) * plan.update_interval):
            if k < LEAST:
                taken, seen = timed(gradient, training.weights, tokens[k % 2])
                gradients_taken.append(taken)
            taken, (training, _) = timed(move, training, *seen)
            optimizer_taken.append(taken)
    return Speed(statistics.median(gradients_taken), statistics.mean(optimizer_taken), *sizes)
