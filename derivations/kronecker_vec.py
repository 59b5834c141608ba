r"""Kronecker products act on stacked columns as matrix products from both sides.

$$(A \otimes B)\, \mathrm{Vec}(C) = \mathrm{Vec}(B C A^T)$$
for any A (n x n), B (m x m) and C (m x n): entry $(i, j)$ of both sides is $\sum_{kl} B_{ik} C_{kl} A_{jl}$.
"""

import jax.numpy as jnp

from fimlens.fisher.fisher import unvec, vec
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.symbols import symbols
from fimlens.proofs.theorem import equal

SIZES = ((2, 2), (2, 3), (3, 2))


def steps(m, n):
    A, B, C = symbols("A", n, n), symbols("B", m, m), symbols("C", m, n)
    product = symbolic(lambda A, B, C: jnp.kron(A, B) @ vec(C))(A, B, C)
    yield equal("(A (x) B) vec(C) = vec(B C A^T)", product, symbolic(vec)(B @ C @ A.T))
    yield equal("unvec undoes vec", symbolic(lambda C: unvec(vec(C), C.shape))(C), C)
