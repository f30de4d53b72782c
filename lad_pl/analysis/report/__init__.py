"""Results for people."""

from lad_pl.analysis.photo_ranking import rank_photos, ranking_table, write_contact_sheet
from lad_pl.analysis.terminal_table import metrics_table, recall_table

__all__ = ["metrics_table", "rank_photos", "ranking_table", "recall_table", "write_contact_sheet"]
