"""Edits that were made elsewhere: annotation tools, corpora of corrections, post-edits and preference pairs.

Each format is a reader whose records become one row an annotator; `import_edits` writes the rows as JSON lines that
`fgrl.data.read_pairs` reads, and `export_tasks` writes what an annotation tool loads.
"""

from fgrl.data.formats.exporting import EXPORT_FORMATS, ExportReport, export_tasks
from fgrl.data.formats.importing import FORMATS, ImportReport, import_edits

__all__ = ["EXPORT_FORMATS", "FORMATS", "ExportReport", "ImportReport", "export_tasks", "import_edits"]
