"""The command line: LightningCLI with this toolkit's module and data, and errors in one line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

from lad_pl.assets import asset
from lad_pl.checkpoint import load_calibration
from lad_pl.data import MultiImageData
from lad_pl.errors import UserError
from lad_pl.module import AttentionGuidedDebiasing
from lad_pl.report import metrics_table, recall_table

USER_ERROR = 2

# A calibration needs none of these, and a plain run should say only what matters.
_TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "checkpoints/run",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
# Nothing is unpickled, from wherever; our own table instead of Lightning's; predictions in a file instead of memory.
_DECIDED: dict[str, dict[str, Any]] = {
    "fit": {"weights_only": True, "ckpt_path": None},
    "validate": {"weights_only": True, "verbose": False},
    "test": {"weights_only": True, "verbose": False},
    "predict": {"weights_only": True, "return_predictions": False},
}
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*configure_optimizers` returned `None`.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*args parameter is intended to run from within Python.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*Consider setting `persistent_workers=True`.*",
    ".*number of training batches .* is smaller than the logging interval.*",
)


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` once the run folder is known to be this configuration's."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Too early: the module has not yet looked at the run folder."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the configuration."""
        super().setup(trainer, pl_module, "")

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = on_train_start


class CLI(LightningCLI):
    """fit, validate, test and predict."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Without a class, ``--data`` options are those of annotation files."""
        parser.set_defaults({"data": {"class_path": "lad_pl.data.MultiImageData"}})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands, less the options that we decide."""
        commands = LightningCLI.subcommands()
        return {name: hidden | set(_DECIDED[name]) for name, hidden in commands.items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = {**super()._prepare_subcommand_kwargs(subcommand), **_DECIDED[subcommand]}
        if arguments["ckpt_path"] is not None:
            load_calibration(arguments["ckpt_path"])  # says in one line what Lightning would say in a traceback
        return arguments

    def after_fit(self) -> None:
        """Say where the calibration lies."""
        report = self.model.provenance
        self._say(
            f"Calibrated on {report['num_samples']} samples under {report['num_candidates']} cyclic shifts: "
            f"{self.model.run_folder.calibration}"
        )

    def after_test(self) -> None:
        """Show the metrics."""
        self._show("test")

    def after_validate(self) -> None:
        """Show the metrics."""
        self._show("validate")

    def after_predict(self) -> None:
        """Say where the rankings lie."""
        self._say(f"Rankings: {self.model.run_folder.predictions('predict')}")

    def _show(self, stage: str) -> None:
        folder = self.model.run_folder
        if self.trainer.is_global_zero:
            Console().print(metrics_table(self.model.report), recall_table(self.model.report))
        self._say(f"Metrics: {folder.metrics(stage)}   Predictions: {folder.predictions(stage)}")

    def _say(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after a mistake in what was typed or supplied."""
    _prepare()
    try:
        CLI(
            AttentionGuidedDebiasing,
            MultiImageData,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=False,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs=_parser_settings(sys.argv[1:] if arguments is None else arguments),
            args=None if arguments is None else list(arguments),
        )
    except UserError as error:
        print(f"lad_pl: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    return 0


def _parser_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Where neither a configuration nor a model is named, every command runs the embedded demo."""
    settings: dict[str, Any] = {
        "prog": "lad_pl",
        "description": "Measure and remove position bias of multi-image vision-language models.",
    }
    named = {argument.partition("=")[0] for argument in arguments}
    if not named & {"-c", "--config", "--model", "--model.vlm", "--model.vlm.path"}:
        demo = {"default_config_files": [str(asset("configs/demo.yaml"))]}
        settings |= dict.fromkeys(_DECIDED, demo)
    return settings


def _prepare() -> None:
    """Attribute docstrings become ``--help``; expected warnings of the libraries go."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _one_line(error: BaseException) -> str:
    """The message without the traceback that a data worker puts before it."""
    return " ".join(str(error).rsplit("UserError: ", 1)[-1].split())
