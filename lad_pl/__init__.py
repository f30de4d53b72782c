"""Measure and remove position bias of multi-image vision-language models, on PyTorch Lightning."""

from lad_pl.data import DemoData, MultiImageData
from lad_pl.errors import UserError
from lad_pl.generate.logits_processor import debiasing
from lad_pl.module import AttentionGuidedDebiasing
from lad_pl.prompts.template import PromptSpec
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.vlm import VisionLanguageModel, VLMSpec

__all__ = [
    "READOUTS",
    "AttentionGuidedDebiasing",
    "DemoData",
    "MultiImageData",
    "PromptSpec",
    "ReadoutSettings",
    "UserError",
    "VLMSpec",
    "VisionLanguageModel",
    "debiasing",
]
