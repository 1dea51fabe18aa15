"""The ops inside trainers that people already run: one module a host, each an adapter without numerics of its own.

A host is imported by its own module alone (`import fgrl.integrations.trl`), which first checks the host's version.
"""
