"""The lens: structures compared on one Fisher, and the laws that each must keep."""
