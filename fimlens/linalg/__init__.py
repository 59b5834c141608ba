"""Bases, decompositions, and functions of eigenvalues: linear algebra that knows nothing of structures."""
