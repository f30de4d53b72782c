"""Results for people."""

from lad_pl.report.table import metrics_table, recall_table

__all__ = ["metrics_table", "recall_table"]
