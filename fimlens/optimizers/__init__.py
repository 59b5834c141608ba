"""The named optimizers, one family for each file.

A bare name is the full optimizer, learning rate first, as in Optax; `scale_by_*` is its direction alone, without a rate or a
sign. Docstrings count the state in elements for an m x n matrix with r = min(m, n), without counters, random keys and the one
number for each matrix that a limiter keeps. "[G]" is Gong et al. 2025 (arXiv 2502.07752), "[D]" Nguyen et al. 2025
(arXiv 2502.07488).
"""
