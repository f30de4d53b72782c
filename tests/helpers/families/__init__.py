"""A tiny checkpoint of every supported family: the list that the tests run through."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .common import Family

_NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "common"))

FAMILIES: tuple[Family, ...] = tuple(import_module(f"{__name__}.{name}").FAMILY for name in _NAMES)

# By model_type: why not. Each has been tried.
UNSUPPORTED = {
    "idefics2": "its processor does not say which tokens it writes for which image, and neighbouring images share a "
    "delimiter",
    "mllama": "images enter through cross-attention layers; no token of the prompt belongs to an image",
    "phi4_multimodal": "transformers has it as a causal language model that takes pixels only, not as an "
    "image-text-to-text model that takes image features",
}

__all__ = ["FAMILIES", "UNSUPPORTED", "Family"]
