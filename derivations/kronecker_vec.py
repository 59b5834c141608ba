r"""A Kronecker product acts on stacked columns as a product from both sides.

Theorem. For all $A$ (n x n), $B$ (m x m) and $C$ (m x n),
$$(A \otimes B)\, \mathrm{vec}(C) = \mathrm{vec}(B C A^T) .$$

Proof. Entry $(i, j)$ of both sides is $\sum_{kl} B_{ik} C_{kl} A_{jl}$.
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
    yield equal("unvec is the inverse of vec", symbolic(lambda C: unvec(vec(C), C.shape))(C), C)
