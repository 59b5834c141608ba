r"""Theorems about the structures, one a file; `fimlens prove` decides their steps on the functions that ship.

A file has three parts. Its docstring states the theorem and argues for every matrix size. `SIZES` lists the sizes (m, n) at
which SymPy decides it for all entries. The generator `steps(m, n)` yields a step for each claim of the argument.

All files use one notation. $G$ is a random m x n matrix, the gradient, with columns $g_j$ and stacked columns
$g = \mathrm{vec}(G)$. $F = E[g g^T]$ is the Fisher, mn x mn, and $\tilde F$ its approximation. $\Vert \cdot \Vert$ is the
Frobenius norm, and the error of $\tilde F$ is $\Vert \tilde F - F \Vert^2$. Given bases, $V$ (m x n) has the second moments of
the rotated gradient, and $L$ (m x n) the eigenvalues of $\tilde F$, both in the layout of the matrix. The update is
$\mathrm{Mat}(\tilde F^{-1/2} g)$, m x n: square-root natural gradient descent. $A \otimes B$ is the Kronecker product. [G] is
Gong et al. (2025), arXiv 2502.07752.
"""
