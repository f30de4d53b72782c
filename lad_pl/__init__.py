"""Measure and remove position bias of multi-image vision-language models, on PyTorch Lightning.

Names are imported when they are first used: ``import lad_pl`` by itself loads neither torch nor Lightning.
"""

TYPE_CHECKING = False  # nothing is imported before Ctrl-C is taken care of (__main__)
if TYPE_CHECKING:
    from typing import Any

    from lad_pl.data import DemoData, MultiImageData
    from lad_pl.errors import UserError
    from lad_pl.generate.logits_processor import debiasing
    from lad_pl.module import AttentionGuidedDebiasing
    from lad_pl.prompts.template import PromptSpec
    from lad_pl.readouts import READOUTS, ReadoutSettings
    from lad_pl.vlm import VisionLanguageModel, VLMSpec

_MODULES = {
    "READOUTS": "lad_pl.readouts",
    "AttentionGuidedDebiasing": "lad_pl.module",
    "DemoData": "lad_pl.data",
    "MultiImageData": "lad_pl.data",
    "PromptSpec": "lad_pl.prompts.template",
    "ReadoutSettings": "lad_pl.readouts",
    "UserError": "lad_pl.errors",
    "VLMSpec": "lad_pl.vlm",
    "VisionLanguageModel": "lad_pl.vlm",
    "debiasing": "lad_pl.generate.logits_processor",
}
_SUBMODULES = (
    *("calibrate", "data", "errors", "evidence", "generate", "methods", "metrics"),
    *("module", "prompts", "readouts", "run", "types", "vlm"),
)

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


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name in _SUBMODULES:  # `import lad_pl` is enough for `lad_pl.readouts.agd`
        return import_module(f"lad_pl.{name}")
    raise AttributeError(f"module 'lad_pl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
