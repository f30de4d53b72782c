"""Vision-language models: loading, prompts in, evidence out."""

from lad_pl.vlm.adapter import VisionLanguageModel
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.llava_onevision1_5 import register
from lad_pl.vlm.spec import VLMSpec

register()  # transformers' Auto classes then know LLaVA-OneVision-1.5

__all__ = ["PromptEncoder", "VLMSpec", "VisionLanguageModel"]
