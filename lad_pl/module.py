"""The LightningModule: wiring only. The arithmetic lives in answers, capture, calibrate, readouts and metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lad_pl.answers import AnswerTrie
from lad_pl.calibrate import CalibrationPasses
from lad_pl.checkpoint import load_calibration, pack, unpack
from lad_pl.data.annotations import digest, sample_key
from lad_pl.data.module import MultiImageData
from lad_pl.errors import UserError
from lad_pl.metrics import position_metrics
from lad_pl.prompts import PromptSpec
from lad_pl.provenance import first_difference, library_versions
from lad_pl.readouts import READOUTS, ReadoutSettings, check_names
from lad_pl.run import Record, RunFolder, WriteRun
from lad_pl.types import Batch, Calibration, Evidence
from lad_pl.vlm import PromptEncoder, VisionLanguageModel, VLMSpec
from lad_pl.vlm.layers import LayerChoice

DEFAULT_READOUTS = ("vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information")


class AttentionGuidedDebiasing(pl.LightningModule):
    """Measures and removes the position bias of one vision-language model.

    ``fit`` calibrates, without gradients; ``test`` and ``validate`` report every readout from the same forward
    passes; ``predict`` ranks the images of prompts whose answer nobody knows. Files go to the run folder, the
    Trainer's ``default_root_dir``.

    Args:
        vlm: the model.
        prompt: how a sample becomes a prompt.
        layers: decoder layers whose attention is captured: a list, a range such as 21-35 (inclusive), or the fraction
            of the depth to start from; 0.58 is layers 21 to 35 of 36.
        readout: the free choices of the correction.
        readouts: which readouts to report: vanilla, pride, pride_reference, batch_calibration, raw_attention,
            purified_attention, agd, head_information, head_information_label_free, agd_head, agd_head_label_free.
        rank_by: the readout that orders the images in predictions.jsonl.
        overwrite: replace results of another configuration in the run folder.
        cpu_threads: threads that torch may use on a CPU; one is fastest for a very small model. Unset: torch's choice.
    """

    def __init__(
        self,
        vlm: VLMSpec,
        prompt: PromptSpec = PromptSpec(),  # noqa: B008 (frozen)
        layers: list[int] | int | float | str = 0.58,
        readout: ReadoutSettings = ReadoutSettings(),  # noqa: B008 (frozen)
        readouts: Sequence[str] = DEFAULT_READOUTS,
        rank_by: str = "agd",
        overwrite: bool = False,
        cpu_threads: int | None = None,
    ) -> None:
        super().__init__()
        check_names(readouts)
        check_names([rank_by])
        if cpu_threads is not None and cpu_threads < 1:
            raise UserError(f"model.cpu_threads is {cpu_threads}; it must be at least 1, or null.")
        self.automatic_optimization = False
        self.strict_loading = False  # the checkpoint holds a calibration, no weights
        self.vlm_spec = vlm
        self.prompt = prompt
        self.layer_choice: LayerChoice = layers
        self.readout = readout
        self.readouts = tuple(readouts)
        self.rank_by = rank_by
        self.overwrite = overwrite
        self.cpu_threads = cpu_threads

        self.vlm: VisionLanguageModel | None = None
        self.encoder: PromptEncoder | None = None
        self.layers: tuple[int, ...] = ()
        self.weights = ""
        self.inputs = ""
        self.passes = CalibrationPasses()
        self.metrics = nn.ModuleDict()
        self.calibration: Calibration | None = None
        self.provenance: dict[str, Any] = {}
        self.report: dict[str, Any] | None = None
        """The content of metrics.json after ``test`` or ``validate``."""
        self._trie: AnswerTrie | None = None
        self._from_folder = False
        # DDP refuses a module without a trainable parameter; nothing ever trains this one.
        self._anchor = nn.Parameter(torch.zeros(()))

    # ------------------------------------------------------------------------------------------------ preparation

    def setup(self, stage: str) -> None:
        """Load the model once, and find its layers and the identifiers' tokens."""
        if self.trainer.precision != "32-true":
            raise UserError(f"trainer.precision is {self.trainer.precision}; set model.vlm.dtype instead.")
        if self.cpu_threads is not None:
            torch.set_num_threads(self.cpu_threads)
        if self.vlm is None:
            vlm = VisionLanguageModel.load(self.vlm_spec)
            self.encoder = vlm.encoder(self.prompt)
            self.layers = vlm.layers.choose(self.layer_choice)
            self.weights = vlm.fingerprint()
            self.inputs = self.encoder.fingerprint()
            self.vlm = vlm
        if self.readout.top_layers > len(self.layers):
            raise UserError(
                f"model.readout.top_layers is {self.readout.top_layers}, but model.layers captures only "
                f"{len(self.layers)}."
            )
        assert self.encoder is not None
        self._trie = self.encoder.answer_trie(self.data.num_candidates)

    @property
    def data(self) -> MultiImageData:
        """The datamodule in use.

        Raises:
            UserError: the Trainer was given bare dataloaders.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, MultiImageData):
            raise UserError("Give the Trainer a lad_pl.data.MultiImageData: trainer.fit(module, datamodule=data).")
        return datamodule

    @property
    def run_folder(self) -> RunFolder:
        """Where this run's files go."""
        return RunFolder(self.trainer.default_root_dir, self.data.results_folder)

    def configure_callbacks(self) -> list[Callback]:
        """The run folder is written whoever makes the Trainer."""
        return [WriteRun()]

    def configure_optimizers(self) -> None:
        """There is nothing to optimise."""

    def calibration_settings(self) -> dict[str, Any]:
        """What a calibration holds for; ``test`` refuses one that differs in any of it."""
        return {
            "weights": self.weights,
            "processor": self.inputs,
            "prompt": self.prompt.settings(),
            "num_candidates": self.data.num_candidates,
            "layers": list(self.layers),
        }

    def settings(self) -> dict[str, Any]:
        """What the results of the stage in progress depend on, as plain values."""
        settings = {
            **self.calibration_settings(),
            "dtype": self.vlm_spec.dtype,
            "attn_implementation": self.vlm_spec.attn_implementation,
            "options": self.vlm_spec.options,
            "samples": digest(self.data.samples),
            "images": str(self.data.images),
        }
        if self.trainer.state.fn == "fit":
            return settings
        orders = {name: getattr(self.data, name) for name in ("num_permutations", "permutation_seed")}
        readout = {name: getattr(self.readout, name) for name in self.readout.__dataclass_fields__}
        calibration = self.provenance.get("calibration_samples")
        return {
            **settings,
            **orders,
            "readout": readout,
            "readouts": [*self.readouts],
            "rank_by": self.rank_by,
            "calibration_samples": calibration,
        }

    # --------------------------------------------------------------------------------------------------------- fit

    def on_fit_start(self) -> None:
        """Put the model where the Trainer computes; refuse a run folder of another configuration."""
        self._place()
        self._check_run_folder()
        self.passes.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the evidence of calibration passes; no loss, no gradient."""
        if self.current_epoch > 0:
            raise UserError("One pass over the calibration samples is all there is; leave trainer.max_epochs at 1.")
        evidence = self._evidence(batch)
        self.passes.update(evidence, batch.targets, batch.permutations, batch.groups)

    def on_train_epoch_end(self) -> None:
        """Calibrate, and write the calibration with its provenance."""
        self.calibration = self.passes.calibration()
        self._from_folder = False
        seen = self.passes.compute()["groups"].unique().tolist()
        self.provenance = {
            "model": self.vlm_spec.path,
            "revision": self._model.revision or self.vlm_spec.revision,
            "dtype": self.vlm_spec.dtype,
            **self.calibration_settings(),
            "num_samples": self.calibration.num_samples,
            "calibration_samples": [sample_key(self.data.samples[group]) for group in seen],
            "versions": library_versions(),
        }
        self.trainer.save_checkpoint(self.run_folder.calibration, weights_only=True)
        self.trainer.should_stop = True
        if not self.calibration.head_information.any():
            rank_zero_warn("No head's attention tells the right image on the calibration samples; all count the same.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A calibration in place of weights."""
        checkpoint["state_dict"] = {}
        if self.calibration is not None:
            checkpoint |= pack(self.calibration, self.provenance)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adopt the calibration of ``--ckpt_path``."""
        self.calibration, self.provenance = unpack(checkpoint, "The checkpoint")
        self._from_folder = False

    # ------------------------------------------------------------------------------------- test, validate, predict

    def on_test_start(self) -> None:
        """Place the model, find the calibration and check it.

        It is that of ``--ckpt_path``, else that of a preceding ``fit`` of this module, else the run folder's.
        """
        self._place()
        self.report = None
        if self.calibration is None or self._from_folder:
            self.calibration, self.provenance = load_calibration(self.run_folder.calibration)
            self._from_folder = True
        self._check_calibration()
        self._check_run_folder()
        n, t = self.data.num_candidates, self.data.num_permutations
        self.metrics = nn.ModuleDict({name: position_metrics(n, t) for name in self.readouts}).to(self.device)

    on_validation_start = on_predict_start = on_test_start

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Record]]:
        """Evidence, every readout's choice, metrics; returns the lines for predictions.jsonl."""
        assert self.calibration is not None
        evidence = self._evidence(batch).cpu()
        _check_finite(evidence, batch)
        scores = {
            name: READOUTS[name](evidence, self.calibration, self.readout)
            for name in dict.fromkeys((*self.readouts, self.rank_by))
        }
        self._count(batch, {name: scores[name].argmax(-1) for name in self.readouts})
        return {"records": self._records(batch, evidence, scores)}

    validation_step = predict_step = test_step

    def on_test_epoch_end(self) -> None:
        """Compute the metrics over all processes."""
        if self.trainer.state.fn == "predict":
            return
        values = {name: _plain(metrics.compute()) for name, metrics in self.metrics.items()}  # type: ignore[operator]
        assert self.calibration is not None
        self.report = {
            "readouts": values,
            "num_samples": sum(map(sum, next(iter(values.values()))["confusion"])) // self.data.num_permutations,
            "num_permutations": self.data.num_permutations,
            "num_candidates": self.data.num_candidates,
            "num_calibration_samples": self.calibration.num_samples,
            "layers": list(self.layers),
            "model": self.vlm_spec.path,
            "settings": self.settings(),
        }
        scalars = {f"{name}/{key}": v for name, kinds in values.items() for key, v in kinds.items() if _scalar(v)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*no logger configured.*")  # Trainer.test returns what is logged
            self.log_dict(scalars, logger=True)

    on_validation_epoch_end = on_test_epoch_end

    # ----------------------------------------------------------------------------------------------------- details

    @property
    def _model(self) -> VisionLanguageModel:
        assert self.vlm is not None, "setup loads the model"
        return self.vlm

    def _place(self) -> None:
        self._model.to(self.device)

    def _evidence(self, batch: Batch) -> Evidence:
        assert self._trie is not None
        return self._model.evidence(batch, self._trie, self.layers)

    def _check_run_folder(self) -> None:
        if not self.overwrite:
            self.run_folder.check(str(self.trainer.state.fn.value), self.settings())  # type: ignore[union-attr]

    def _check_calibration(self) -> None:
        difference = first_difference(
            {name: self.provenance.get(name) for name in self.calibration_settings()}, self.calibration_settings()
        )
        if difference:
            raise UserError(
                f"The calibration does not match this configuration ({difference}). Run fit with this configuration, "
                "or test with the one that the calibration was made with."
            )
        if self.trainer.state.fn == "predict":
            return
        calibrated = set(self.provenance["calibration_samples"])
        shared = [sample.id for sample in self.data.samples if sample_key(sample) in calibrated]
        if shared and not self.data.allow_calibration_in_test:
            raise UserError(
                f"Sample {shared[0]} was used for calibration; test on others, or allow it by name with "
                "--data.allow_calibration_in_test true."
            )
        same_file = self.data.calibration_annotations == self.data.annotations
        held_back = self.data.held_back() if self.trainer.state.fn == "test" and same_file else []
        if held_back and not any(sample_key(sample) in calibrated for sample in held_back):
            raise UserError(
                f"{len(held_back)} samples of {self.data.annotations} are held back for calibration, but the "
                "calibration was made on others; name their file with --data.calibration_annotations, or hold none "
                "back with --data.num_calibration 0."
            )

    def _count(self, batch: Batch, choices: dict[str, Tensor]) -> None:
        shape = (-1, self.data.num_permutations)
        counted = batch.groups.view(shape)[:, 0] >= 0
        if self.trainer.state.fn == "predict" or not counted.any():
            return
        targets = batch.targets.view(shape)[counted]
        permutations = batch.permutations.view(*shape, self.data.num_candidates)[counted]
        for name, chosen in choices.items():
            self.metrics[name].update(chosen.to(self.device).view(shape)[counted], targets, permutations)  # type: ignore[operator]

    def _records(self, batch: Batch, evidence: Evidence, scores: dict[str, Tensor]) -> list[Record]:
        """One line of predictions.jsonl per counted prompt."""
        num_permutations = self.data.num_permutations
        choices = {name: scores[name].argmax(-1).tolist() for name in self.readouts}
        rankings = scores[self.rank_by].argsort(dim=-1, descending=True, stable=True).tolist()
        columns = zip(
            batch.groups.tolist(),
            batch.ids,
            batch.permutations.tolist(),
            batch.targets.tolist(),
            evidence.log_probs.tolist(),
            evidence.attention.mean(2).tolist(),
            strict=True,
        )
        by_readout = {name: values.tolist() for name, values in scores.items()}
        return [
            {
                "order": [group, row % num_permutations],
                "id": sample_id,
                "caption": self.data.samples[group].caption,
                "images": list(self.data.samples[group].images),
                "permutation": permutation,
                "target": target if target >= 0 else None,
                "log_probs": log_probs,
                "attention": attention,
                "scores": {name: values[row] for name, values in by_readout.items()},
                "choices": {name: chosen[row] for name, chosen in choices.items()},
                "ranking": [permutation[position] for position in rankings[row]],
            }
            for row, (group, sample_id, permutation, target, log_probs, attention) in enumerate(columns)
            if group >= 0
        ]


def _check_finite(evidence: Evidence, batch: Batch) -> None:
    finite = evidence.log_probs.isfinite().all(1) & evidence.attention.isfinite().flatten(1).all(1)
    if not finite.all():
        culprit = batch.ids[int((~finite).nonzero()[0])]
        raise UserError(
            f"Sample {culprit}: the model's output is not finite; try --model.vlm.dtype float32 or bfloat16."
        )


def _plain(values: dict[str, Tensor]) -> dict[str, Any]:
    """Numbers and lists for JSON; what is undefined (NaN) becomes null."""
    return {name: _finite(value.tolist()) for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None


def _scalar(value: Any) -> bool:
    return isinstance(value, float)
