"""Evaluate JAX functions on SymPy expressions, and decide whether a result is zero."""
