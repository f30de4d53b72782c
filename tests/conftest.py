"""Fixtures shared by the tests. Nothing here reaches a network."""

from __future__ import annotations

import os

from paths import SHARED

# Read when huggingface_hub and torch are imported, here and in processes that tests start, so before anything else.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from collections.abc import Callable
from functools import cache
from pathlib import Path

import docstring_parser
import lightning.pytorch  # noqa: F401 (first: typing caches unions whatever their order, and reads 1 as 1.0 after float | int)
import models_table
import pytest
from commands import QUIET, noise_options, write_annotations
from families import Family
from tiny_vlm import build_tiny_qwen

from lad_pl import PromptSpec, VisionLanguageModel, VLMSpec
from lad_pl.cli import main

LONGEST = (
    *("test_launchers", "test_main", "test_distributed", "test_families", "test_train", "test_benchmarks"),
    *("test_resume", "test_configs", "test_oom_split", "test_photo_options", "test_report", "test_wheel"),
)
"""Files of tests that take more than 15 seconds, those with processes of their own apart from one another."""
MEASURED = pytest.StashKey[dict[str, dict[str, float]]]()
# Every command reads the docstrings of all of its options' classes anew, which is half of its time; they stay the same.
docstring_parser.parse_from_object = cache(docstring_parser.parse_from_object)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-models-table", action="store_true", help="write what was measured into docs/models.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker of pytest-xdist has one left when the others are done."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == 0 and session.config.getoption("--write-models-table"):
        models_table.write(session.config.stash.get(MEASURED, {}))


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    folder = SHARED / "golden" / "agd_reference"
    if not folder.is_dir():
        pytest.skip("the published code's golden results (../shared/golden) are not here")
    return folder


@pytest.fixture(scope="session")
def photos_folder() -> Path:
    folder = SHARED / "photos"
    if not folder.is_dir():
        pytest.skip("the photographs (../shared/photos) are not here")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2.5-VL checkpoint of 6 layers."""
    return build_tiny_qwen(tmp_path_factory.mktemp("models") / "tiny-qwen", seed=1)


@pytest.fixture(scope="session")
def tiny_vlm(tiny_folder: Path) -> VisionLanguageModel:
    return VisionLanguageModel.load(VLMSpec(str(tiny_folder), dtype="float32"))


@pytest.fixture(scope="session")
def fitted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples of three noise images in `data`, and the tiny model calibrated on two of them in `run`; copy it."""
    folder = tmp_path_factory.mktemp("fitted")
    write_annotations(folder / "data", 8)
    assert main(["fit", *noise_options(tiny_folder, folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def demo_calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibration of the demo model that `fit` makes without options."""
    folder = tmp_path_factory.mktemp("demo")
    assert main(["fit", f"--trainer.default_root_dir={folder}", *QUIET]) == 0
    return folder / "calibration.ckpt"


@pytest.fixture(scope="session")
def small_prompt() -> PromptSpec:
    """Images as they are: of different size."""
    return PromptSpec(image_size=None)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[..., float]:
    """Keeps the largest error of every check of every family, for the table of models."""
    record = request.config.stash.setdefault(MEASURED, {})

    def keep(family: Family, check: str, error: float) -> float:
        errors = record.setdefault(family.name, {})
        errors[check] = max(error, errors.get(check, 0.0))
        return error

    return keep
