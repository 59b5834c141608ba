"""JAX functions evaluated on SymPy expressions."""
