"""One file an op: its entry in the registry."""
