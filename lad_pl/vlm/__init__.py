"""Vision-language models: loading, prompts in, evidence out."""

from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.families.llava_onevision1_5 import register
from lad_pl.vlm.loading import VLMSpec
from lad_pl.vlm.model import VisionLanguageModel

register()  # transformers' Auto classes then know LLaVA-OneVision-1.5

__all__ = ["PromptEncoder", "VLMSpec", "VisionLanguageModel"]
