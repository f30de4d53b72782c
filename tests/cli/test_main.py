"""The command line from fit to result files, on a tiny random Qwen2.5-VL and real or noise photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import reference
import torch
import yaml
from commands import QUIET, fails, run, write_annotations
from paths import CONFIGS
from tiny_vlm import build_photo_annotations

from lad_pl import AttentionGuidedDebiasing, MultiImageData, VLMSpec
from lad_pl.cli import main

READOUTS = ["vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information"]


@pytest.fixture
def options(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """A model, eight samples of three images, a run folder."""
    (tmp_path / "data").mkdir()
    return [
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        "--model.layers=2-5",
        f"--data.annotations={write_annotations(tmp_path / 'data', 8)}",
        "--data.num_calibration=2",
        "--data.num_permutations=4",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        *QUIET,
    ]


# ---------------------------------------------------------------------------------------------------- the main job


def test_real_photographs_from_fit_to_files(photos_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """configs/qwen.yaml with a local folder of that class, real photographs and their captions."""
    annotations = build_photo_annotations(tmp_path, 12, 4)
    config = CONFIGS / "qwen.yaml"
    options = [
        f"--config={config}",
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.layers=3-5",
        f"--data.annotations={annotations}",
        f"--data.images={photos_folder / 'coco'}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        *QUIET,
    ]
    assert run("fit", *options) == 0
    assert run("test", *options) == 0
    check_run_folder(tmp_path / "run", samples=7, permutations=5, candidates=4, layers=3)


def check_run_folder(folder: Path, samples: int, permutations: int, candidates: int, layers: int) -> None:
    assert {"config.yaml", "calibration.ckpt", "metrics.json", "predictions.jsonl"} <= {
        p.name for p in folder.iterdir()
    }
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == samples * permutations
    for row in rows:
        assert sorted(row["permutation"]) == list(range(candidates)) == sorted(row["ranking"])
        assert np.exp(row["log_probs"]).sum() == pytest.approx(1, abs=1e-5)
        assert np.array(row["attention"]).shape == (layers, candidates)
        assert set(row["choices"]) == set(READOUTS)
        assert row["choices"]["vanilla"] == int(np.argmax(row["log_probs"]))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_samples"] == samples
    assert metrics["num_permutations"] == permutations
    assert metrics["num_candidates"] == candidates
    targets = np.array([row["target"] for row in rows]).reshape(samples, permutations)
    orders = np.array([row["permutation"] for row in rows]).reshape(samples, permutations, candidates)
    for name in READOUTS:
        choices = np.array([row["choices"][name] for row in rows]).reshape(samples, permutations)
        values = metrics["readouts"][name]
        mean, std = reference.accuracy(choices, targets)
        assert values["accuracy"] == pytest.approx(mean)
        assert values["accuracy_std"] == pytest.approx(std)
        assert values["rstd"] == pytest.approx(reference.rstd(choices, targets, candidates))
        assert values["consistency"] == pytest.approx(reference.consistency(choices, orders))
        assert values["circular_accuracy"] == pytest.approx(reference.circular_accuracy(choices, targets))
        recall = [np.nan if r is None else r for r in values["recall_by_position"]]
        np.testing.assert_allclose(recall, reference.recall_by_position(choices, targets, candidates))


def test_the_files_agree_with_each_other_and_with_the_reference(options: list[str], tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    assert run("test", *options) == 0
    check_run_folder(tmp_path / "run", samples=6, permutations=4, candidates=3, layers=4)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["layers"] == "2-5"


def test_the_checkpoint_is_small_and_holds_no_code(options: list[str], tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    path = tmp_path / "run" / "calibration.ckpt"
    assert path.stat().st_size < 50_000
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"] == {}
    assert checkpoint["calibration"]["attention_prior"].shape == (4, 3)
    provenance = checkpoint["provenance"]
    assert provenance["layers"] == [2, 3, 4, 5]
    assert provenance["num_candidates"] == 3
    assert provenance["num_samples"] == 2
    assert provenance["prompt"]["identifiers"] == "digits"
    assert provenance["versions"]["torch"]


def test_trainer_from_python_does_the_same(options: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    assert run("test", *options) == 0
    from lad_pl import PromptSpec

    module = AttentionGuidedDebiasing(
        VLMSpec(str(tiny_folder), dtype="float32"), PromptSpec(image_size=84), layers="2-5"
    )
    data = MultiImageData(str(tmp_path / "data" / "annotations.json"), num_calibration=2, num_permutations=4)
    trainer = pl.Trainer(
        default_root_dir=tmp_path / "python", accelerator="cpu", logger=False, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=data)  # default max_epochs: stops by itself after the one pass
    results = trainer.test(module, datamodule=data, verbose=False)
    for name in ("metrics.json", "predictions.jsonl"):
        assert (tmp_path / "python" / name).read_text() == (tmp_path / "run" / name).read_text()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results[0]["agd/accuracy"] == pytest.approx(metrics["readouts"]["agd"]["accuracy"])


def test_fitting_twice_in_python_calibrates_anew(options: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    module = AttentionGuidedDebiasing(VLMSpec(str(tiny_folder), dtype="float32"), layers="2-5")
    data = MultiImageData(str(tmp_path / "data" / "annotations.json"), num_calibration=2)
    priors = []
    for _ in range(2):
        trainer = pl.Trainer(default_root_dir=tmp_path / "python", accelerator="cpu", logger=False, max_epochs=1)
        trainer.fit(module, datamodule=data)
        assert module.calibration is not None
        priors.append(module.calibration.attention_prior)
    assert torch.equal(*priors)


def test_workers_and_batch_size_change_nothing(options: list[str], tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    assert run("test", *options) == 0
    other = [*options, "--data.batch_size=4", "--data.num_workers=2"]
    other[other.index(f"--trainer.default_root_dir={tmp_path / 'run'}")] = (
        f"--trainer.default_root_dir={tmp_path / 'b'}"
    )
    assert run("fit", *other) == 0
    assert run("test", *other) == 0
    for one, two in zip(*((tmp_path / f / "predictions.jsonl").open() for f in ("run", "b")), strict=True):
        first, second = json.loads(one), json.loads(two)
        assert first["id"] == second["id"]
        np.testing.assert_allclose(first["log_probs"], second["log_probs"], atol=1e-4)
        np.testing.assert_allclose(first["attention"], second["attention"], atol=1e-5)


def test_every_readout_in_either_recipe(options: list[str], tmp_path: Path) -> None:
    from lad_pl.readouts import READOUTS as ALL

    assert run("fit", *options) == 0
    for recipe in ("reference", "paper"):
        every = [f"--model.readouts=[{','.join(ALL)}]", f"--model.readout.recipe={recipe}", "--model.overwrite=true"]
        assert run("test", *options, *every) == 0
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert list(metrics["readouts"]) == list(ALL)


def test_predict_ranks_prompts_without_answers(options: list[str], tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    path = tmp_path / "data" / "unknown.json"
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    for sample in samples:
        del sample["index"]
    path.write_text(json.dumps(samples[2:]))  # all of them are ranked: none is held back
    assert run("predict", *options, f"--data.annotations={path}") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all(row["target"] is None and sorted(row["ranking"]) == [0, 1, 2] for row in rows)
    for row in rows:
        assert row["permutation"][row["choices"]["agd"]] == row["ranking"][0]


def test_validate_uses_its_own_files(options: list[str], tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    (tmp_path / "data" / "validation.json").write_text(json.dumps(samples[4:]))
    assert run("validate", *options, f"--data.validation_annotations={tmp_path / 'data' / 'validation.json'}") == 0
    assert json.loads((tmp_path / "run" / "validation_metrics.json").read_text())["num_samples"] == 4
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_configs_compose(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "extra.yaml").write_text("model: {readouts: [vanilla, agd]}\n")
    assert run("fit", *options, f"--config={tmp_path / 'extra.yaml'}") == 0
    assert run("test", *options, f"--config={tmp_path / 'extra.yaml'}") == 0
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text())["readouts"]) == ["vanilla", "agd"]


def test_a_calibration_from_elsewhere_by_ckpt_path(options: list[str], tmp_path: Path, capsys) -> None:
    assert run("fit", *options) == 0
    elsewhere = [*options, f"--trainer.default_root_dir={tmp_path / 'other'}"]
    assert run("test", *elsewhere, f"--ckpt_path={tmp_path / 'run' / 'calibration.ckpt'}") == 0
    assert (tmp_path / "other" / "metrics.json").exists()
    assert "There is no calibration at nowhere.ckpt" in fails(capsys, "test", *options, "--ckpt_path=nowhere.ckpt")


# -------------------------------------------------------------------------------------------------------- bad input


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
def test_bad_annotations(options, tmp_path, capsys, number: int, changes: dict, message: str) -> None:
    assert run("fit", *options) == 0
    edit(tmp_path, number, **changes)
    assert message in fails(capsys, "test", *options)


def test_a_missing_image_is_noticed_before_anything_is_computed(options, tmp_path, capsys) -> None:
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    (tmp_path / "data" / samples[7]["image_ids"][2]).unlink()
    line = fails(capsys, "test", *options)
    assert "Sample 7: image file" in line
    assert "data.images" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_keeps_what_was_computed(options, tmp_path, capsys, workers: int) -> None:
    assert run("fit", *options) == 0
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    image = tmp_path / "data" / samples[7]["image_ids"][2]  # of the last sample only
    image.write_bytes(image.read_bytes()[:60])
    line = fails(capsys, "test", *options, f"--data.num_workers={workers}")
    assert "Sample 7: image file" in line
    assert image.name in line
    (part,) = (tmp_path / "run").glob("evidence.parquet.parts-*/*")
    done = part.read_bytes()
    assert "Sample 7: image file" in fails(capsys, "test", *options)
    assert part.read_bytes() == done  # nothing is computed twice


def test_numbers_that_do_not_fit(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "3 images have only 6 orders" in fails(capsys, "fit", *options, "--data.num_permutations=7")
    assert "has 8 samples, too few for 9" in fails(capsys, "fit", *options, "--data.num_calibration=9")
    assert "data.batch_size is 0" in fails(capsys, "fit", *options, "--data.batch_size=0")
    assert "names layer 6" in fails(capsys, "fit", *options, "--model.layers=2-6")
    assert "captures only 1" in fails(capsys, "fit", *options, "--model.layers=[2]")
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
    assert "Cannot read the annotation file nowhere.json" in line
    (tmp_path / "data" / "broken.json").write_text('[{"id": 1,')
    assert "not valid JSON" in fails(capsys, "fit", *options, f"--data.annotations={tmp_path / 'data' / 'broken.json'}")
    assert "path/to/folder" in fails(capsys, "fit", *options, "--model.vlm.path=models/nowhere")


def test_unfitted(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "test", *options)
    assert "There is no calibration at" in line
    assert "run fit first" in line


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("--model.no_such=1", "unrecognized arguments: --model.no_such=1"),
        ("--model.readout.top_layers=two", "Expected a <class 'int'>. Got value: two"),
        ("--data.no_such=1", "Option 'no_such' is not accepted"),
        ("--data=NoClass", "NoClass"),
        ("--config=nowhere.yaml", "File does not exist"),
        ("--trainer.accelerator=abacus", "The trainer's options do not work here"),
        ("--trainer.strategy=ddq", "The trainer's options do not work here"),
        ("--trainer.limit_train_batches=0", "Nothing was calibrated on"),
    ],
)
def test_mistyped_options(options, capsys, mistake: str, message: str) -> None:
    assert message in fails(capsys, "fit", *options, mistake)


def test_the_newcomers_first_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name a model with --config or --model.vlm.path" in fails(capsys, "fit", "--data.annotations=my.json")


def test_captions_with_any_character(options, tmp_path, capsys) -> None:
    caption = 'a "dog"\u2028on {grass}\x85 \n </script> <|im_end|>'
    edit(tmp_path, 5, caption=caption)
    assert run("fit", *options) == 0
    assert run("test", *options) == 0
    with (tmp_path / "run" / "predictions.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 24
    assert {row["caption"] for row in rows if row["id"] == "5"} == {caption}


def test_a_calibration_from_another_file(options, tmp_path, capsys) -> None:
    """Nothing of a file is held back for a calibration that was made elsewhere, unless somebody knows it."""
    assert run("fit", *options) == 0
    (tmp_path / "more").mkdir()
    other = f"--data.annotations={write_annotations(tmp_path / 'more', 6, caption='Other noise')}"
    assert "2 samples of" in fails(capsys, "test", *options, other)
    assert run("test", *options, other, "--data.num_calibration=0") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_samples"] == 6


def test_what_a_calibration_sample_asks_is_not_tested_in_another_file(options, tmp_path) -> None:
    """Sets built together share captions and right images, as COCO's random and adversarial ones do."""
    assert run("fit", *options) == 0
    first = tmp_path / "data" / "annotations.json"
    samples = json.loads(first.read_text())
    names = sorted({name for sample in samples for name in sample["image_ids"]})
    for sample in samples:  # the same question among other images
        right = sample["image_ids"][sample["index"]]
        sample["image_ids"] = [right, *[name for name in names if name != right][:2]]
        sample["index"] = 0
    (tmp_path / "data" / "other.json").write_text(json.dumps(samples))
    other = [f"--data.annotations={tmp_path / 'data' / 'other.json'}", f"--data.calibration_annotations={first}"]
    assert run("test", *options, *other) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {str(number) for number in range(2, 8)}


def test_limits_leave_a_run_to_be_gone_on_with(options, tmp_path, capsys) -> None:
    line = fails(capsys, "fit", *options, "--trainer.limit_train_batches=1")
    assert "3 of 6 prompts have no evidence" in line
    assert "Run the same command again to go on, without trainer.limit_" in line
    assert run("fit", *options) == 0
    assert "16 of 24 prompts have no evidence" in fails(capsys, "test", *options, "--trainer.limit_test_batches=2")
    assert run("test", *options) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_samples"] == 6


def test_output_that_is_not_finite(options, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from lad_pl.types import Evidence
    from lad_pl.vlm import VisionLanguageModel

    assert run("fit", *options) == 0
    sound = VisionLanguageModel.evidence

    def overflown(self, batch, *arguments):
        evidence = sound(self, batch, *arguments)
        return Evidence.from_heads(evidence.log_probs * (torch.nan if "6" in batch.ids else 1), evidence.attention)

    monkeypatch.setattr(VisionLanguageModel, "evidence", overflown)
    assert "Sample 6: the model's output is not finite" in fails(capsys, "test", *options)


def test_another_chat_template_is_another_prompt(options, tiny_folder, tmp_path, capsys) -> None:
    import shutil

    assert run("fit", *options) == 0
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    assert run("test", *options, f"--model.vlm.path={copy}") == 0  # a copy is the same model
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "fair"))
    assert "(processor: " in fails(capsys, "test", *options, f"--model.vlm.path={copy}")


def test_data_workers_carry_no_model(options, tiny_folder, tmp_path) -> None:
    import pickle

    module = AttentionGuidedDebiasing(VLMSpec(str(tiny_folder), dtype="float32"), layers="2-5")
    data = MultiImageData(str(tmp_path / "data" / "annotations.json"), num_calibration=2)
    trainer = pl.Trainer(default_root_dir=tmp_path / "python", accelerator="cpu", logger=False, max_epochs=1)
    trainer.fit(module, datamodule=data)
    loader = data.train_dataloader()
    weights = (tiny_folder / "model.safetensors").stat().st_size
    assert len(pickle.dumps((loader.dataset, loader.collate_fn))) < weights / 10


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("--model.layers=[2,3,4]", "layers: [2, 3, 4, 5] there, [2, 3, 4] here"),
        ("--model.prompt.identifiers=upper", "prompt.identifiers: 'digits' there, 'upper' here"),
        ("--model.prompt.image_size=56", "prompt.image_size: 84 there, 56 here"),
        ("--model.prompt.spans=visual", "prompt.spans: 'delimiters' there, 'visual' here"),
    ],
)
def test_a_foreign_calibration(options, capsys, change: str, field: str) -> None:
    assert run("fit", *options) == 0
    line = fails(capsys, "test", *options, change)
    assert f"The calibration does not match this configuration ({field})" in line
    assert "Run fit" in line


def test_a_calibration_of_other_weights_or_another_n(options, tmp_path, capsys) -> None:
    from tiny_vlm import build_tiny_qwen

    assert run("fit", *options) == 0
    other = build_tiny_qwen(tmp_path / "other-model", seed=2)
    assert "(weights: " in fails(capsys, "test", *options, f"--model.vlm.path={other}")
    (tmp_path / "more").mkdir()
    annotations = write_annotations(tmp_path / "more", 8, n=4)
    assert "(num_candidates: 3 there, 4 here)" in fails(capsys, "test", *options, f"--data.annotations={annotations}")


def test_a_file_that_is_no_calibration(options, tmp_path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "calibration.ckpt").write_bytes(b"not a checkpoint")
    assert "cannot be read as a calibration" in fails(capsys, "test", *options)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "run" / "calibration.ckpt")
    assert "no calibration of this toolkit" in fails(capsys, "test", *options)


def test_calibration_samples_are_not_tested_on_unless_asked_for(options, tmp_path, capsys) -> None:
    assert run("fit", *options) == 0
    shifted = [*options, "--data.calibration_offset=4"]
    assert "Sample 0 was used for calibration" in fails(capsys, "test", *shifted)
    assert run("test", *shifted, "--data.allow_calibration_in_test=true") == 0


def test_a_run_folder_of_another_configuration(options, tmp_path, capsys) -> None:
    assert run("fit", *options) == 0
    assert run("test", *options) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    line = fails(capsys, "test", *options, "--model.readout.temperature=2")
    assert "readout.temperature: 5.0 there, 2.0 here" in line
    assert "--trainer.default_root_dir" in line
    assert "layers" in fails(capsys, "fit", *options, "--model.layers=[3,4]")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert run("test", *options, "--model.readout.temperature=2", "--model.overwrite=true") == 0
    assert run("test", *options, "--model.readout.temperature=2") == 0  # the same again is no other configuration


def test_bare_dataloaders_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from lad_pl import UserError

    module = AttentionGuidedDebiasing(VLMSpec(str(tiny_folder)))
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    with pytest.raises(UserError, match="MultiImageData"):
        trainer.test(module, dataloaders=[[1]])


# ------------------------------------------------------------------------------------------------------ as a process


def test_help_and_exit_codes_of_the_process(tmp_path: Path) -> None:
    def lad_pl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lad_pl", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    fit = lad_pl("fit", "--help")
    assert fit.returncode == 0
    told = " ".join(fit.stdout.split())
    assert "--model.vlm.path" in told
    assert "decoder layers whose attention is captured" in told
    assert "how many of the captured layers" in told
    missing = lad_pl("test")
    assert missing.returncode == 2
    assert missing.stderr.strip().splitlines()[-1].startswith("lad_pl: There is no calibration")
    assert "Traceback" not in missing.stderr


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "fit Calibrate on a few samples." in told
    assert "predict Rank the images of prompts whose answer nobody knows." in told


def test_a_saved_configuration_can_be_used_again(options: list[str], tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    assert run("test", *options, f"--ckpt_path={tmp_path / 'run' / 'calibration.ckpt'}") == 0
    assert run("fit", f"--config={tmp_path / 'run' / 'config.yaml'}") == 0
