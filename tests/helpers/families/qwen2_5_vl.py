"""Qwen2.5-VL: one run of merged patches per image, 3-D positions."""

from __future__ import annotations

from tiny_vlm import build_tiny_qwen

from .common import Family

FAMILY = Family(
    "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-3B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct",
    build_tiny_qwen,
    opens="<|vision_start|>",
    closes="<|vision_end|>",
    differs="3-D positions",
)
