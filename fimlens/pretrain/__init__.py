"""Pre-training of language models: data, model, mesh, loop and checkpoints (pip install 'fimlens[train]')."""
