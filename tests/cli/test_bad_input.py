"""Mistakes in options, files, images and calibrations: one line that says what to do, and no result lost."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from commands import fails, run, write_annotations

from lad_pl import AttentionGuidedDebiasing, VLMSpec


def edit(tmp_path: Path, number: int, **changes: object) -> None:
    path = tmp_path / "data" / "annotations.json"
    samples = json.loads(path.read_text())
    samples[number] |= changes
    path.write_text(json.dumps([{k: v for k, v in s.items() if v is not ...} for s in samples]))


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (3, {"index": 3}, "sample 3 (id 3): index is 3, outside its 3 images (0 to 2)"),
        (3, {"index": -1}, "sample 3 (id 3): index is -1"),
        (3, {"index": ...}, "Sample 3 has no index"),
        (2, {"image_ids": ["000.png", "001.png"], "index": 0}, "sample 2 has 2 images, sample 0 has 3"),
        (2, {"caption": ...}, "sample 2 (id 2) lacks 'caption'"),
        (2, {"caption": 7}, "sample 2 (id 2): caption must be a text"),
        (2, {"image_ids": "000.png"}, "image_ids must be a list"),
        (2, {"id": 1}, "the id 1 occurs twice"),
    ],
)
def test_bad_annotations(fitted_run, tmp_path, capsys, number: int, changes: dict, message: str) -> None:
    edit(tmp_path, number, **changes)
    assert message in fails(capsys, "test", *fitted_run)


def test_a_missing_image_is_found_before_anything_is_computed(options, tmp_path, capsys) -> None:
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    (tmp_path / "data" / samples[7]["image_ids"][2]).unlink()
    line = fails(capsys, "test", *options)
    assert "Sample 7: image file" in line
    assert "data.images" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_keeps_what_was_computed(fitted_run, tmp_path, capsys, workers: int) -> None:
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    image = tmp_path / "data" / samples[7]["image_ids"][2]  # of the last sample only
    content = bytearray(image.read_bytes())
    content[content.index(b"IDAT") + 4] = 0  # which neither the header nor the end tells
    image.write_bytes(content)
    line = fails(capsys, "test", *fitted_run, f"--data.num_workers={workers}")
    assert "Sample 7: image file" in line
    assert image.name in line
    (part,) = (tmp_path / "run").glob("evidence.parquet.parts-*/*")
    done = part.read_bytes()
    assert "Sample 7: image file" in fails(capsys, "test", *fitted_run)
    assert part.read_bytes() == done  # nothing is computed twice


def test_numbers_that_do_not_fit(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "3 images have only 6 orders" in fails(capsys, "fit", *options, "--data.num_permutations=7")
    assert "has 8 samples, too few for 9" in fails(capsys, "fit", *options, "--data.num_calibration=9")
    assert "data.batch_size is 0" in fails(capsys, "fit", *options, "--data.batch_size=0")
    late = "--model.layers 0.58 reads the late ones of every model: 3 to 5 here, 21 to 35 of 36"
    assert f"names layer 6, but the model has layers 0 to 5; {late}" in fails(
        capsys, "fit", *options, "--model.layers=2-6"
    )
    assert "only 1 layers are captured" in fails(capsys, "fit", *options, "--model.layers=[2]")
    assert "No readout is chosen" in fails(capsys, "fit", *options, "--model.readouts=[]")
    assert "cpu_threads is 0" in fails(capsys, "fit", *options, "--model.cpu_threads=0")
    assert "cannot be filled in" in fails(capsys, "fit", *options, "--model.prompt.template={caption:d}")
    assert "set model.vlm.dtype instead" in fails(capsys, "fit", *options, "--trainer.precision=bf16-true")
    assert "is not a readout" in fails(capsys, "fit", *options, "--model.readouts=[agdd]")
    assert "top_layers is 0" in fails(capsys, "fit", *options, "--model.readout.top_layers=0")
    assert "asks for 7" in fails(capsys, "test", *options, "--data.num_test=7")
    assert "no validation set" in fails(capsys, "validate", *options)


def test_files_that_are_not_there(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "fit", *options, "--data.annotations=nowhere.json")
    assert "Cannot read nowhere.json: No such file or directory" in line
    (tmp_path / "data" / "broken.json").write_text('[{"id": 1,')
    assert "not valid JSON" in fails(capsys, "fit", *options, f"--data.annotations={tmp_path / 'data' / 'broken.json'}")
    assert "path/to/folder" in fails(capsys, "fit", *options, "--model.vlm.path=models/nowhere")


def test_unfitted(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "test", *options)
    assert "There is no calibration at" in line
    assert "run fit first" in line


def test_a_calibration_from_another_file(fitted_run, tmp_path, capsys) -> None:
    """Nothing of a file is held back for a calibration on another file; the user is asked to say so."""
    (tmp_path / "more").mkdir()
    other = f"--data.annotations={write_annotations(tmp_path / 'more', 6, caption='Other noise')}"
    assert "2 samples of" in fails(capsys, "test", *fitted_run, other)
    assert run("test", *fitted_run, other, "--data.num_calibration=0") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_samples"] == 6


def test_a_limited_run_can_be_resumed(options, tmp_path, capsys) -> None:
    line = fails(capsys, "fit", *options, "--trainer.limit_train_batches=1")
    assert "3 of 6 prompts have no evidence" in line
    assert "Run the same command again to go on, without trainer.limit_" in line
    assert run("fit", *options) == 0
    assert "16 of 24 prompts have no evidence" in fails(capsys, "test", *options, "--trainer.limit_test_batches=2")
    assert run("test", *options) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_samples"] == 6


def test_output_that_is_not_finite(fitted_run, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from lad_pl.types import Evidence
    from lad_pl.vlm import VisionLanguageModel

    sound = VisionLanguageModel.evidence

    def overflown(self, batch, *arguments):
        evidence = sound(self, batch, *arguments)
        return Evidence.from_heads(evidence.log_probs * (torch.nan if "6" in batch.ids else 1), evidence.attention)

    monkeypatch.setattr(VisionLanguageModel, "evidence", overflown)
    assert "Sample 6: the model's output is not finite" in fails(capsys, "test", *fitted_run)


def test_another_chat_template_is_another_prompt(fitted_run, tiny_folder, tmp_path, capsys) -> None:
    import shutil

    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    assert run("test", *fitted_run, f"--model.vlm.path={copy}") == 0  # a copy is the same model
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "fair"))
    assert "(processor: " in fails(capsys, "test", *fitted_run, f"--model.vlm.path={copy}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("--model.layers=[2,3,4]", "layers: [2, 3, 4, 5] there, [2, 3, 4] here"),
        ("--model.prompt.identifiers=upper", "prompt.identifiers: 'digits' there, 'upper' here"),
        ("--model.prompt.image_size=56", "prompt.image_size: 84 there, 56 here"),
        ("--model.prompt.spans=visual", "prompt.spans: 'delimiters' there, 'visual' here"),
    ],
)
def test_a_foreign_calibration(fitted_run, capsys, change: str, field: str) -> None:
    line = fails(capsys, "test", *fitted_run, change)
    assert f"The calibration does not match this configuration ({field})" in line
    assert "Run fit" in line


def test_a_calibration_of_other_weights_or_another_n(fitted_run, tmp_path, capsys) -> None:
    from tiny_vlm import build_tiny_qwen

    other = build_tiny_qwen(tmp_path / "other-model", seed=2)
    assert "(weights: " in fails(capsys, "test", *fitted_run, f"--model.vlm.path={other}")
    (tmp_path / "more").mkdir()
    annotations = write_annotations(tmp_path / "more", 8, n=4)
    assert "(num_candidates: 3 there, 4 here)" in fails(
        capsys, "test", *fitted_run, f"--data.annotations={annotations}"
    )


def test_a_file_that_is_no_calibration(options, tmp_path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "calibration.ckpt").write_bytes(b"not a checkpoint")
    assert "cannot be read as a calibration" in fails(capsys, "test", *options)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "run" / "calibration.ckpt")
    assert "no calibration of this toolkit" in fails(capsys, "test", *options)


def test_calibration_samples_are_not_tested_on_unless_allowed(fitted_run, tmp_path, capsys) -> None:
    shifted = [*fitted_run, "--data.calibration_offset=4"]
    assert "2 samples of" in fails(capsys, "test", *shifted)  # are reserved, and others were calibrated on
    assert run("test", *shifted, "--data.allow_calibration_in_test=true") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_held_back"] == 0


def test_a_run_folder_of_another_configuration(fitted_run, tmp_path, capsys) -> None:
    assert run("test", *fitted_run) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    line = fails(capsys, "test", *fitted_run, "--model.readout.temperature=2")
    assert "readout.temperature: 5.0 there, 2.0 here" in line
    assert "--trainer.default_root_dir" in line
    assert "layers" in fails(capsys, "fit", *fitted_run, "--model.layers=[3,4]")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert run("test", *fitted_run, "--model.readout.temperature=2", "--model.overwrite=true") == 0
    assert run("test", *fitted_run, "--model.readout.temperature=2") == 0  # the same again is no other configuration
    saved = f"--config={tmp_path / 'run' / 'config.yaml'}"  # in which overwrite is not remembered
    assert "readout.temperature: 2.0 there, 3.0 here" in fails(capsys, "test", saved, "--model.readout.temperature=3")


def test_bare_dataloaders_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from lad_pl import UserError

    module = AttentionGuidedDebiasing(VLMSpec(str(tiny_folder)))
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    with pytest.raises(UserError, match="MultiImageData"):
        trainer.test(module, dataloaders=[[1]])
