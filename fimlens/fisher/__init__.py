"""The Fisher: the matrix that structures approximate, and how to compute it from a model."""
