"""The Fisher: the matrix that structures approximate, from gradients or written out."""
