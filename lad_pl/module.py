"""The LightningModule: wiring only. The arithmetic lives in answers, capture, calibrate, readouts and metrics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lad_pl.calibrate import calibrate, load_calibration, pack, unpack
from lad_pl.data.annotations import digest, sample_key
from lad_pl.data.datamodule import MultiImageData
from lad_pl.data.permutations import cyclic_shifts, random_permutations
from lad_pl.errors import UserError
from lad_pl.evidence.store import EvidenceStore, read_prompts
from lad_pl.methods import METHODS, PASSES, PLAIN, MethodSettings, Pass, check_methods
from lad_pl.methods.runner import MethodRunner
from lad_pl.prompts.template import PromptSpec
from lad_pl.provenance import first_difference, library_versions
from lad_pl.readouts import ReadoutSettings, check_names
from lad_pl.run.callback import WriteRun
from lad_pl.run.folder import Record, RunFolder
from lad_pl.run.processes import ProcessWatcher
from lad_pl.run.scoring import Results, score_store
from lad_pl.types import Calibration
from lad_pl.vlm import VisionLanguageModel, VLMSpec
from lad_pl.vlm.layers import LayerChoice
from lad_pl.vlm.oom_split import OomSplitter

T = TypeVar("T")
SIGTERM_EXIT = 128 + 15
"""Exit code of a process that was asked to end, as shells have it."""
DEFAULT_READOUTS = ("vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information")


class AttentionGuidedDebiasing(pl.LightningModule):
    """Measures and removes the position bias of one vision-language model.

    ``fit`` calibrates, without gradients; ``test`` and ``validate`` report every readout from the same forward
    passes; ``predict`` ranks the images of prompts whose answer nobody knows. What the model tells about a prompt is
    stored as it comes, and a run that was interrupted goes on from there; scores, choices and metrics are computed from
    the store at the end. Files go to the run folder, the Trainer's ``default_root_dir``.

    Args:
        vlm: the model.
        prompt: how a sample becomes a prompt.
        layers: decoder layers whose attention is captured: a list, a range such as 21-35 (inclusive), or the fraction
            of the depth to start from; 0.58 is layers 21 to 35 of 36.
        readout: the free choices of the correction.
        readouts: which readouts to report: vanilla, pride, pride_reference, batch_calibration, raw_attention,
            purified_attention, agd, head_information, head_information_label_free, agd_head, agd_head_label_free.
        methods: further methods, each with forward passes of its own, in test and validate: instruction, cot,
            self_consistency, permutation_average, permutation_average_random, sofa, sofa_paper, contextual_calibration,
            contextual_attention_over, contextual_attention_minus.
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
        if cpu_threads is not None and cpu_threads < 1:
            raise UserError(f"model.cpu_threads is {cpu_threads}; it must be at least 1, or null.")
        self.automatic_optimization = False
        self.strict_loading = False  # the checkpoint holds a calibration, no weights
        self.vlm_spec = vlm
        self.prompt = prompt
        self.layer_choice: LayerChoice = layers
        self.readout = readout
        self.readouts = tuple(readouts)
        self.methods = tuple(dict.fromkeys(methods))
        self.method = method
        self.rank_by = rank_by
        self.overwrite = overwrite
        self.cpu_threads = cpu_threads

        self.vlm: VisionLanguageModel | None = None
        self.layers: tuple[int, ...] = ()
        self.weights = ""
        self.inputs = ""
        self.asked: dict[str, str] = {}
        """Digests of the samples of the stage in progress and of their images."""
        self.passes: list[MethodRunner] = []
        """The ways in which the stage in progress asks the model; the plain one first."""
        self.calibration: Calibration | None = None
        self.provenance: dict[str, Any] = {}
        self.report: dict[str, Any] | None = None
        """The content of metrics.json after ``test`` or ``validate``."""
        self.costs: dict[str, Any] | None = None
        """The content of costs.json after ``test`` or ``validate``."""
        self._results: Results | None = None
        self._calibration_path = Path()
        self._from_folder = False
        self.processes: ProcessWatcher | None = None
        """The processes of the run, where there are several."""
        # DDP refuses a module without a trainable parameter; nothing ever trains this one.
        self._anchor = nn.Parameter(torch.zeros(()))

    # ------------------------------------------------------------------------------------------------ preparation

    def setup(self, stage: str) -> None:
        """Load the model once, and find its layers and the identifiers' tokens."""
        if self.trainer.precision != "32-true":
            raise UserError(f"trainer.precision is {self.trainer.precision}; set model.vlm.dtype instead.")
        if self.cpu_threads is not None:
            torch.set_num_threads(self.cpu_threads)
        if self.trainer.world_size > 1:
            self.processes = ProcessWatcher(self.trainer, self.run_folder.path)
        self._check_processes()
        if self.vlm is None:
            vlm = VisionLanguageModel.load(self.vlm_spec)
            self.layers = vlm.layers.choose(self.layer_choice)
            self.weights = vlm.fingerprint()
            self.inputs = vlm.encoder(self.prompt).fingerprint()
            self.vlm = vlm
        if self.readout.top_layers > len(self.layers):
            raise UserError(
                f"model.readout.top_layers is {self.readout.top_layers}, but model.layers captures only "
                f"{len(self.layers)}."
            )
        # Once: the images' digest opens every file.
        self.asked = {"samples": digest(self.data.samples), "images": self.data.image_digest()}
        own = dict.fromkeys(METHODS[name] for name in self.methods) if stage in ("test", "validate") else {}
        self.passes = [self._pass_run(stage, PASSES[name](self.method)) for name in (PLAIN, *own)]
        for a_pass in self.passes:
            a_pass.store.check()

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

    @property
    def replicas(self) -> tuple[int, int]:
        """How many copies of the model the processes hold, and which of them is this process's."""
        if self.vlm_spec.tensor_parallel > 1:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

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

    def evidence_settings(self) -> dict[str, Any]:
        """What the evidence of the stage in progress depends on, as plain values."""
        settings = {
            **self.calibration_settings(),
            "dtype": self.vlm_spec.dtype,
            "attn_implementation": self.vlm_spec.attn_implementation,
            "compile": self.vlm_spec.compile,
            "options": self.vlm_spec.options,
            **self.asked,
        }
        if self.trainer.state.fn == "fit":
            return settings
        return settings | {name: getattr(self.data, name) for name in ("num_permutations", "permutation_seed")}

    def settings(self) -> dict[str, Any]:
        """What the results of the stage in progress depend on, as plain values."""
        if self.trainer.state.fn == "fit":
            return self.evidence_settings()
        return {
            **self.evidence_settings(),
            "readout": asdict(self.readout),
            "readouts": [*self.readouts],
            "methods": {name: made for a_pass in self.passes[1:] for name, made in self._methods_made(a_pass)},
            "rank_by": self.rank_by,
            "calibration_samples": self.provenance.get("calibration_samples"),
        }

    # --------------------------------------------------------------------------------------------------------- fit

    def on_fit_start(self) -> None:
        """Put the model where the Trainer computes; refuse a run folder of another configuration."""
        self._start()

    def on_train_start(self) -> None:
        """Hear a request to end; not earlier, because Lightning puts up handlers of its own after ``on_fit_start``."""
        if self.processes is not None:
            self.processes.listen()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Store the evidence of calibration passes; no loss, no gradient."""
        if self.current_epoch > 0:
            raise UserError("One pass over the calibration samples is all there is; leave trainer.max_epochs at 1.")
        self._measure(self.passes[0], batch)

    def on_train_epoch_end(self) -> None:
        """Calibrate, and write the calibration with its provenance."""
        self.calibration = self._finished_on_rank_zero(self._calibrated)
        self._from_folder, self._calibration_path = False, self.run_folder.calibration
        self.provenance = {
            "model": self.vlm_spec.path,
            "revision": self._model.revision or self.vlm_spec.revision,
            "dtype": self.vlm_spec.dtype,
            **self.calibration_settings(),
            "num_samples": self.calibration.num_samples,
            "calibration_samples": [sample_key(sample) for sample in self.data.samples],
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
        self._from_folder, self._calibration_path = False, Path(str(self.trainer.ckpt_path))

    # ------------------------------------------------------------------------------------- test, validate, predict

    def on_test_start(self) -> None:
        """Find the calibration and check it, place the model.

        It is that of ``--ckpt_path``, else that of a preceding ``fit`` of this module, else the run folder's.
        """
        self.report = self.costs = self._results = None
        if self.calibration is None or self._from_folder:
            self._calibration_path = self.run_folder.calibration
            self.calibration, self.provenance = load_calibration(self._calibration_path)
            self._from_folder = True
        self._check_calibration()
        if self.processes is not None:
            self.processes.listen()
        self._start()

    on_validation_start = on_predict_start = on_test_start

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Store the evidence of one batch of one pass."""
        self._measure(self.passes[dataloader_idx], batch)

    validation_step = predict_step = test_step

    def on_test_epoch_end(self) -> None:
        """Compute scores, choices and metrics from the evidence of all processes."""
        self.report, self.costs = self._finished_on_rank_zero(self._report)
        if self.trainer.state.fn == "predict":
            return
        values = self.report["readouts"]
        scalars = {f"{name}/{key}": v for name, kinds in values.items() for key, v in kinds.items() if _scalar(v)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*no logger configured.*")  # Trainer.test returns what is logged
            self.log_dict(scalars, logger=True)

    on_validation_epoch_end = on_predict_epoch_end = on_test_epoch_end

    def records(self) -> Iterator[Record]:
        """The lines of predictions.jsonl, on the first process."""
        assert self._results is not None
        return self._results.records(self.data.samples, self.rank_by)

    # ----------------------------------------------------------------------------------------------------- details

    @property
    def _model(self) -> VisionLanguageModel:
        assert self.vlm is not None, "setup loads the model"
        return self.vlm

    def _pass_run(self, stage: str, way: Pass) -> MethodRunner:
        """A pass with its input side and its store."""
        n, auto = self.data.num_candidates, self.data.batch_size == "auto"
        encoder = self._model.encoder(way.prompt(self.prompt))
        shown = cyclic_shifts(n) if stage == "fit" else random_permutations(n, self.data.num_permutations)
        settings = {**self.evidence_settings(), "pass": way.name, **way.choices_made()}
        settings["prompt"] = encoder.prompt.settings()
        path = self.run_folder.evidence(stage, "" if way.name == PLAIN else way.name)
        return MethodRunner(
            way,
            self._model,
            encoder,
            encoder.answer_trie(n),
            self.layers,
            EvidenceStore(path, settings, self.overwrite),
            OomSplitter(self.data.batch_tokens if auto else None),
            num_orders=len(way.orders(shown)),
        )

    def _methods_made(self, a_pass: MethodRunner) -> Iterator[tuple[str, dict[str, Any]]]:
        """The settings of the methods that rest on a pass."""
        for name in a_pass.way.methods:
            if name in self.methods:
                yield name, {"prompt": a_pass.encoder.prompt.settings(), **a_pass.way.choices_made()}

    def _start(self) -> None:
        """What every stage begins with, once it is known to be allowed."""
        self._check_run_folder()
        self.trainer.strategy.barrier()
        self._model.to(self.device)

    def _measure(self, a_pass: MethodRunner, batch: Any) -> None:
        if batch:  # otherwise this process has nothing to do while others have
            a_pass.measure(batch, self.trainer.global_rank)
        leaving = self.processes is not None and self.processes.leaving
        if leaving or self.trainer.received_sigterm:  # Lightning itself looks only while it trains
            raise SIGTERMException(SIGTERM_EXIT)

    def _finished_on_rank_zero(self, work: Callable[[], T]) -> T:
        """What ``work`` makes of the finished stores on the first process, for all of them; so with its UserError."""
        for a_pass in self.passes:
            a_pass.store.close()
        self.trainer.strategy.barrier()
        outcome: tuple[T | None, str] = (None, "")
        if self.trainer.is_global_zero:
            try:
                for a_pass in self.passes:
                    a_pass.store.finish(len(self.data.samples), a_pass.num_orders)
                outcome = (work(), "")
            except (UserError, OSError, pa.ArrowException) as error:  # the other processes wait for an answer
                outcome = (None, str(error))
        result, message = self.trainer.strategy.broadcast(outcome)
        if message:
            raise UserError(message)
        return cast(T, result)

    def _calibrated(self) -> Calibration:
        passes = read_prompts(self.passes[0].store.path)
        return calibrate(passes.evidence, passes.targets, passes.permutations, passes.sample_index)

    def _report(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The contents of metrics.json and costs.json."""
        assert self.calibration is not None
        names = tuple(dict.fromkeys((*self.readouts, self.rank_by)))
        results = score_store(self.passes[0].store.path, self.calibration, self.readout, names)
        for a_pass in self.passes[1:]:
            prompts = read_prompts(a_pass.store.path, heads=False)
            results.add(a_pass.way, prompts, a_pass.encoder.prompt, self.readout)
        results.keep((*names, *self.methods))
        self._results = results
        if self.trainer.state.fn == "predict":
            return {}, {}
        named = (*self.readouts, *self.methods)
        report = {
            "readouts": results.metrics(named),
            "num_samples": len(self.data.samples),
            "num_permutations": self.data.num_permutations,
            "num_candidates": self.data.num_candidates,
            "num_calibration_samples": self.calibration.num_samples,
            "layers": list(self.layers),
            "model": self.vlm_spec.path,
            "images": str(self.data.images),
            "calibration": self._relative(self._calibration_path),
            "settings": self.settings(),
        }
        return report, {"methods": {name: results.costs[name] for name in named}}

    def _relative(self, path: Path) -> str:
        """A path, by its name alone if it is in the run folder: that may be moved."""
        path = path.resolve()
        return path.name if path.parent == self.run_folder.path.resolve() else str(path)

    def _check_processes(self) -> None:
        """Refuse what would hold the model more often, or in other parts, than the user means."""
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise UserError(
                "This trainer.strategy splits weights that it trains, and would leave a whole model on every device; "
                "use ddp, and model.vlm.tensor_parallel or model.vlm.device_map for a model larger than a device."
            )
        sharing, processes = self.vlm_spec.tensor_parallel, self.trainer.world_size
        if sharing == 1:
            return
        if sharing != processes:
            raise UserError(
                f"model.vlm.tensor_parallel is {sharing}, but the run has {processes} processes; set trainer.devices "
                f"times trainer.num_nodes to {sharing}, with trainer.strategy ddp."
            )
        os.environ.setdefault("LOCAL_RANK", str(self.trainer.local_rank))  # where transformers looks for its device

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


def _scalar(value: Any) -> bool:
    return isinstance(value, float)
