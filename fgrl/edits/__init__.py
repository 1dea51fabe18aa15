"""Collecting edits: an editor is asked for the smallest change that makes a response good, and held to it."""

from fgrl.edits.asking import Answer, Budget, BudgetSpent, EditorUnavailable
from fgrl.edits.checks import Rejected, check_edit
from fgrl.edits.collect import CollectReport, CollectSettings, collect_edits
from fgrl.edits.minimise import minimise

__all__ = [
    "Answer",
    "Budget",
    "BudgetSpent",
    "CollectReport",
    "CollectSettings",
    "EditorUnavailable",
    "Rejected",
    "check_edit",
    "collect_edits",
    "minimise",
]
