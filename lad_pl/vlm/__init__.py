"""Vision-language models: loading, prompts in, evidence out."""

from lad_pl.vlm.adapter import VisionLanguageModel
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.spec import VLMSpec

__all__ = ["PromptEncoder", "VLMSpec", "VisionLanguageModel"]
