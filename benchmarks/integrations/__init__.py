"""Adapters measured inside their hosts, each in the host's own environment."""
