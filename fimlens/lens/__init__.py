"""The lens: structures compared on one Fisher, and the laws that every structure must satisfy."""
