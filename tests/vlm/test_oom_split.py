"""Results do not depend on how prompts are batched: by number, by tokens, or in halves where memory runs out."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import QUIET, fails
from tiny_vlm import write_noise_images

from lad_pl import VisionLanguageModel
from lad_pl.cli import main
from lad_pl.vlm.oom_split import OomSplitter


@pytest.fixture(scope="module")
def options(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Nine samples of three images of many sizes, with captions of many lengths."""
    folder = tmp_path_factory.mktemp("data")
    names = [path.name for path in write_noise_images(folder, 12, sizes=((60, 90), (90, 60), (200, 120), (120, 200)))]
    samples = [
        {"id": i, "image_ids": names[i : i + 3], "index": i % 3, "caption": "noise " * (1 + 5 * (i % 4))}
        for i in range(9)
    ]
    (folder / "annotations.json").write_text(json.dumps(samples))
    return [
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=null",
        "--model.layers=2-5",
        "--model.methods=[contextual_calibration,permutation_average]",
        f"--data.annotations={folder / 'annotations.json'}",
        "--data.num_calibration=2",
        "--data.num_permutations=3",
        *QUIET,
    ]


def results(folder: Path, *options: str) -> tuple[np.ndarray, dict]:
    where = f"--trainer.default_root_dir={folder}"
    for command in ("fit", "test"):
        assert main([command, *options, where]) == 0
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return np.array([line["log_probs"] for line in lines]), json.loads((folder / "metrics.json").read_text())[
        "readouts"
    ]


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, dict]:
    """One sample at a time."""
    return results(tmp_path_factory.mktemp("runs") / "alone", *options)


@pytest.mark.parametrize("size", [["--data.batch_size=4"], ["--data.batch_size=auto", "--data.batch_tokens=900"]])
def test_results_do_not_depend_on_the_batch_size(options, alone, tmp_path, size: list[str]) -> None:
    log_probs, metrics = results(tmp_path, *options, *size)
    np.testing.assert_allclose(log_probs, alone[0], atol=1e-4)
    assert metrics == alone[1]


def test_a_batch_that_does_not_fit_is_halved(options, alone, tmp_path, monkeypatch) -> None:
    sound, tried = VisionLanguageModel._read, []

    def read(self, inputs, cache, batch, layers):
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return sound(self, inputs, cache, batch, layers)

    monkeypatch.setattr(VisionLanguageModel, "_read", read)
    with pytest.warns(UserWarning, match="Out of memory with 3 prompts at a time; going on with 2"):
        log_probs, metrics = results(tmp_path, *options)
    np.testing.assert_allclose(log_probs, alone[0], atol=1e-4)
    assert metrics == alone[1]
    # Nine samples in fit and in three methods, of which one takes nine prompts each: what fits is remembered.
    assert sum(size > 2 for size in tried) < 15


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: tried 9 bytes",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_not_even_one_prompt_fits(options, tmp_path, monkeypatch, capsys, message: str) -> None:
    def read(self, *arguments):
        raise RuntimeError(message)

    monkeypatch.setattr(VisionLanguageModel, "_read", read)
    line = fails(capsys, "fit", *options, f"--trainer.default_root_dir={tmp_path}")
    assert "Not even one prompt fits into memory" in line


def test_images_that_do_not_fit_are_seen_by_fewer_samples(options, alone, tmp_path, monkeypatch) -> None:
    sound, seen, refused = VisionLanguageModel.with_features, [], []

    def with_features(self, batch):
        if len(batch.vision) > 1:
            refused.append(len(batch.vision))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        seen.append(batch.ids)
        return sound(self, batch)

    monkeypatch.setattr(VisionLanguageModel, "with_features", with_features)
    with pytest.warns(UserWarning, match="Out of memory with the images of 3 samples at a time"):
        log_probs, metrics = results(tmp_path, *options, "--data.batch_size=3")
    np.testing.assert_allclose(log_probs, alone[0], atol=1e-4)
    assert metrics == alone[1]
    costs = json.loads((tmp_path / "costs.json").read_text())["methods"]
    assert (costs["agd"]["forwards"], costs["permutation_average"]["forwards"]) == (1, 3)
    # What fits is remembered: fit has one batch of two samples, and every method of test begins with three.
    assert refused == [2, *[3, 2] * 3]


def test_other_errors_are_not_taken_for_out_of_memory(options, tmp_path, monkeypatch) -> None:
    def read(self, *arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(VisionLanguageModel, "_read", read)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["fit", *options, f"--trainer.default_root_dir={tmp_path}"])


def test_a_part_s_result_is_freed_before_the_next_part() -> None:
    """Otherwise the features of one part would take the memory that the next one needs."""
    alive: list[weakref.ref] = []

    def features(part: list[int]) -> torch.Tensor:
        assert all(result() is None for result in alive)
        if len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        made = torch.zeros(len(part))
        alive.append(weakref.ref(made))
        return made

    def consume() -> None:
        for result in splitter.map(features, [1, 2, 3], count=3):
            assert len(result) == 1
            del result

    splitter = OomSplitter(lambda batch, start, stop: batch[start:stop], "{} images", "one image fits")
    with pytest.warns(UserWarning, match="Out of memory with 3 images at a time; going on with 2"):
        consume()
    assert len(alive) == 3
