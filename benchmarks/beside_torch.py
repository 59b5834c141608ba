"""Time of a step of SOAP beside that of its PyTorch port, on the same matrices and cores.

    pip install torch pytorch_optimizer
    python benchmarks/beside_torch.py [--layers 2] [--steps 20]

pytorch_optimizer's SOAP follows the official PyTorch code. Both refresh every ten steps. Two steps come before the clock
starts: they compile the step and start the bases. The two optimizers run one after the other, so that neither takes cores from
the other.
"""

import argparse
import time

import jax
import numpy as np
import torch
from pytorch_optimizer import SOAP
from step_cost import Stepper, matrices

import fimlens as fl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    params = matrices(options.layers)

    ours = Stepper(fl.soap(1e-3), params)
    ours(), ours()
    seconds = sum(ours() for _ in range(options.steps)) / options.steps
    print(f"fimlens: {1e3 * seconds:.0f} ms per step, compiled in {ours.compile_seconds:.1f} s")

    # PyTorch gets the same matrices, and a constant gradient, as `Stepper` does.
    weights = [torch.nn.Parameter(torch.tensor(np.asarray(W))) for W in jax.tree.leaves(params)]
    theirs = SOAP(weights, lr=1e-3, precondition_frequency=10)
    for W in weights:
        W.grad = 0.01 * W.detach()
    theirs.step(), theirs.step()
    start = time.perf_counter()
    for _ in range(options.steps):
        theirs.step()
    print(f"pytorch_optimizer: {1e3 * (time.perf_counter() - start) / options.steps:.0f} ms per step")


if __name__ == "__main__":
    main()
