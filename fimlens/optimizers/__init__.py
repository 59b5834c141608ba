"""The named optimizers, one family a file."""
