"""fit, validate, test and predict, from options to result files: a tiny random Qwen2.5-VL on photographs or noise."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import reference
import torch
import yaml
from commands import QUIET, fails, run
from paths import CONFIGS
from tiny_vlm import build_photo_annotations

from lad_pl import AttentionGuidedDebiasing, MultiImageData, VLMSpec
from lad_pl.cli import lightning_cli, main

READOUTS = ["vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information"]


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


def test_the_files_agree_with_each_other_and_with_the_reference(fitted_run: list[str], tmp_path: Path) -> None:
    assert run("test", *fitted_run) == 0
    check_run_folder(tmp_path / "run", samples=6, permutations=4, candidates=3, layers=4)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["layers"] == "2-5"


def test_the_checkpoint_is_small_and_holds_no_code(fitted_run: list[str], tmp_path: Path) -> None:
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


def test_trainer_from_python_does_the_same(fitted_run: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    assert run("test", *fitted_run) == 0
    from lad_pl import PromptSpec

    module = AttentionGuidedDebiasing(
        VLMSpec(str(tiny_folder), dtype="float32"), PromptSpec(image_size=84), layers="2-5"
    )
    data = MultiImageData(str(tmp_path / "data" / "annotations.json"), num_calibration=2, num_permutations=4)
    trainer = pl.Trainer(
        default_root_dir=tmp_path / "python", accelerator="cpu", logger=False, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=data)  # default max_epochs: stops by itself after one epoch
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


def test_workers_and_batch_size_change_nothing(fitted_run: list[str], tmp_path: Path) -> None:
    assert run("test", *fitted_run) == 0
    other = [*fitted_run, "--data.batch_size=4", "--data.num_workers=2"]
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


def test_every_readout_in_either_recipe(fitted_run: list[str], tmp_path: Path) -> None:
    from lad_pl.readouts import READOUTS as ALL

    for recipe in ("reference", "paper"):
        every = [f"--model.readouts=[{','.join(ALL)}]", f"--model.readout.recipe={recipe}", "--model.overwrite=true"]
        assert run("test", *fitted_run, *every) == 0
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert list(metrics["readouts"]) == list(ALL)


def test_predict_ranks_prompts_without_answers(fitted_run: list[str], tmp_path: Path) -> None:
    path = tmp_path / "data" / "unknown.json"
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    for sample in samples:
        del sample["index"]
    path.write_text(json.dumps(samples[2:]))  # all of them are ranked: none is held back
    assert run("predict", *fitted_run, f"--data.annotations={path}") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predict_predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all(row["target"] is None and sorted(row["ranking"]) == [0, 1, 2] for row in rows)
    for row in rows:
        assert row["permutation"][row["choices"]["agd"]] == row["ranking"][0]


def test_validate_uses_its_own_files(fitted_run: list[str], tmp_path: Path) -> None:
    samples = json.loads((tmp_path / "data" / "annotations.json").read_text())
    (tmp_path / "data" / "validation.json").write_text(json.dumps(samples[4:]))
    assert run("validate", *fitted_run, f"--data.validation_annotations={tmp_path / 'data' / 'validation.json'}") == 0
    assert json.loads((tmp_path / "run" / "validation_metrics.json").read_text())["num_samples"] == 4
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_configs_compose(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "extra.yaml").write_text("model: {readouts: [vanilla, agd]}\n")
    assert run("fit", *options, f"--config={tmp_path / 'extra.yaml'}") == 0
    assert run("test", *options, f"--config={tmp_path / 'extra.yaml'}") == 0
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text())["readouts"]) == ["vanilla", "agd"]


def test_a_calibration_from_elsewhere_by_ckpt_path(fitted_run: list[str], tmp_path: Path, capsys) -> None:
    elsewhere = [*fitted_run, f"--trainer.default_root_dir={tmp_path / 'other'}"]
    assert run("test", *elsewhere, f"--ckpt_path={tmp_path / 'run' / 'calibration.ckpt'}") == 0
    assert (tmp_path / "other" / "metrics.json").exists()
    assert "There is no calibration at nowhere.ckpt" in fails(capsys, "test", *fitted_run, "--ckpt_path=nowhere.ckpt")


def test_a_saved_configuration_can_be_used_again(options: list[str], tmp_path: Path) -> None:
    assert run("fit", *options) == 0
    assert run("test", *options, f"--ckpt_path={tmp_path / 'run' / 'calibration.ckpt'}") == 0
    assert run("fit", f"--config={tmp_path / 'run' / 'config.yaml'}") == 0


def test_captions_with_any_character(options, tmp_path) -> None:
    caption = 'a "dog"\u2028on {grass}\x85 \n </script> <|im_end|>'
    path = tmp_path / "data" / "annotations.json"
    samples = json.loads(path.read_text())
    samples[5]["caption"] = caption
    path.write_text(json.dumps(samples))
    assert run("fit", *options) == 0
    assert run("test", *options) == 0
    with (tmp_path / "run" / "predictions.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 24
    assert {row["caption"] for row in rows if row["id"] == "5"} == {caption}


def test_the_question_of_a_calibration_sample_is_not_tested_in_another_file(fitted_run, tmp_path) -> None:
    """Sets built together share captions and correct images, as COCO's random and adversarial ones do."""
    first = tmp_path / "data" / "annotations.json"
    samples = json.loads(first.read_text())
    names = sorted({name for sample in samples for name in sample["image_ids"]})
    for sample in samples:  # the same question among other images
        correct = sample["image_ids"][sample["index"]]
        sample["image_ids"] = [correct, *[name for name in names if name != correct][:2]]
        sample["index"] = 0
    (tmp_path / "data" / "other.json").write_text(json.dumps(samples))
    other = [f"--data.annotations={tmp_path / 'data' / 'other.json'}", f"--data.calibration_annotations={first}"]
    assert run("test", *fitted_run, *other) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {str(number) for number in range(2, 8)}


def test_a_calibration_from_elsewhere_holds_its_questions_back(fitted_run, tmp_path, capsys) -> None:
    """The samples are chosen when the calibration is known, that of --ckpt_path too, and num_test counts after it."""
    first = tmp_path / "data" / "annotations.json"
    samples = json.loads(first.read_text())
    question = samples[1]
    correct = question["image_ids"][question["index"]]
    others = [image for sample in samples[4:] for image in sample["image_ids"] if image != correct]
    samples.append({"id": "again", "image_ids": [f"./{correct}", others[0], others[-1]], "index": 0})
    samples[-1]["caption"] = question["caption"]
    elsewhere = [
        *fitted_run,
        f"--ckpt_path={tmp_path / 'run' / 'calibration.ckpt'}",
        f"--trainer.default_root_dir={tmp_path / 'other'}",
        "--data.num_calibration=0",
    ]
    first.write_text(json.dumps([samples[-1], *samples[:-1]]))
    for _ in range(2):  # the second time from stored evidence
        assert run("test", *elsewhere, "--data.num_test=3") == 0
        assert "3 of 9 samples ask a calibration sample's question and are held back." in capsys.readouterr().out
    metrics = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert (metrics["num_samples"], metrics["num_held_back"]) == (3, 3)
    rows = [json.loads(line) for line in (tmp_path / "other" / "predictions.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["id"] for row in rows)) == ["2", "3", "4"]


def test_data_workers_carry_no_model(options, tiny_folder, tmp_path) -> None:
    import pickle

    module = AttentionGuidedDebiasing(VLMSpec(str(tiny_folder), dtype="float32"), layers="2-5")
    data = MultiImageData(str(tmp_path / "data" / "annotations.json"), num_calibration=2)
    trainer = pl.Trainer(default_root_dir=tmp_path / "python", accelerator="cpu", logger=False, max_epochs=1)
    trainer.fit(module, datamodule=data)
    loader = data.train_dataloader()
    weights = (tiny_folder / "model.safetensors").stat().st_size
    assert len(pickle.dumps((loader.dataset, loader.collate_fn))) < weights / 10


def test_attention_that_knows_nothing_is_said(options, tmp_path, capsys) -> None:
    """A model with random weights: three lines of fit, and a warning of whatever reads its attention."""
    several = [*options, "--data.num_calibration=4"]
    assert main(["fit", *several]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:3]] == ["Logits", "Attention", "Single heads"]
    assert "no better than chance" in printed[1]
    with pytest.warns(UserWarning, match="On 4 calibration samples the attention.*no better than chance"):
        assert main(["test", *several, "--model.readouts=[vanilla,agd]"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            main(
                ["test", *several, "--model.readouts=[vanilla,auto]", "--model.rank_by=auto", "--model.overwrite=true"]
            )
            == 0
        )
    shown = warnings.formatwarning("text", UserWarning, str(Path(lightning_cli.__file__)), 1)
    assert shown == "lad_pl: text\n"
