"""A small language model in plain JAX, and text to train it on."""
