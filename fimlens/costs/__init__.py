"""What an optimizer costs: memory, FLOPs, hours and money."""
