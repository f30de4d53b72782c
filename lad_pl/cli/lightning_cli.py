"""fit, validate, test and predict: LightningCLI with this toolkit's module and data."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.enums import LightningEnum
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lad_pl.analysis.photo_ranking import rank_photos, ranking_table, write_contact_sheet
from lad_pl.analysis.table import metrics_table, recall_table
from lad_pl.calibrate import lines, load_calibration
from lad_pl.cli.commands import LIGHTNING_COMMANDS
from lad_pl.cli.configuration import with_configs
from lad_pl.cli.parser import StrictParser, with_paths
from lad_pl.cli.photo_options import HELP, add_photo_options, translated
from lad_pl.cli.safety import check_appended, check_typed
from lad_pl.cli.stage_help import CKPT_PATH, StageHelp
from lad_pl.data import MultiImageData, PhotoData
from lad_pl.errors import UserError, printable, say
from lad_pl.files import asset, atomic_write, expanded
from lad_pl.module import AttentionGuidedDebiasing
from lad_pl.run.folder import RunFolder
from lad_pl.run.processes import FAILED, LOST, is_lost_contact, reported_by_another
from lad_pl.vlm.layers import parse_range

PHOTO_OPTIONS = tuple(name.removeprefix("--") for name in HELP)
# Options of this name are paths, whatever class they belong to.
_PATHS = (
    *("annotations", "images", "calibration_annotations", "validation_annotations", "photos", "ckpt_path"),
    *("default_root_dir", "save_dir", "dirpath", "cache_dir", "offload_folder"),
)
_FEWER = "for fewer samples, set --data.num_calibration (fit) or --data.num_test (test, predict)"
_NO_LIMITS = (
    f"leave the trainer's limit_..._batches, fast_dev_run, max_epochs, max_steps and max_time as they are; {_FEWER}"
)

_LIBRARIES = ("lightning", "lightning_fabric", "lightning_utilities", "jsonargparse", "torch", "torchmetrics")
"""Lightning, and what it calls."""
_HARMLESS = ("--trainer.default_root_dir", "--trainer.enable_progress_bar", "--trainer.accelerator")

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
    ".*predict returned None.*",
)


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` once the run folder is known to be this configuration's."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Too early: the module has not yet looked at the run folder."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the configuration, as any of the commands can read it again."""
        if trainer.is_global_zero:
            config = self.config.clone()
            for name in ("ckpt_path", "model.overwrite", *PHOTO_OPTIONS):  # of this one run
                config.pop(name, None)
            text = self.parser.dump(config, skip_none=False, skip_validation=True)
            with atomic_write(pl_module.run_folder.path / self.config_filename) as path:
                path.write_text(text, encoding="utf-8")

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = on_train_start


class StageParser(StrictParser, LightningArgumentParser):
    """Of fit, validate, test and predict."""


class CLI(LightningCLI):
    """fit, validate, test and predict.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        typed, self.contact_sheet = translated(with_configs(arguments))
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
            parser_class=StageParser,
            parser_kwargs=_parser_settings(self._commands, typed),
            args=typed,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and check the command line."""
        super().parse_arguments(parser, args)
        command = self.config.subcommand
        self.config[command] = checked(self.config[command], args)

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
        """Group photos by the N that the calibration holds for; refuse processes that cannot be given the model."""
        config = self.config[self.config.subcommand]
        if str(config.trainer.strategy).endswith("_spawn"):
            raise UserError(f"trainer.strategy {config.trainer.strategy} cannot hand on the model; use ddp.")
        if config.data.class_path == "lad_pl.data.PhotoData" and config.data.init_args.group_size is None:
            path = config.get("ckpt_path") or RunFolder(config.trainer.default_root_dir).calibration
            config.data.init_args.group_size = load_calibration(path)[0].num_candidates

    def _parse_ckpt_path(self) -> None:
        """Check ``--ckpt_path`` in place of Lightning, which would fail with a traceback."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None:
            load_calibration(path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        path = self.config[subcommand].get("ckpt_path")
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": path, **_DECIDED[subcommand]}

    def after_fit(self) -> None:
        """Print what the calibration samples tell, and where the calibration is."""
        if not self.model.provenance:
            raise UserError(f"Nothing was calibrated on; {_NO_LIMITS}.")
        report = self.model.provenance
        for line in lines(self.model.calibration.of_rows(self.model.readout.rows)):
            self._print(line)
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
        say(f"Rankings: {folder.rankings}   Prompts: {folder.predictions('predict')}")
        if self.contact_sheet is not None:
            write_contact_sheet(self.contact_sheet, rankings)
            say(f"Contact sheet: {self.contact_sheet}")

    def _show(self, stage: str) -> None:
        folder = self.model.run_folder
        if not (self.model.report and self.model.report["num_samples"]):
            raise UserError(f"Nothing was measured; {_NO_LIMITS}.")
        if self.trainer.is_global_zero:
            Console().print(metrics_table(self.model.report, self.model.costs), recall_table(self.model.report))
        self._print(f"Metrics: {folder.metrics(stage)}   Predictions: {folder.predictions(stage)}")

    def _print(self, line: str) -> None:
        if self.trainer.is_global_zero:
            say(line)


def checked(config: Namespace, arguments: Sequence[str]) -> Namespace:
    """A command's configuration with ``~`` and variables in paths replaced.

    Args:
        config: of the command, as parsed.
        arguments: of the command line, which alone may turn on some of it.

    Raises:
        UserError: a configuration file has what counts on the command line alone, a variable is not set, or
            ``model.layers`` names no layers.
    """
    for name in PHOTO_OPTIONS:  # typed ones have become options of the data
        if config.get(name) is not None:
            raise UserError(f"A configuration file sets {name}, which counts only as --{name} on the command line.")
    check_typed(config, arguments)
    check_appended(config, arguments)
    if isinstance(config.model.layers, str):
        parse_range(config.model.layers)  # now, and not once the model is loaded
    config.model.vlm.path = expanded(config.model.vlm.path)
    return with_paths(config, _PATHS)


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
    except Exception as error:
        if is_lost_contact(error):
            if not reported_by_another():
                print(f"lad_pl: {LOST}", file=sys.stderr)
            return FAILED
        refused = _refusal(error, arguments)
        if refused is None:
            raise
        raise refused from error
    return 0


def _refusal(error: Exception, arguments: Sequence[str]) -> UserError | ArgumentError | None:
    """What to report if Lightning has refused an option, wherever it did so; None of any other exception.

    Where code of this toolkit or of the user's classes takes part in an exception, it may be a mistake there, and the
    traceback tells where. Only that a configuration is impossible is said by one kind of exception alone.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    origin = chain[-1]
    modules = [name for each in chain for name in _modules(each)]
    impossible = isinstance(origin, MisconfigurationException)
    if not all(_is_library(name) or (impossible and name.startswith("lad_pl.")) for name in modules):
        return None
    innermost = _modules(origin)[-1].partition(".")[0]
    if innermost == "jsonargparse":  # which keeps the text of some exceptions, and not themselves
        classes = re.findall(r"Problem with given class_path '([^']+)'", str(error))
        return ArgumentError(None, str(error)) if all(map(_is_library, classes)) else None
    message = " ".join(str(origin).split()) or type(origin).__name__
    files = isinstance(origin, OSError | UnicodeError) or message.startswith("embedded null ")
    if innermost == __name__.partition(".")[0] or files:
        return None
    if isinstance(origin, ImportError):
        return UserError(f"The trainer's options do not work here: {message}. Install it, or leave the option out.")
    options = [f"--trainer.{name}" for name in signature(pl.Trainer).parameters if re.search(rf"\b{name}\b", message)]
    typed = _typed_trainer_options(arguments)
    named = [name for name, value in typed.items() if name in options or re.search(rf"\b{re.escape(value)}\b", message)]
    suspected = named or [name for name in typed if name not in _HARMLESS] or options
    remedy = f" Change or leave out {' or '.join(suspected) or 'what is set under trainer'}"
    if any(re.match(r"--trainer\.(limit_|overfit_|fast_)", name) for name in suspected):
        remedy += f"; {_FEWER}"
    return UserError(f"The trainer's options do not work here: {message.rstrip('.!')}.{remedy}.")


def _typed_trainer_options(arguments: Sequence[str]) -> dict[str, str]:
    """The Trainer's options on the command line, with their values."""
    typed = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("--trainer."):
            typed[name.rstrip("+")] = value if equals else following
    return typed


def _modules(error: BaseException) -> list[str]:
    """The modules whose code was running, from here to where an exception was raised."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [str(frame.f_globals.get("__name__", "")) for frame in frames] or [__name__]


def _is_library(module: str) -> bool:
    package = module.partition(".")[0]
    return module == __name__ or package in _LIBRARIES or package in sys.stdlib_module_names


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
    """Let attribute docstrings become help texts, read no configuration from a network; hide expected warnings."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True, config_read_mode_fsspec_enabled=False)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Lightning's enumerations are defaults of its callbacks (Timer), and configurations are written out as YAML.
    yaml.SafeDumper.add_multi_representer(LightningEnum, lambda dumper, member: dumper.represent_str(member.value))
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = _as_warning
    warnings.filterwarnings("ignore", module="PIL")  # of odd EXIF blocks and large photos; what is broken is an error


def _as_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Warnings of lad_pl without the line of code that gives them."""
    if category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
        return f"lad_pl: {printable(str(message))}\n"
    return _PLAIN(message, category, filename, lineno, line)


_PACKAGE = Path(__file__).parents[1]
_PLAIN = warnings.formatwarning
