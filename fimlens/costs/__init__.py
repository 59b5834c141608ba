"""What an optimizer costs: memory, FLOPs, hours and money, from the shapes of a model alone."""
