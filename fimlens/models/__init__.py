"""Fishers of models: per-example gradients of any JAX loss, for each matrix among the parameters."""
