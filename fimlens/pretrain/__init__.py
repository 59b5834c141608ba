"""Pre-training of language models: what a training reads, the model, the loop, its checkpoints (pip install fimlens[train])."""
