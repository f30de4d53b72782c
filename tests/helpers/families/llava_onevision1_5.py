"""LLaVA-OneVision-1.5: the class that lad_pl brings, in the layout of the published files."""

from __future__ import annotations

from tiny_llava_onevision1_5 import build_tiny_llava_onevision1_5

from .common import Family

FAMILY = Family(
    "llavaonevision1_5",
    "lmms-lab/LLaVA-OneVision-1.5-4B-Instruct, lmms-lab/LLaVA-OneVision-1.5-8B-Instruct",
    build_tiny_llava_onevision1_5,
    opens="<|vision_start|>",
    closes="<|vision_end|>",
    differs="the model class comes with lad_pl",
)
