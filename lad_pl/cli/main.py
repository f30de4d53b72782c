"""The command line: LightningCLI with this toolkit's module and data, and errors in one line."""

from __future__ import annotations

import logging
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lad_pl.analysis.photo_ranking import rank_photos, ranking_table, write_contact_sheet
from lad_pl.analysis.table import metrics_table, recall_table
from lad_pl.calibrate import load_calibration
from lad_pl.cli.commands import SUMMARIES, run_command
from lad_pl.cli.photo_options import HELP, add_photo_options, translated
from lad_pl.data import MultiImageData, PhotoData
from lad_pl.errors import UserError
from lad_pl.files import asset
from lad_pl.module import AttentionGuidedDebiasing
from lad_pl.run.folder import RunFolder
from lad_pl.run.processes import FAILED, LOST, USER_ERROR, is_first, is_lost_contact, reported_by_another

PHOTO_OPTIONS = tuple(name.removeprefix("--") for name in HELP)
_NO_LIMITS = "leave the trainer's limit_..._batches, max_epochs and fast_dev_run as they are"
_AROUND = tuple(SUMMARIES.items())
_SUMMARIES = {
    "fit": "Calibrate on a few samples.",
    "validate": "Measure on the validation samples, to choose settings.",
    "test": "Measure on the test samples and report every readout.",
    "predict": "Rank the images of prompts whose answer nobody knows.",
}

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

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the configuration, as any of the commands can read it again."""
        if trainer.is_global_zero:
            config = self.config.clone()
            for name in ("ckpt_path", *PHOTO_OPTIONS):
                config.pop(name, None)
            path = pl_module.run_folder.path / self.config_filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.parser.dump(config, skip_none=False, skip_validation=True), encoding="utf-8")

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = on_train_start


class CLI(LightningCLI):
    """fit, validate, test and predict."""

    contact_sheet: str | None = None
    """Picture file that ``predict --images`` is to write."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Without a class, ``--data`` options are those of annotation files."""
        parser.set_defaults({"data": {"class_path": "lad_pl.data.MultiImageData"}})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands, less the options that we decide."""
        commands = LightningCLI.subcommands()
        return {name: hidden | set(_DECIDED[name]) for name, hidden in commands.items()}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        assert parser._subcommands_action is not None
        for command in parser._subcommands_action._choices_actions:
            command.help = _SUMMARIES[command.dest]  # Lightning's speak of training, and end in mid-sentence

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            add_photo_options(parser)
        return parser

    def before_instantiate_classes(self) -> None:
        """Photos are shown as many at a time as the calibration holds for."""
        config = self.config[self.config.subcommand]
        if config.data.class_path == "lad_pl.data.PhotoData" and config.data.init_args.group_size is None:
            calibration, _ = load_calibration(
                config.ckpt_path or RunFolder(config.trainer.default_root_dir).calibration
            )
            config.data.init_args.group_size = calibration.num_candidates

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer, or one line on the option that it does not take."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"The trainer's options do not work here: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Read ``--ckpt_path`` with our own check: Lightning would say what is wrong with it in a traceback."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None:
            load_calibration(path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), **_DECIDED[subcommand]}

    def after_fit(self) -> None:
        """Say where the calibration lies."""
        if not self.model.provenance:
            raise UserError(f"Nothing was calibrated on; {_NO_LIMITS}.")
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
        if not self.model.run_folder.predictions("predict").exists():
            raise UserError(f"Nothing was predicted; {_NO_LIMITS}.")
        if isinstance(self.datamodule, PhotoData):
            if self.trainer.is_global_zero:
                self._show_photos(self.datamodule)
        else:
            self._say(f"Rankings: {self.model.run_folder.predictions('predict')}")

    def _show_photos(self, data: PhotoData) -> None:
        folder = self.model.run_folder
        rankings = rank_photos(folder.read_predictions("predict"), data, self.model.readout, self.model.rank_by)
        folder.write_lines(folder.rankings, rankings)
        for ranking in rankings:
            Console().print(ranking_table(ranking))
        print(f"Rankings: {folder.rankings}   Prompts: {folder.predictions('predict')}")
        if self.contact_sheet is not None:
            write_contact_sheet(self.contact_sheet, rankings)
            print(f"Contact sheet: {self.contact_sheet}")

    def _show(self, stage: str) -> None:
        folder = self.model.run_folder
        if not (self.model.report and self.model.report["num_samples"]):
            raise UserError(f"Nothing was measured; {_NO_LIMITS}.")
        if self.trainer.is_global_zero:
            Console().print(metrics_table(self.model.report, self.model.costs), recall_table(self.model.report))
        self._say(f"Metrics: {folder.metrics(stage)}   Predictions: {folder.predictions(stage)}")

    def _say(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 2 after a mistake in what was typed or supplied, or 1 if another process of the run has ended.
    """
    _prepare()
    code = USER_ERROR
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if typed and typed[0] in SUMMARIES:
            run_command(typed[0], typed[1:])
            return 0
        typed, CLI.contact_sheet = translated(typed)
        CLI(
            AttentionGuidedDebiasing,
            MultiImageData,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=False,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs=_parser_settings(typed),
            args=typed,
        )
    except UserError as error:
        message = _one_line(error)
    except UnicodeEncodeError as error:
        message = f"A name or text has characters that cannot be written: {error.object[:80]!r}"
    except (ArgumentError, UnicodeDecodeError) as error:
        message = f"{_innermost(str(error))}. `python -m lad_pl {_helped(typed)} --help` lists the options."
    except OSError as error:
        message = f"{error.filename or 'A file'}: {error.strerror or error}"
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        message, code = LOST, FAILED
    else:
        return 0
    if (is_first() and code == USER_ERROR) or not reported_by_another():
        print(f"lad_pl: {message}", file=sys.stderr)
    return code


def _parser_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Where neither a configuration nor a model is named, every command runs the embedded demo."""
    settings: dict[str, Any] = {
        "prog": "lad_pl",
        "exit_on_error": False,
        "description": "Measure and remove position bias of multi-image vision-language models. More commands, each "
        f"with a --help of its own: {', '.join(f'{name} ({what[0].lower()}{what[1:-1]})' for name, what in _AROUND)}.",
    }
    settings |= {command: {"description": summary} for command, summary in _SUMMARIES.items()}
    named = {argument.partition("=")[0] for argument in arguments}
    if not named & {"-c", "--config", "--model", "--model.vlm", "--model.vlm.path"}:
        for command in _SUMMARIES:
            settings[command]["default_config_files"] = [str(asset("configs/demo.yaml"))]
    return settings


def _prepare() -> None:
    """Attribute docstrings become ``--help``; expected warnings of the libraries go."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _innermost(message: str) -> str:
    """The telling lines of a parser's nested message, as one."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    told = " ".join(line for line in lines if line and not line.startswith(noise))
    if "DemoData" in told and "not accepted" in told:
        told += ". Without a configuration the demo runs: name a model with --config or --model.vlm.path"
    return told.rstrip(".")


def _helped(typed: Sequence[str]) -> str:
    """The command whose help fits what was typed."""
    return typed[0] if typed and typed[0] in (*_SUMMARIES, *SUMMARIES) else "fit"


def _one_line(error: BaseException) -> str:
    """The message without the traceback that a data worker puts before it."""
    return " ".join(str(error).rsplit("UserError: ", 1)[-1].split())
