"""Every shipped configuration runs, with tiny random weights in place of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from families import FAMILIES, Family
from paths import CONFIGS
from tiny_vlm import write_noise_images

from lad_pl.cli import main
from lad_pl.vlm.layers import DecoderLayers

FAMILY_OF = {
    "gemma3": "gemma3",
    "internvl": "internvl",
    "llava-4b": "llavaonevision1_5",
    "llava-8b": "llavaonevision1_5",
    "qwen": "qwen2_5_vl",
    "qwen3-vl": "qwen3_vl",
    "smolvlm": "smolvlm",
}


def test_every_configuration_of_a_published_model_is_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*FAMILY_OF, "demo", "demo-hard"}


@pytest.mark.parametrize(
    ("name", "kinds", "layers"),
    [
        ("qwen", ["full_attention"] * 36, range(21, 36)),
        ("internvl", ["full_attention"] * 28, range(21, 28)),
        ("llava-4b", ["full_attention"] * 36, range(21, 36)),
        ("llava-8b", ["full_attention"] * 36, range(21, 36)),
        ("qwen3-vl", ["full_attention"] * 36, range(21, 36)),
        ("gemma3", [*[*["sliding_attention"] * 5, "full_attention"] * 5, *["sliding_attention"] * 4], (17, 23, 29)),
        ("smolvlm", ["full_attention"] * 24, range(14, 24)),
    ],
)
def test_the_layers_of_a_configuration_at_the_published_depth(name: str, kinds: list[str], layers: list[int]) -> None:
    choice = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["layers"]
    decoder = DecoderLayers(tuple(torch.nn.Identity() for _ in kinds), tuple(kinds))
    assert decoder.choose(choice) == tuple(layers)


def tiny_weights(family: Family, folder: Path) -> list[str]:
    """Options that put a tiny checkpoint of the same class in place of the configuration's model."""
    return [
        f"--model.vlm.path={family.build(folder)}",
        "--model.vlm.dtype=float32",
        "--model.layers=0.0",  # a tiny model has fewer layers than the configuration names
        "--model.cpu_threads=1",
    ]


@pytest.mark.parametrize("name", sorted(FAMILY_OF))
def test_a_configuration_runs(name: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == FAMILY_OF[name])
    photos = write_noise_images(tmp_path / "photos", 8, sizes=((60, 90), (90, 60), (80, 80)))
    samples = [
        {"id": i, "image_ids": [photos[(i + j) % 8].name for j in range(4)], "index": i % 4, "caption": f"picture {i}"}
        for i in range(5)
    ]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    options = [
        f"--config={CONFIGS / name}.yaml",
        *tiny_weights(family, tmp_path / "model"),
        f"--data.annotations={tmp_path / 'samples.json'}",
        f"--data.images={tmp_path / 'photos'}",
        "--data.num_calibration=2",
        "--data.num_permutations=2",
        "--data.num_workers=0",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", *options]) == 0
    assert main(["test", *options]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["num_samples"] == 3
    prompt = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"].get("prompt", {})
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["prompt"]
    assert used.items() >= prompt.items()
