"""Vision-language models: loading, prompt encoding, and forward passes that return evidence.

Importing this package registers LLaVA-OneVision-1.5 with transformers' Auto classes.
"""

from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.families.llava_onevision1_5 import register
from lad_pl.vlm.loading import VLMSpec
from lad_pl.vlm.model import VisionLanguageModel

register()

__all__ = ["PromptEncoder", "VLMSpec", "VisionLanguageModel"]
