"""Samples, permutations and images, served by LightningDataModules."""

from lad_pl.data.annotations import read_annotations
from lad_pl.data.datamodule import MultiImageData
from lad_pl.data.demo import DemoData
from lad_pl.data.photos import PhotoData

__all__ = ["DemoData", "MultiImageData", "PhotoData", "read_annotations"]
