"""The matrix that structures approximate, and how a model gives one."""
