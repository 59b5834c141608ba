"""Optax transforms without a learning rate: directions, and the links of a chain around them."""
