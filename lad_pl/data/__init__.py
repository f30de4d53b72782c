"""Samples, permutations and images, served by LightningDataModules; each name is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lad_pl.data.annotations import read_annotations
    from lad_pl.data.datamodule import MultiImageData
    from lad_pl.data.demo import DemoData
    from lad_pl.data.photos import PhotoData

_MODULES = {
    "DemoData": "demo",
    "MultiImageData": "datamodule",
    "PhotoData": "photos",
    "read_annotations": "annotations",
}

__all__ = ["DemoData", "MultiImageData", "PhotoData", "read_annotations"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"lad_pl.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lad_pl.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
