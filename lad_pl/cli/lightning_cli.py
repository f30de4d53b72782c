"""fit, validate, test and predict: LightningCLI with this toolkit's module and data."""

from __future__ import annotations

import logging
import sys
import warnings
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
from lad_pl.cli.commands import LIGHTNING_COMMANDS
from lad_pl.cli.photo_options import HELP, add_photo_options, translated
from lad_pl.cli.stage_help import CKPT_PATH, StageHelp
from lad_pl.data import MultiImageData, PhotoData
from lad_pl.errors import UserError
from lad_pl.files import asset
from lad_pl.module import AttentionGuidedDebiasing
from lad_pl.run.folder import RunFolder
from lad_pl.run.processes import FAILED, LOST, is_lost_contact, reported_by_another

PHOTO_OPTIONS = tuple(name.removeprefix("--") for name in HELP)
_NO_LIMITS = "leave the trainer's limit_..._batches, max_epochs and fast_dev_run as they are"

# A calibration needs none of these, and a run should print only what matters.
_TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "checkpoints/run",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
# Arguments of the Trainer's methods that are no options: no unpickling, our own table in place of Lightning's,
# predictions in a file and not in memory.
_DECIDED: dict[str, dict[str, Any]] = {
    "fit": {"weights_only": True},
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
    """fit, validate, test and predict.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        typed, self.contact_sheet = translated(arguments)
        # Building a parser takes a third of a second: where the command comes first, only its own is built.
        self._commands = [name for name in LIGHTNING_COMMANDS if name in typed[:1]] or [*LIGHTNING_COMMANDS]
        super().__init__(
            AttentionGuidedDebiasing,
            MultiImageData,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=False,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs=_parser_settings(self._commands, typed),
            args=typed,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Without a class, ``--data`` options are those of annotation files."""
        parser.set_defaults({"data": {"class_path": "lad_pl.data.MultiImageData"}})

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is a static method
        """The commands to build, and Lightning's arguments of each that are no options, or described here."""
        hidden = LightningCLI.subcommands()
        return {name: {*hidden[name], *_DECIDED[name], "ckpt_path"} for name in self._commands}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        assert parser._subcommands_action is not None
        for command in parser._subcommands_action._choices_actions:
            command.help = LIGHTNING_COMMANDS[command.dest]  # Lightning's speak of training, and end in mid-sentence

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, add_help=False, **kwargs)
        parser.add_argument("-h", "--help", action=StageHelp, help="Show the options that matter most and exit.")
        parser.add_argument("--help-all", action="help", help="Show all options and exit.")
        if subcommand != "fit":
            parser.add_argument("--ckpt_path", type=str | None, help=CKPT_PATH)
        if subcommand == "predict":
            add_photo_options(parser)
        return parser

    def before_instantiate_classes(self) -> None:
        """Group photos by the N that the calibration holds for."""
        config = self.config[self.config.subcommand]
        if config.data.class_path == "lad_pl.data.PhotoData" and config.data.init_args.group_size is None:
            path = config.get("ckpt_path") or RunFolder(config.trainer.default_root_dir).calibration
            config.data.init_args.group_size = load_calibration(path)[0].num_candidates

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer; a UserError for options that it refuses."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"The trainer's options do not work here: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Check ``--ckpt_path`` in place of Lightning, which would fail with a traceback."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None:
            load_calibration(path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        path = self.config[subcommand].get("ckpt_path")
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": path, **_DECIDED[subcommand]}

    def after_fit(self) -> None:
        """Print where the calibration is."""
        if not self.model.provenance:
            raise UserError(f"Nothing was calibrated on; {_NO_LIMITS}.")
        report = self.model.provenance
        self._print(
            f"Calibrated on {report['num_samples']} samples under {report['num_candidates']} cyclic shifts: "
            f"{self.model.run_folder.calibration}"
        )

    def after_test(self) -> None:
        """Print the metrics."""
        self._show("test")

    def after_validate(self) -> None:
        """Print the metrics."""
        self._show("validate")

    def after_predict(self) -> None:
        """Print where the rankings are."""
        if not self.model.run_folder.predictions("predict").exists():
            raise UserError(f"Nothing was predicted; {_NO_LIMITS}.")
        if isinstance(self.datamodule, PhotoData):
            if self.trainer.is_global_zero:
                self._show_photos(self.datamodule)
        else:
            self._print(f"Rankings: {self.model.run_folder.predictions('predict')}")

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
        self._print(f"Metrics: {folder.metrics(stage)}   Predictions: {folder.predictions(stage)}")

    def _print(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line)


def run_lightning(arguments: Sequence[str]) -> int:
    """Run fit, validate, test or predict.

    Returns:
        The exit code: 0, or 1 if another process of the run has ended.

    Raises:
        UserError, argparse.ArgumentError, OSError, UnicodeError: a mistake in what was typed or supplied.
    """
    _prepare()
    try:
        CLI(arguments)
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        if not reported_by_another():
            print(f"lad_pl: {LOST}", file=sys.stderr)
        return FAILED
    return 0


def _parser_settings(commands: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of the parsers; where no configuration or model is named, commands run the embedded demo."""
    settings: dict[str, Any] = {
        "prog": "lad_pl",
        "exit_on_error": False,
        "description": "Measure and remove position bias of multi-image vision-language models. `python -m lad_pl "
        "--help` lists all commands.",
    }
    settings |= {command: {"description": LIGHTNING_COMMANDS[command]} for command in commands}
    named = {argument.partition("=")[0] for argument in arguments}
    # Nor does a help show the demo's values, as if they were everybody's defaults.
    if not named & {"-c", "--config", "--model", "--model.vlm", "--model.vlm.path", "-h", "--help", "--help-all"}:
        for command in commands:
            settings[command]["default_config_files"] = [str(asset("configs/demo.yaml"))]
    return settings


def _prepare() -> None:
    """Let attribute docstrings become help texts; hide expected warnings of the libraries."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module="PIL")  # of odd EXIF blocks and large photos; what is broken is an error
