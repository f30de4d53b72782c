"""lad_pl as its users run it: a Trainer, the module and the datamodule."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import torch

from benchmarks.models import build_model, build_questions
from lad_pl import AttentionGuidedDebiasing, PromptSpec, VisionLanguageModel, VLMSpec
from lad_pl.calibrate import calibrate, load_calibration
from lad_pl.data.annotations import read_annotations
from lad_pl.data.datamodule import MultiImageData
from lad_pl.data.images import load_photo
from lad_pl.data.permutations import cyclic_shifts, random_permutations
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.readouts import ReadoutSettings
from lad_pl.types import Batch, Calibration, Evidence, PermutedSample, Sample

SEVEN_READOUTS = (
    *("vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information"),
    "batch_calibration",
)
SETTINGS = ReadoutSettings()


@dataclass(frozen=True)
class Bench:
    """A model's folder, questions, and how they are shown."""

    folder: Path
    annotations: Path
    num_candidates: int
    num_permutations: int
    dtype: str = "float32"
    device: str = "cpu"
    image_size: int = 336
    attn_implementation: str = "sdpa"
    num_calibration: int = 1

    @classmethod
    def build(
        cls,
        folder: Path,
        shape: str,
        num_candidates: int,
        num_samples: int,
        num_permutations: int,
        dtype: str = "float32",
        device: str = "cpu",
        image_size: int = 336,
        attn_implementation: str = "sdpa",
    ) -> Bench:
        """Write what is missing; one further sample is for calibration."""
        model = build_model(folder / f"{shape}-{dtype}", shape, dtype=dtype, device=device)
        photos = folder / f"questions-{num_candidates}-{num_samples}"
        questions = build_questions(photos, num_samples + 1, num_candidates)
        return cls(model, questions, num_candidates, num_permutations, dtype, device, image_size, attn_implementation)

    @property
    def samples(self) -> list[Sample]:
        """The test samples."""
        return read_annotations(self.annotations)[self.num_calibration :]

    @property
    def spec(self) -> VLMSpec:
        """What lad_pl is told of the model."""
        return VLMSpec(str(self.folder), dtype=self.dtype, attn_implementation=self.attn_implementation)

    def load(self) -> VisionLanguageModel:
        """The model, where it is to compute."""
        return VisionLanguageModel.load(self.spec).to(torch.device(self.device))


class Pass:
    """What one forward pass of the loaded model needs: batches, trie, layers and a calibration."""

    def __init__(self, bench: Bench, vlm: VisionLanguageModel | None = None) -> None:
        self.bench = bench
        self.vlm = vlm or bench.load()
        self.encoder = self.vlm.encoder(PromptSpec(image_size=bench.image_size))
        self.trie: AnswerTrie = self.encoder.answer_trie(bench.num_candidates)
        self.layers = self.vlm.layers.choose(0.58)

    def batch(self, number: int = 0, num_samples: int = 1) -> Batch:
        """Encoded test samples under their permutations, on the device."""
        orders = random_permutations(self.bench.num_candidates, self.bench.num_permutations)
        folder = self.bench.annotations.parent
        chosen = self.bench.samples[number : number + num_samples]
        items = [
            PermutedSample(
                sample, place, orders, tuple(load_photo(name, folder, self.bench.image_size) for name in sample.images)
            )
            for place, sample in enumerate(chosen)
        ]
        return self.encoder(items).to(self.bench.device)

    def evidence(self, batch: Batch) -> Evidence:
        return self.vlm.evidence(batch, self.trie, self.layers)

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


class Test:
    """``fit`` once, then ``test`` as often as asked, on the loaded model."""

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
            bench.spec, PromptSpec(image_size=bench.image_size), readouts=SEVEN_READOUTS, overwrite=True
        )
        self.data = MultiImageData(
            str(bench.annotations),
            num_calibration=bench.num_calibration,
            num_permutations=bench.num_permutations,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.accelerator = "gpu" if bench.device.startswith("cuda") else "cpu"
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

    def choices(self) -> dict[tuple[str, tuple[int, ...]], dict[str, int]]:
        """Every readout's decision by sample and permutation, of the latest ``test``."""
        predictions = self.run_folder / f"test-{self.calls}" / "predictions.jsonl"
        records = map(json.loads, predictions.read_text(encoding="utf-8").splitlines())
        return {(record["id"], tuple(record["permutation"])): record["choices"] for record in records}


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
