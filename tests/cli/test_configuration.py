"""Configurations: their YAML, values that no option has, paths, and what only the command line may say."""

from __future__ import annotations

import inspect
import random
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from commands import fails
from jsonargparse import ArgumentParser, Namespace, capture_parser
from paths import ROOT

from lad_pl import AttentionGuidedDebiasing, MultiImageData, PromptSpec, ReadoutSettings, UserError, VLMSpec
from lad_pl.cli.configuration import SECTIONS, MalformedText, load
from lad_pl.cli.lightning_cli import CLI, _prepare, checked
from lad_pl.cli.parser import Parser
from lad_pl.cli.safety import check_typed
from lad_pl.files import expanded
from lad_pl.methods import MethodSettings

BASE = {
    "model": {"vlm": {"path": "demo"}},
    "data": {"class_path": "lad_pl.data.MultiImageData", "init_args": {"annotations": "a.json"}},
}
CLASSES = {
    "model": AttentionGuidedDebiasing,
    "model.vlm": VLMSpec,
    "model.prompt": PromptSpec,
    "model.readout": ReadoutSettings,
    "model.method": MethodSettings,
    "data.init_args": MultiImageData,
}


@pytest.fixture(scope="module")
def parsers() -> Callable[[str], ArgumentParser]:
    """The parser of a command, built once."""
    _prepare()
    built: dict[str, ArgumentParser] = {}

    def parser(command: str) -> ArgumentParser:
        if command not in built:
            built[command] = capture_parser(lambda: CLI([command, "--config=x"]))
        return built[command]

    return parser


@pytest.fixture
def parse(parsers: Callable[[str], ArgumentParser], tmp_path: Path) -> Callable[..., Namespace]:
    """Parses options after a small configuration, and further values as a second configuration file."""

    def parse(*options: str, more: Any = None, command: str = "test") -> Namespace:
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
        arguments = [command, f"--config={tmp_path / 'base.yaml'}"]
        if more is not None:
            (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
            arguments.append(f"--config={tmp_path / 'more.yaml'}")
        arguments += options
        return checked(parsers(command).parse_args(arguments)[command], arguments)

    return parse


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def option_types() -> Iterator[tuple[str, Any]]:
    """Every option of the classes by its dotted name, with its type as it stands in the source."""
    for section, kind in CLASSES.items():
        hints = get_type_hints(kind if is_dataclass(kind) else kind.__init__)
        for name in inspect.signature(kind).parameters:
            if f"{section}.{name}" not in CLASSES:
                yield f"{section}.{name}", hints[name]


def test_null_is_refused_wherever_the_type_has_none(parse, parsers) -> None:
    types = dict(option_types())
    without = [name for name, kind in types.items() if NoneType not in get_args(kind)]
    assert len(types) > 45
    assert len(without) > 30
    config = parse()
    for name in without:
        changed = config.clone()
        changed[name] = None
        with pytest.raises((UserError, TypeError), match=name.rpartition(".")[2]) as caught:
            parsers("test").validate(Namespace(subcommand="test", test=changed))
        assert "is null" in str(caught.value) or "required" in str(caught.value)
    for name in types.keys() - without:
        config[name] = None
    parsers("test").validate(Namespace(subcommand="test", test=config))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.vlm.path", r"required: .*model\.vlm\.path"),
        ("model.readout.recipe", "model.readout.recipe is null"),
        ("model.readouts", "model.readouts is null"),
        ("data.init_args.num_calibration", "num_calibration is null"),
        ("trainer.devices", "trainer.devices is null"),
        ("seed_everything", "seed_everything is null"),
    ],
)
def test_null_in_a_file(parse, name: str, message: str) -> None:
    with pytest.raises((UserError, ArgumentError), match=message):
        parse(more=nested(name, None))


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_hold_options(parse, section: str) -> None:
    for value, message in ((None, "null"), ([1], r"\[1\]|Not a valid")):
        with pytest.raises((UserError, ArgumentError), match=f"(?s){section}.*({message})"):
            parse(more=nested(section, value))


def test_a_section_that_says_nothing_changes_nothing(parse) -> None:
    assert parse(more={"model": {"readout": {}}, "data": {}}) == parse(more={"model": {}})


@pytest.mark.parametrize(
    "name", ["model.readout.temperature", "model.method.sofa_sigma", "model.layers", "model.prompt.images_kwargs"]
)
def test_numbers_are_finite(parse, name: str) -> None:
    for number in (float("-inf"), float("nan")):
        value: Any = {"max_pixels": number} if name.endswith("kwargs") else number
        with pytest.raises(UserError, match=f"{name}.* must be a finite number"):
            parse(more=nested(name, value))


def test_numbers_that_overflow(parse) -> None:
    with pytest.raises(UserError, match="temperature is inf; it must be a finite number"):
        parse("--model.readout.temperature=1e400")
    with pytest.raises(UserError, match=r"cpu_threads is 1\.000e\+40, which is too large"):
        parse(f"--model.cpu_threads={10**40}")


class OwnData(MultiImageData):
    """A user's own data.

    Args:
        limit: the largest size; inf for none.
        weight: of a sample.
        options: of MultiImageData.
    """

    def __init__(self, limit: float = 1.0, weight: float = 1.0, **options: Any) -> None:
        super().__init__(**options)


def test_the_options_of_ones_own_classes_are_checked_too(parse) -> None:
    own = {"class_path": f"{__name__}.OwnData", "init_args": {"annotations": "a.json", "limit": float("inf")}}
    assert parse(more={"data": own}).data.init_args.limit == float("inf")  # its description allows it
    for wrong in ({"weight": float("inf")}, {"weight": None}, {"num_workers": None}, {"limit": float("nan")}):
        with pytest.raises((UserError, ArgumentError), match=next(iter(wrong))):
            parse(more={"data": {**own, "init_args": {**own["init_args"], **wrong}}})


def test_null_within_the_models_own_options_is_passed_on(parse) -> None:
    config = parse(more={"model": {"prompt": {"images_kwargs": {"max_pixels": None}}}})
    assert config.model.prompt.images_kwargs == {"max_pixels": None}


# ------------------------------------------------------------------------------------------------------- YAML texts


def bomb(levels: int, width: int) -> str:
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(12, 9), "aliases"),
        (yaml.safe_dump({"model": {"cpu_threads": bomb(9, 9)}}), "aliases"),
        ("[" * 5000, "levels deep"),
        ("{a: " * 5000, "levels deep"),
        ("a: &a [*a]", "names nothing that is complete"),
        ("a: !!python/object/apply:os.getcwd []", "tag"),
        ("model: !include other.yaml", "tag"),
        ("model:\n\trank_by: agd", "line 2"),
        ("model: [1, 2", "line 2: did not find"),
        ("a: " + "9" * 5000, "digits"),
        ("data: {init_args: null}", "init_args is empty"),
        ("data: {class_path: 3}", "class_path is 3"),
    ],
)
def test_a_text_that_is_no_configuration(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(text, "my.yaml")


def test_a_key_that_stands_twice_is_named_with_its_lines() -> None:
    draw = random.Random(3)
    for _ in range(20):
        depth, before, between = draw.randrange(6), draw.randrange(5), draw.randrange(5)
        lines = [f"{'  ' * level}level{level}:" for level in range(depth)]
        keys = [*(f"before{n}" for n in range(before)), "twice", *(f"between{n}" for n in range(between)), "twice"]
        text = "\n".join([*lines, *(f"{'  ' * depth}{key}: 1" for key in keys)])
        first, second = depth + before + 1, depth + before + between + 2
        with pytest.raises(UserError, match=f"my.yaml: 'twice' stands twice, in lines {first} and {second}"):
            load(text, "my.yaml")


def test_what_yaml_allows_is_read() -> None:
    assert load("\ufeffmodel: {rank_by: agd}", "my.yaml") == {"model": {"rank_by": "agd"}}
    merged = load("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]", "my.yaml")
    assert merged["b"] == {"x": 1, "y": 3}
    assert load("a: {k: 1}\nb: {k: 1}\nc: [{k: 1}, {k: 1}]", "my.yaml")["c"] == [{"k": 1}, {"k": 1}]
    assert load("x: 1e1", "my.yaml") == {"x": 10.0}
    with pytest.raises(MalformedText):  # jsonargparse takes an option's value as a text then
        load("Image: {n}\nImage: {caption}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"null", "is empty"),
        (b"model:\n", "model is empty"),
        (b"- a\n", "holds no options"),
        (b"hello", "holds no options"),
        ("model: {rank_by: caf\u00e9}".encode("latin-1"), "no UTF-8 text"),
        ("model: {rank_by: agd}".encode("utf-16"), "no UTF-8 text"),
        (bytes(range(256)), "no UTF-8 text"),
        (b"model: {}\nmodel: {}\n", "stands twice"),
        (
            b"model: {readout: {temperature: 1}}\nmodel.readout.temperature: 3\n",
            "temperature stands twice, by its section",
        ),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    line = fails(capsys, "fit", f"--config={path}")
    assert line.startswith(f"lad_pl: {path}")
    assert message in line


def test_a_configuration_that_is_not_there(tmp_path: Path, capsys) -> None:
    assert "is a folder" in fails(capsys, "fit", "--config", str(tmp_path))
    assert "File does not exist" in fails(capsys, "fit", "-c", str(tmp_path / "no.yaml"))
    assert "NOWHERE, which is not set" in fails(capsys, "fit", "-c", "$NOWHERE/no.yaml")


def test_files_for_a_part_of_the_configuration(parse, tmp_path: Path) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text("image_size: 32")
    assert parse(f"--model.prompt={path}").model.prompt.image_size == 32
    for text, message in (("image_size: 32\nimage_size: 33", "lines 1 and 2"), ("template: null", "template is null")):
        path.write_text(text)
        with pytest.raises((UserError, ArgumentError), match=message):
            parse(f"--model.prompt={path}")
    path.write_text("class_path: lad_pl.data.DemoData\nclass_path: lad_pl.data.PhotoData")
    with pytest.raises((UserError, ArgumentError), match="stands twice, in lines 1 and 2"):
        parse(f"--data={path}")
    path.write_text(bomb(12, 9))
    with pytest.raises(UserError, match="aliases"):
        parse(f"--data={path}")


# ------------------------------------------------------------------------------- lists, mistyped options, old files


def test_values_are_added_to_the_default(parse) -> None:
    defaults = parse().model.readouts
    assert parse("--model.readouts+=batch_calibration").model.readouts == [*defaults, "batch_calibration"]
    assert parse("--model.methods+=sofa").model.methods == ["sofa"]
    assert parse("--model.layers=[1]", "--model.layers+=3").model.layers == [1, 3]
    assert parse("--model.layers+", "3", more={"model": {"layers": [2]}}).model.layers == [2, 3]
    with pytest.raises(UserError, match="adds to a list"):
        parse("--model.layers+=3", more={"model": {"layers": "1-2"}})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--model.readots=[agd]", "--model.readouts"),
        ("--model.readout.temp=3", "--model.readout.temperature"),
        ("--trainer.default_rot_dir=x", "--trainer.default_root_dir"),
        ("--data.num_tests=3", "num_test"),
    ],
)
def test_a_mistyped_option_is_recognised(parse, typed: str, meant: str) -> None:
    with pytest.raises((UserError, ArgumentError), match=rf"did you mean {meant}\?"):
        parse(typed)


def test_layers_are_read_before_the_model(parse) -> None:
    with pytest.raises(UserError, match="layers is 'abc'"):
        parse("--model.layers=abc")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_reads_the_configuration_of_a_run(parsers, fitted: Path, command: str) -> None:
    old = ROOT / "tests" / "old_run" / "finished" / "config.yaml"
    for path in (fitted / "run" / "config.yaml", old):
        arguments = [command, f"--config={path}"]
        config = checked(parsers(command).parse_args(arguments)[command], arguments)
        saved = yaml.safe_load(path.read_text())
        assert config.model.vlm.path == saved["model"]["vlm"]["path"]
        assert config.model.prompt.system is None
    assert "overwrite" not in yaml.safe_load((fitted / "run" / "config.yaml").read_text())["model"]


# ------------------------------------------------------------------------------------------------------------ paths


def test_home_and_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SETS", "/sets")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)
    cases = {"~/a": "/home/me/a", "$SETS/a": "/sets/a", "${SETS}/b c": "/sets/b c", "x/~": "x/~", "a$": "a$", "": ""}
    assert {path: expanded(path) for path in cases} == cases
    with pytest.raises(UserError, match="UNSET, which is not set"):
        expanded("$UNSET/a")
    for folder in ("$UNSET", "~", "$SETS"):
        (tmp_path / folder).mkdir()
        assert expanded(f"{folder}/a") == f"{folder}/a"  # it is called that


def test_paths_in_files_and_on_the_command_line(parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SETS", "/sets")
    more = {
        "model": {"vlm": {"path": "$SETS/model", "options": {"cache_dir": "~/hub"}}, "prompt": {"system": "$SETS"}},
        "data": {"init_args": {"annotations": "$SETS/a.json", "images": "~/photos"}},
        "trainer": {"default_root_dir": "~/run"},
    }
    config = parse("--ckpt_path=$SETS/c.ckpt", "--data.validation_annotations", "${SETS}/v.json", more=more)
    assert (config.model.vlm.path, config.ckpt_path) == ("/sets/model", "/sets/c.ckpt")
    assert config.model.vlm.options == {"cache_dir": "/home/me/hub"}
    assert config.model.prompt.system == "$SETS"  # no path
    data = config.data.init_args
    assert (data.annotations, data.images) == ("/sets/a.json", "/home/me/photos")
    assert data.validation_annotations == "/sets/v.json"
    assert config.trainer.default_root_dir == "/home/me/run"
    with pytest.raises(UserError, match="UNSET, which is not set"):
        parse("--trainer.default_root_dir=$UNSET/run")


def test_paths_of_the_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETS", "/sets")

    def command(runs: list[Path], out: Path | None = None, images: str = ".", columns: dict[str, str] | None = None):
        """A command."""

    parser = Parser()
    parser.add_function_arguments(command, as_group=False)
    parsed = parser.parse_args(["--runs=[$SETS/a, b]", "--out=$SETS/o", "--images=$SETS/i", "--columns={a: $SETS}"])
    assert (parsed.runs, parsed.out, parsed.images) == ([Path("/sets/a"), Path("b")], Path("/sets/o"), "/sets/i")
    assert parsed.columns == {"a": "$SETS"}


# ----------------------------------------------------------------------------------------- what may run others' code


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trust_remote_code", True),
        ("options.trust_remote_code", True),
        ("attn_implementation", "kernels-community/flash-attn"),
        ("attn_implementation", "paged|somebody/kernel:function"),
        ("attn_implementation", '{"text_config": "somebody/kernel"}'),
        ("options.attn_implementation", {"text_config": "somebody/kernel"}),
        ("options.experts_implementation", "somebody/kernel"),
        ("options.use_kernels", True),
        ("options.kernel_config", {"RMSNorm": "somebody/kernel:RMSNorm"}),
        ("options.code_revision", "main"),
        ("options.weights_only", False),
    ],
)
def test_code_of_others_is_asked_for_on_the_command_line(name: str, value: Any) -> None:
    config = Namespace(model=Namespace(vlm=Namespace(nested(name, value))))
    with pytest.raises(UserError, match="can run code of others"):
        check_typed(config, ["fit", "--config=x.yaml"])
    typed = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
    check_typed(config, ["fit", f"--model.vlm.{name}={typed}"])
    check_typed(config, ["fit", "--model.vlm", yaml.safe_dump(nested(name, value), default_flow_style=True)])
    with pytest.raises(UserError, match=f"--model.vlm.*{name.rpartition('.')[2]}"):
        check_typed(config, ["fit", "--model.vlm.dtype=float32"])


def test_what_runs_no_code_may_stand_in_a_file(parse, tmp_path: Path) -> None:
    harmless = {
        "trust_remote_code": False,
        "attn_implementation": "eager",
        "options": {"quantization_config": {"load_in_4bit": True}, "use_kernels": False, "variant": "a/b"},
    }
    assert parse(more={"model": {"vlm": harmless}}).model.vlm.attn_implementation == "eager"
    (tmp_path / "vlm.yaml").write_text("path: demo\ntrust_remote_code: true")
    with pytest.raises(UserError, match="trust_remote_code true yourself"):
        parse(f"--model.vlm={tmp_path / 'vlm.yaml'}")
    assert parse(f"--model.vlm={tmp_path / 'vlm.yaml'}", "--model.vlm.trust_remote_code", "true")
    assert not parse(
        f"--model.vlm={tmp_path / 'vlm.yaml'}", "--model.vlm.trust_remote_code=false"
    ).model.vlm.trust_remote_code
