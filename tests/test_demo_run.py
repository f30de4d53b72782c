"""The embedded demo through the command line: offline, and with the bias and the correction that the README shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from paths import CONFIGS

from lad_pl.cli import main
from lad_pl.files import asset

SHIPPED = sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What `python -m lad_pl fit` and `test` leave behind, typed in an empty folder; 60 of the 300 samples."""
    if not (asset("checkpoints/demo-vlm") / "model.safetensors").exists():
        pytest.skip("the demo model is not here")
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit"]) == 0
        assert main(["test", "--data.num_test=60"]) == 0
        assert main(["validate", "--model.readouts=[vanilla]"]) == 0
        hard = ["--data.num_candidates=8", "--data.difficulty=adversarial", "--trainer.default_root_dir=hard"]
        assert main(["fit", *hard]) == 0
        assert main(["test", *hard, "--data.num_test=60"]) == 0
    files = {"easy": "checkpoints/demo/metrics.json", "hard": "hard/metrics.json"}
    reports = {name: json.loads((folder / path).read_text()) for name, path in files.items()}
    assert json.loads((folder / "checkpoints/demo/validation_metrics.json").read_text())["num_samples"] == 105
    return reports


@pytest.mark.parametrize("set_name", ["easy", "hard"])
def test_the_model_answers_by_position(demo: dict[str, dict], set_name: str) -> None:
    vanilla = demo[set_name]["readouts"]["vanilla"]
    assert vanilla["accuracy"] < 0.9
    assert vanilla["rstd"] > 0.1
    assert vanilla["consistency"] < 0.6


@pytest.mark.parametrize("set_name", ["easy", "hard"])
@pytest.mark.parametrize("readout", ["agd", "purified_attention", "head_information"])
def test_attention_corrects_it(demo: dict[str, dict], set_name: str, readout: str) -> None:
    vanilla, corrected = (demo[set_name]["readouts"][name] for name in ("vanilla", readout))
    assert corrected["accuracy"] > vanilla["accuracy"] + 0.1
    assert corrected["rstd"] < vanilla["rstd"] / 2
    assert corrected["consistency"] > vanilla["consistency"] + 0.2


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The readouts of the hard demo, N = 4 adversarial; 60 of the 300 samples."""
    if not (asset("checkpoints/demo-hard-vlm") / "model.safetensors").exists():
        pytest.skip("the hard demo model is not here")
    folder = tmp_path_factory.mktemp("demo-hard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = f"--config={CONFIGS / 'demo-hard.yaml'}"
        assert main(["fit", config]) == 0
        assert main(["test", config, "--data.num_test=60"]) == 0
    return json.loads((folder / "checkpoints/demo-hard/metrics.json").read_text())["readouts"]


def test_the_hard_model_answers_by_position_and_above_chance(hard: dict[str, dict]) -> None:
    assert 0.3 < hard["vanilla"]["accuracy"] < 0.8
    assert hard["vanilla"]["rstd"] > 0.1


def test_the_hard_demo_leaves_room_above_agd(hard: dict[str, dict]) -> None:
    assert hard["vanilla"]["accuracy"] + 0.1 < hard["agd"]["accuracy"] < 0.95


@pytest.mark.parametrize("config", SHIPPED, ids=[path.stem for path in SHIPPED])
@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_every_shipped_configuration_parses(config: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--print_config checks every name and type; qwen.yaml and demo.yaml also run, in tests/cli and above."""
    with pytest.raises(SystemExit) as exit_info:
        main([command, f"--config={config}", "--print_config"])
    assert exit_info.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["vlm"]["path"] == yaml.safe_load(config.read_text())["model"]["vlm"]["path"]
