"""What a step takes, as a ratio to one of plain gradient descent, which is alike for all: timed in turns in one process."""

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fimlens.pretrain.data import Batches, Corpus
from fimlens.pretrain.mesh import mesh_of
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import batch_of, descent_of, first, shardings_of, step_of, timed

LEAST = 20  # steps that are timed


class Speed(NamedTuple):
    """Seconds of a step, and of one of plain gradient descent; bytes of weights and of the optimizer's state."""

    step: float
    descent: float
    weights: int
    state: int

    @property
    def ratio(self) -> float:
        """Of the step to plain descent."""
        return self.step / self.descent

    @property
    def share(self) -> float:
        """The optimizer's, of a step."""
        return 1 - 1 / self.ratio


def speed(plan: Plan, corpus: Corpus) -> Speed:
    """Of a plan's steps on the devices there are, whole refresh intervals of them: means, so that refreshes are shared out."""
    tx, batches, mesh = plan.transform(), Batches(corpus.train, batch=plan.batch, length=plan.length, seed=plan.seed), mesh_of()
    tokens = [batch_of(plan, batches, mesh, k) for k in range(2)]
    shardings = shardings_of(jax.eval_shape(lambda: first(plan, tx)), tx, mesh)
    period = plan.update_interval
    own, alone = [], []
    with jax.set_mesh(mesh):
        training = jax.jit(lambda: first(plan, tx), out_shardings=shardings)()
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (training.weights, training.optimizer)]
        step = jax.jit(step_of(plan, tx), donate_argnums=0, out_shardings=(shardings, None))
        descend = jax.jit(descent_of(plan), donate_argnums=0)
        weights = descend(jax.tree.map(jnp.copy, training.weights), tokens[0])
        training, _ = step(training, tokens[0])  # compiled, and bases begun
        for k in range(-(-LEAST // period) * period):
            taken, weights = timed(descend, weights, tokens[k % 2])
            alone.append(taken)
            taken, (training, _) = timed(step, training, tokens[k % 2])
            own.append(taken)
    return Speed(statistics.mean(own), statistics.mean(alone), *sizes)
