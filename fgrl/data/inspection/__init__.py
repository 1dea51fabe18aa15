"""What a careful person looks at before training on edits, in one pass at constant memory."""

from fgrl.data.inspection.findings import Finding, findings
from fgrl.data.inspection.run import inspect_edits
from fgrl.data.inspection.summary import Summary

__all__ = ["Finding", "Summary", "findings", "inspect_edits"]
