"""What the scripts share: options, a bench on disk, its model, and ``test`` as users of lad_pl run it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.models import build_model, build_questions
from lad_pl import AttentionGuidedDebiasing, PromptSpec, VisionLanguageModel, VLMSpec
from lad_pl.calibrate import calibrate, load_calibration
from lad_pl.data.annotations import read_annotations
from lad_pl.data.datamodule import MultiImageData
from lad_pl.data.images import load_photo
from lad_pl.data.permutations import cyclic_shifts, random_permutations
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.types import Batch, Calibration, Evidence, PermutedSample, Sample

SEVEN_READOUTS = (
    *("vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information"),
    "batch_calibration",
)
SETTINGS = ReadoutSettings()


@dataclass(frozen=True)
class BenchOptions:
    """Command-line options that the scripts share."""

    image_size: int = 336
    """Side in pixels of every image."""
    permutations: int = 5
    """T."""
    repeats: int = 3
    """How often everything is measured, in turns."""
    attn_implementation: str = "sdpa"
    """lad_pl's: sdpa, flash_attention_2 or flash_attention_3; plain transformers is eager."""
    dtype: str = "float32"
    """Number format of the weights."""
    device: str = "cpu"
    """cpu or cuda."""
    folder: str | None = None
    """Where models and photographs are kept; a temporary one if unset."""


@dataclass(frozen=True)
class Bench:
    """A model's folder and questions on disk, with the options under which they are shown."""

    folder: Path
    annotations: Path
    num_candidates: int
    options: BenchOptions
    num_calibration: int = 1

    @classmethod
    def build(cls, path: Path, options: BenchOptions, shape: str, num_candidates: int, num_samples: int = 1) -> Bench:
        """Write what is missing in ``path``; one sample more than ``num_samples`` is for calibration."""
        model = build_model(path / f"{shape}-{options.dtype}", shape, dtype=options.dtype, device=options.device)
        questions = build_questions(path / f"questions-{num_candidates}-{num_samples}", num_samples + 1, num_candidates)
        return cls(model, questions, num_candidates, options)

    @property
    def samples(self) -> list[Sample]:
        """The test samples."""
        return read_annotations(self.annotations)[self.num_calibration :]

    @property
    def spec(self) -> VLMSpec:
        """The model, as lad_pl loads it."""
        return VLMSpec(str(self.folder), dtype=self.options.dtype, attn_implementation=self.options.attn_implementation)

    @property
    def on_gpu(self) -> bool:
        return self.options.device.startswith("cuda")


class LoadedModel:
    """A bench's model in memory: batches in, evidence out, and a calibration to correct it by."""

    def __init__(self, bench: Bench, vlm: VisionLanguageModel | None = None) -> None:
        self.bench = bench
        self.vlm = vlm or VisionLanguageModel.load(bench.spec).to(torch.device(bench.options.device))
        self.encoder = self.vlm.encoder(PromptSpec(image_size=bench.options.image_size))
        self.trie: AnswerTrie = self.encoder.answer_trie(bench.num_candidates)
        self.layers = self.vlm.layers.choose(0.58)

    def batch(self, first: int = 0, num_samples: int = 1) -> Batch:
        """Encoded test samples under their permutations, on the device."""
        options, folder = self.bench.options, self.bench.annotations.parent
        orders = random_permutations(self.bench.num_candidates, options.permutations)
        chosen = self.bench.samples[first : first + num_samples]
        items = [
            PermutedSample(
                sample, number, orders, tuple(load_photo(name, folder, options.image_size) for name in sample.images)
            )
            for number, sample in enumerate(chosen)
        ]
        return self.encoder(items).to(options.device)

    def evidence(self, batch: Batch) -> Evidence:
        """One forward pass."""
        return self.vlm.evidence(batch, self.trie, self.layers)

    def vanilla(self, batch: Batch) -> Tensor:
        """Scores (B, N) of a forward pass in which no attention is captured."""
        with patch("lad_pl.vlm.model.capture", nothing_captured):
            evidence = self.evidence(batch).cpu()
        assert not evidence.attention.any(), "attention was captured all the same"
        return READOUTS["vanilla"](evidence, self.calibration, SETTINGS)

    def agd(self, batch: Batch, readout: Callable[..., Tensor] = READOUTS["agd"]) -> Tensor:
        """Scores (B, N) of a forward pass with attention, corrected."""
        return readout(self.evidence(batch).cpu(), self.calibration, SETTINGS)

    @cached_property
    def calibration(self) -> Calibration:
        """Of random evidence: what the correction costs does not depend on the numbers."""
        n, heads = self.bench.num_candidates, self.vlm.model.config.get_text_config().num_attention_heads
        generator = torch.Generator().manual_seed(0)
        log_probs = torch.randn(n, n, generator=generator).log_softmax(-1)
        attention = torch.rand(n, len(self.layers), heads, n, generator=generator)
        shifts = torch.tensor(cyclic_shifts(n))
        return calibrate(
            Evidence.from_heads(log_probs, attention), (shifts == 0).int().argmax(1), shifts, torch.zeros(n).long()
        )


@contextmanager
def nothing_captured(*args: Any, **kwargs: Any) -> Iterator[Any]:
    """Stands in for :func:`lad_pl.vlm.capture.capture`."""

    class Nothing:
        def stacked(self) -> Tensor:
            return torch.zeros(1, 1, 1, 1)

        def of_captions(self) -> None:
            return None

    yield Nothing()


class Test:
    """``fit`` once, then ``test`` any number of times, on the loaded model."""

    __test__ = False  # no test of pytest's

    def __init__(
        self,
        bench: Bench,
        batch_size: int = 1,
        num_workers: int = 1,
        module: AttentionGuidedDebiasing | None = None,
    ) -> None:
        _quiet()
        self._temporary = TemporaryDirectory(prefix="lad_pl_run_")  # fresh: nothing of an earlier run to take up
        self.run_folder = Path(self._temporary.name)
        self.module = module or AttentionGuidedDebiasing(
            bench.spec, PromptSpec(image_size=bench.options.image_size), readouts=SEVEN_READOUTS, overwrite=True
        )
        self.data = MultiImageData(
            str(bench.annotations),
            num_calibration=bench.num_calibration,
            num_permutations=bench.options.permutations,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.accelerator = "gpu" if bench.on_gpu else "cpu"
        self.calls = 0
        self.trainer("fit").fit(self.module, datamodule=self.data)

    def __call__(self) -> None:
        """One ``test``, in a run folder of its own."""
        self.calls += 1
        self.trainer(f"test-{self.calls}").test(self.module, datamodule=self.data, verbose=False)

    def trainer(self, name: str) -> pl.Trainer:
        return pl.Trainer(
            accelerator=self.accelerator,
            devices=1,
            default_root_dir=self.run_folder / name,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            max_epochs=1,
        )

    def calibration(self) -> Calibration:
        return load_calibration(self.run_folder / "fit" / "calibration.ckpt")[0]

    def choices(self, call: int | None = None) -> dict[tuple[str, tuple[int, ...]], dict[str, int]]:
        """Every readout's decision by sample and permutation, of a call (the first is 1) or of the latest."""
        predictions = self.run_folder / f"test-{call or self.calls}" / "predictions.jsonl"
        records = map(json.loads, predictions.read_text(encoding="utf-8").splitlines())
        return {(record["id"], tuple(record["permutation"])): record["choices"] for record in records}


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
