"""The LightningModule: hooks only. The arithmetic is in calibrate, readouts and metrics, the model in vlm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lad_pl.calibrate import check_calibration, load_calibration, pack, unpack
from lad_pl.data.datamodule import MultiImageData
from lad_pl.errors import UserError, check_between
from lad_pl.evidence.store import EvidenceStore
from lad_pl.methods import METHODS, DirectAnswer, Method, MethodRunner, MethodSettings, check_methods
from lad_pl.prompts.template import PromptSpec
from lad_pl.provenance import library_versions
from lad_pl.readouts import ReadoutSettings, check_names, check_top_layers
from lad_pl.run.callback import WriteRun, stage_of
from lad_pl.run.folder import Record, RunFolder
from lad_pl.run.processes import SIGTERM_EXIT, ProcessWatcher, check_trainer, on_rank_zero
from lad_pl.run.prompt_date import date_of_passes
from lad_pl.run.scoring import Results, calibrate_store, score_methods
from lad_pl.types import Batch, Calibration
from lad_pl.vlm import VisionLanguageModel, VLMSpec

DEFAULT_READOUTS = ("vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information")


class AttentionGuidedDebiasing(pl.LightningModule):
    """Measures and removes the position bias of one vision-language model.

    ``fit`` calibrates, without gradients; ``test`` and ``validate`` report every readout from the same forward
    passes; ``predict`` ranks the images of prompts without a known answer. The evidence of every prompt is stored as it
    comes, and a run that was interrupted goes on from there; scores, choices and metrics are computed from the store at
    the end. Files go to the run folder, the Trainer's ``default_root_dir``.

    Args:
        vlm: the model.
        prompt: how a sample becomes a prompt.
        layers: decoder layers whose attention is captured: a list, a range such as 21-35 (inclusive), or the fraction
            of the depth to start from; 0.58 is layers 21 to 35 of 36.
        readout: the free choices of the correction.
        readouts: names of the readouts to report, of lad_pl.readouts.READOUTS.
        methods: names of methods with forward passes of their own, for test and validate, of lad_pl.methods.METHODS.
        method: the free choices of these methods.
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
        methods: Sequence[str] = (),
        method: MethodSettings = MethodSettings(),  # noqa: B008 (frozen)
        rank_by: str = "agd",
        overwrite: bool = False,
        cpu_threads: int | None = None,
    ) -> None:
        super().__init__()
        check_names(readouts)
        check_names([rank_by])
        check_methods(methods)
        check_between(1, 1024, **{"model.cpu_threads": cpu_threads})
        self.automatic_optimization = False
        self.strict_loading = False  # the checkpoint holds a calibration, no weights
        self.vlm_spec = vlm
        self.prompt, self.layer_choice = prompt, layers
        self.readout, self.readouts, self.rank_by = readout, tuple(dict.fromkeys(readouts)), rank_by
        self.method, self.methods = method, tuple(dict.fromkeys(methods))
        self.overwrite, self.cpu_threads = overwrite, cpu_threads

        self.vlm: VisionLanguageModel | None = None
        self.layers: tuple[int, ...] = ()
        self.fingerprints: dict[str, str] = {}
        """Digests of the weights and the processor, and the date in the prompts if there is one."""
        self.runners: list[MethodRunner] = []
        """One per method of the stage in progress; DirectAnswer, which the readouts share, first."""
        self.calibration: Calibration | None = None
        self.provenance: dict[str, Any] = {}
        self.report: dict[str, Any] | None = None
        """The content of metrics.json after ``test`` or ``validate``."""
        self.costs: dict[str, Any] | None = None
        """The content of costs.json after ``test`` or ``validate``."""
        self._results: Results | None = None
        self._calibration_path, self._from_folder = Path(), False
        self.processes: ProcessWatcher | None = None
        """Watches the other processes of the run, if there are several."""
        self._anchor = nn.Parameter(torch.zeros(()))  # never trained: DDP refuses a module without a parameter

    def setup(self, stage: str) -> None:
        """Load the model once."""
        if self.cpu_threads is not None:
            torch.set_num_threads(self.cpu_threads)
        check_trainer(self.trainer, self.vlm_spec.tensor_parallel)
        if self.vlm is None:
            self.vlm = VisionLanguageModel.load(self.vlm_spec)
            self.layers = self.vlm.layers.choose(self.layer_choice)
            self.fingerprints = {"weights": self.vlm.fingerprint()}
        check_top_layers(self.readout.top_layers, len(self.layers), "model.readout.top_layers")
        if not self.data.orders:
            raise UserError(f"{type(self.data).__name__}.setup has to call super().setup(stage).")
        if stage == "fit":
            self._prepare(stage)
        else:  # samples and date depend on the calibration, and Lightning loads that of --ckpt_path after this hook
            self.data.before_loaders = partial(self._prepare, stage)

    def _prepare(self, stage: str) -> None:
        """Find the calibration: --ckpt_path's, a preceding ``fit``'s, the run folder's. Say what each loader needs."""
        vlm = self.vlm
        assert vlm is not None
        if stage == "fit":
            today = vlm.encoder(self.prompt)
            date = date_of_passes(self.run_folder, today, self.fingerprints["weights"]) or today.date
            date = self.trainer.strategy.broadcast(date)  # midnight may fall between two processes
        else:
            if self.calibration is None or self._from_folder:
                self._from_folder, self._calibration_path = True, self.run_folder.calibration
                self.calibration, self.provenance = load_calibration(self._calibration_path)
            date = self.provenance.get("date")
        self.fingerprints |= vlm.encoder(self.prompt, date).fingerprints()
        if stage != "fit":
            check_calibration(self.provenance, self.calibration_settings())
            self.data.hold_back(self.provenance)
        named = self.methods if stage in ("test", "validate") else ()
        kinds: list[type[Method]] = [DirectAnswer, *dict.fromkeys(METHODS[name] for name in named)]
        self.runners = [self._runner(vlm, stage, kind(self.method), date) for kind in kinds]
        replica = (1, 0) if self.vlm_spec.tensor_parallel > 1 else (self.trainer.world_size, self.trainer.global_rank)
        # Every process serves the same list, even where a shared disk shows them different states of the store.
        stored = [partial(runner.take_up, self.run_folder.related(runner.store.path)) for runner in self.runners]
        done = [on_rank_zero(self.trainer, take_up) for take_up in stored]
        self.data.loader_specs = tuple(map(MethodRunner.loader_spec, self.runners, done, repeat(replica)))

    def _runner(self, vlm: VisionLanguageModel, stage: str, method: Method, date: str | None) -> MethodRunner:
        encoder = vlm.encoder(method.prompt(self.prompt), date)
        own = {"pass": method.name, "prompt": encoder.prompt.settings(), **method.recorded_settings()}
        path, keys = self.run_folder.evidence(stage, method.file_name), self.data.keys(method.by_id)
        captions = method.reads_captions((*self.readouts, self.rank_by, *self.methods), self.readout.rows)
        store = EvidenceStore(path, {**self.evidence_settings(), **own}, self.overwrite, keys, captions)
        max_tokens = self.data.batch_tokens if self.data.batch_size == "auto" else math.inf
        return MethodRunner(method, vlm, encoder, self.layers, method.orders(self.data.orders), store, max_tokens)

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
        """The settings that a calibration is valid for; ``test`` refuses one that differs in any of them."""
        return {
            **self.fingerprints,
            "prompt": self.prompt.settings(),
            "num_candidates": self.data.num_candidates,
            "layers": list(self.layers),
        }

    def evidence_settings(self) -> dict[str, Any]:
        """The settings that the evidence of the stage in progress depends on, as plain values."""
        return {**self.calibration_settings(), **self.vlm_spec.settings(), **self.data.settings()}

    def settings(self) -> dict[str, Any]:
        """The settings that the results of the stage in progress depend on, as plain values."""
        if self.trainer.state.fn == "fit":
            return self.evidence_settings()
        return {
            **self.evidence_settings(),
            "readout": asdict(self.readout),
            "readouts": [*self.readouts],
            "methods": {name: of.settings() for of in self.runners for name in of.method.names if name in self.methods},
            "rank_by": self.rank_by,
            "calibration_samples": self.provenance.get("calibration_samples"),
        }

    # --------------------------------------------------------------------------------------------------------- fit

    def on_fit_start(self) -> None:
        """Place the model; refuse a run folder of another configuration."""
        self._start()

    def on_train_start(self) -> None:
        """Install the SIGTERM handler; not earlier, because Lightning installs its own after ``on_fit_start``."""
        if self.processes is not None:
            self.processes.listen()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Store the evidence of calibration passes; no loss, no gradient."""
        if self.current_epoch > 0:
            raise UserError("Calibration takes one epoch; leave trainer.max_epochs at 1.")
        self._run(self.runners[0], batch)

    def on_train_epoch_end(self) -> None:
        """Calibrate, and write the calibration with its provenance."""
        self._finish_stores()
        made = partial(calibrate_store, self.runners[0].store.path, self.readout)
        self.calibration = on_rank_zero(self.trainer, made)
        self._from_folder, self._calibration_path = False, self.run_folder.calibration
        assert self.vlm is not None
        self.provenance = {
            "model": self.vlm_spec.path,
            "revision": self.vlm.revision or self.vlm_spec.revision,
            "dtype": self.vlm_spec.dtype,
            **self.calibration_settings(),
            "num_samples": self.calibration.num_samples,
            **self.data.asked(),
            "versions": library_versions(),
        }
        self.trainer.save_checkpoint(self.run_folder.calibration, weights_only=True)
        self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A calibration in place of weights."""
        checkpoint["state_dict"] = {}
        if self.calibration is not None:
            checkpoint |= pack(self.calibration, self.provenance)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adopt the calibration of ``--ckpt_path``."""
        self.calibration, self.provenance = unpack(checkpoint, "The checkpoint")
        self._from_folder, self._calibration_path = False, Path(str(self.trainer.ckpt_path))

    # ------------------------------------------------------------------------------------- test, validate, predict

    def on_test_start(self) -> None:
        """Place the model."""
        self.report = self.costs = self._results = None
        if self.processes is not None:
            self.processes.listen()
        self._start()

    on_validation_start = on_predict_start = on_test_start

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Store the evidence of one batch of one method."""
        self._run(self.runners[dataloader_idx], batch)

    validation_step = predict_step = test_step

    def on_test_epoch_end(self) -> None:
        """Compute scores, choices and metrics from the evidence of all processes."""
        self._finish_stores()
        self.report, self.costs = on_rank_zero(self.trainer, self._score)
        if self.trainer.state.fn == "predict":
            return
        values = {f"{name}/{key}": v for name, of in self.report["readouts"].items() for key, v in of.items()}
        with warnings.catch_warnings():
            # Trainer.test returns what is logged, and all processes log the same.
            warnings.filterwarnings("ignore", ".*(no logger configured|sync_dist=True).*")
            self.log_dict({key: v for key, v in values.items() if isinstance(v, float)}, logger=True)

    on_validation_epoch_end = on_predict_epoch_end = on_test_epoch_end

    def records(self) -> Iterator[Record]:
        """The lines of predictions.jsonl, on the first process."""
        assert self._results is not None
        return self._results.records(self.data.samples, self.rank_by)

    def _start(self) -> None:
        """Check the run folder and place the model."""
        on_rank_zero(self.trainer, self._check_folder)
        assert self.vlm is not None
        self.vlm.to(self.device)

    def _check_folder(self) -> None:
        self.run_folder.check(stage_of(self.trainer), self.settings(), self.data.chosen(), self.overwrite)

    def _run(self, runner: MethodRunner, batch: Batch) -> None:
        if len(batch):  # it is empty while only other processes have a sample
            runner.run(batch, self.trainer.global_rank)
        leaving = self.processes is not None and self.processes.leaving
        if leaving or self.trainer.received_sigterm:  # Lightning itself looks only while it trains
            raise SIGTERMException(SIGTERM_EXIT)

    def _finish_stores(self) -> None:
        """Close each store on every process, then merge its parts on the first one."""
        on_rank_zero(self.trainer, self._check_folder)  # others may have written to it since the start
        for runner in self.runners:
            runner.store.close()
            on_rank_zero(self.trainer, partial(runner.store.finish, len(self.data.samples), len(runner.orders)))

    def _score(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The contents of metrics.json and costs.json."""
        assert self.calibration is not None
        scored = tuple(dict.fromkeys((*self.readouts, self.rank_by)))
        self._results = results = score_methods(self.runners, self.calibration, self.readout, scored, self.methods)
        if self.trainer.state.fn == "predict":
            return {}, {}
        report = {
            **results.report((*self.readouts, *self.methods)),
            "num_calibration_samples": self.calibration.num_samples,
            "num_held_back": self.data.num_held_back,
            "layers": list(self.layers),
            "model": self.vlm_spec.path,
            "images": str(self.data.images),
            "calibration": self.run_folder.relative(self._calibration_path),
            "settings": self.settings(),
        }
        return report, {"methods": {name: results.costs[name] for name in report["readouts"]}}
