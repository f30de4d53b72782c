"""``--help`` of fit, validate, test and predict: the options of model, data and run, then the Trainer's that matter.

LightningCLI's parser lists the Trainer's 40 options first, and the data's options in one line. That listing is
``--help-all``; ``--help`` prints a second parser, which parses nothing.
"""

from __future__ import annotations

import argparse
import textwrap
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lad_pl.cli.photo_options import add_photo_options
from lad_pl.data import DemoData, MultiImageData, PhotoData
from lad_pl.methods import METHODS
from lad_pl.module import AttentionGuidedDebiasing
from lad_pl.readouts import READOUTS
from lad_pl.vlm import VLMSpec

CKPT_PATH = "Calibration file to use; the run folder's own if unset."
DATA_CLASSES = (MultiImageData, DemoData, PhotoData)
"""``--data`` takes the bare name of a class that has been imported: of these."""
_NOTE = "Required options may come from --config. Without --config and --model.vlm.path, the embedded demo runs."
_TITLES = {
    "model.vlm": "Model",
    "model": "Layers, readouts and methods",
    "model.prompt": "Prompt",
    "model.readout": "Settings of the readouts",
    "model.method": "Settings of the methods",
}
_TRAINER: dict[str, tuple[Any, str, str]] = {
    "default_root_dir": ("checkpoints/run", "FOLDER", "Run folder for all files."),
    "accelerator": ("auto", "NAME", "cpu, gpu or mps."),
    "devices": ("auto", "DEVICES", "How many devices, or which, as [0,2]."),
    "num_nodes": (1, "COUNT", "How many machines."),
    "strategy": ("auto", "NAME", "ddp: a copy of the model per device."),
    "enable_progress_bar": (True, "{true,false}", "Show a progress bar."),
    "logger": (False, "LOGGER", "Lightning's logger for the metrics."),
    "callbacks": (None, "CALLBACKS", "Further callbacks."),
}


class StageHelp(argparse._HelpAction):
    """Print the short help of one command and exit.

    The data options are those of the class that ``--data`` or ``--config`` names before ``--help``, else those of
    MultiImageData.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print and exit."""
        named = namespace.get("data.class_path")
        data = resolve_name(named) if named else MultiImageData
        help_parser(parser.subcommand, parser.description, data).print_help()
        parser.exit()


def help_parser(command: str, summary: str, data: type[MultiImageData]) -> ArgumentParser:
    """The parser whose help is printed.

    Args:
        command: fit, validate, test or predict.
        summary: what the command does.
        data: the class whose parameters are the data options.
    """
    usage, description = f"lad_pl {command} [options]", f"{summary} {_NOTE}"
    parser = ArgumentParser(usage=usage, description=description, add_help=False, formatter_class=_Formatter)
    parser.add_class_arguments(VLMSpec, "model.vlm")
    parser.add_class_arguments(AttentionGuidedDebiasing, "model", skip={"vlm"})
    parser.add_class_arguments(data, "data", fail_untyped=False)
    assert parser.groups is not None
    for name, title in _TITLES.items():
        parser.groups[name].title = title
    parser.groups["data"].title = f"Data ({data.__name__})"
    parser.groups["data"].add_argument(
        "--data.help", metavar="CLASS", help="Show the options of another class and exit."
    )
    if command == "predict":
        add_photo_options(parser.add_argument_group("Photos, in place of data"))
    _add_run_options(parser.add_argument_group("Run"), command)
    trainer = parser.add_argument_group("Lightning's Trainer (--help-all lists the rest)")
    for name, (default, metavar, text) in _TRAINER.items():
        trainer.add_argument(f"--trainer.{name}", default=default, metavar=metavar, help=text)
    names = ", ".join(known.__name__ for known in DATA_CLASSES)
    _describe(parser, "data", f"{names}, or the import path of your own class.", "CLASS")
    _describe(parser, "model.readouts", f"Readouts to report: {', '.join(READOUTS)}.")
    _describe(parser, "model.methods", f"Methods with forward passes of their own: {', '.join(METHODS)}.")
    return parser


def _add_run_options(group: Any, command: str) -> None:
    group.add_argument("--config", metavar="FILE", help="YAML file of options; may be repeated, the last value counts.")
    group.add_argument("--print_config", action="store_true", default=None, help="Print all settings and exit.")
    if command != "fit":
        group.add_argument("--ckpt_path", metavar="FILE", help=CKPT_PATH)
    group.add_argument(
        "--seed_everything", metavar="SEED", default=False, help="Seed; true draws one, false sets none."
    )
    group.add_argument("--help-all", action="help", help="Show all options, with their types, and exit.")


def _describe(parser: ArgumentParser, option: str, text: str, metavar: str | None = None) -> None:
    action = next(action for action in parser._actions if action.dest == option)
    action.help, action.metavar = text, metavar or action.metavar


class _Formatter(DefaultHelpFormatter):
    """Descriptions and defaults; simple types alone, no files for a group of options, no ``+`` forms of lists."""

    def add_argument(self, action: argparse.Action) -> None:
        if action.metavar != "CONFIG":
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = str(action.help).replace("``", "")
        text = text[:1].upper() + text[1:]
        if action.required:
            return f"{text} (required)"
        if action.default in (None, argparse.SUPPRESS):
            return text
        return f"{text} (default: {_as_typed(action.default)})"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = (self._get_type_str(action) or "").removesuffix(" | null")
        return {"int": "INT", "float": "FLOAT", "str": "TEXT"}.get(kind, "VALUE")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).split(", ")[0]


def _as_typed(value: Any) -> str:
    """A default as one would type it.

    >>> _as_typed(True), _as_typed(("vanilla", "agd"))
    ('true', '[vanilla, agd]')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
