"""The evidence of forward passes: records in memory, and the store on disk."""

from lad_pl.evidence.store import EvidenceStore, read_prompts, read_settings, stream_prompts
from lad_pl.evidence.table import EvidenceRecords

__all__ = ["EvidenceRecords", "EvidenceStore", "read_prompts", "read_settings", "stream_prompts"]
