"""Methods with forward passes of their own, through the command line, against plain calls of what they are made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import QUIET, fails, write_annotations
from families import qwen2_5_vl
from PIL import Image
from subject import Subject

from lad_pl import PromptSpec, VisionLanguageModel
from lad_pl.cli import main
from lad_pl.data.permutations import cyclic_shifts, random_permutations
from lad_pl.evidence.store import read_prompts
from lad_pl.methods.contextual_calibration import icr_scores
from lad_pl.methods.instruction import INSTRUCTION
from lad_pl.prompts.answer_parsing import majority, read_choice
from lad_pl.prompts.template import BASE_TEMPLATE
from lad_pl.types import PermutedSample, Sample
from lad_pl.vlm.sofa import Sofa

METHODS = (
    *("instruction", "cot", "self_consistency", "permutation_average", "permutation_average_random", "sofa"),
    *("sofa_paper", "contextual_calibration", "contextual_attention_over", "contextual_attention_minus", "icr"),
)
N, T, LAYERS, TESTED = 3, 2, (2, 3, 4, 5), 4


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples of three images under two permutations, by every method."""
    folder = tmp_path_factory.mktemp("run")
    options = [
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        "--model.layers=2-5",
        f"--model.methods=[{','.join(METHODS)}]",
        "--model.method.thought_tokens=8",
        "--model.method.chain_tokens=6",
        "--model.method.chains=3",
        "--model.method.averaged_orders=4",
        "--model.method.sofa_sigma=0.25",
        f"--data.annotations={write_annotations(folder, TESTED + 1)}",
        "--data.num_calibration=1",
        f"--data.num_permutations={T}",
        "--data.batch_size=2",
        f"--trainer.default_root_dir={folder}",
        *QUIET,
    ]
    for command in ("fit", "test"):
        assert main([command, *options]) == 0
    return folder


@pytest.fixture(scope="module")
def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def scores(records: list[dict], method: str) -> np.ndarray:
    return np.array([record["scores"][method] for record in records])


def plain_evidence(
    run: Path, vlm: VisionLanguageModel, record: dict, orders, template=BASE_TEMPLATE, caption=None, **options
):
    """Evidence of one tested sample, in these orders of its annotated images, by a plain call of the model."""
    images = tuple(
        Image.open(run / name).convert("RGB").resize((84, 84), Image.Resampling.BICUBIC) for name in record["images"]
    )
    encoder = vlm.encoder(PromptSpec(template=template, image_size=84))
    sample = Sample(record["id"], tuple(record["images"]), caption or record["caption"], 0)
    batch = encoder([PermutedSample(sample, 0, tuple(map(tuple, orders)), images)])
    return vlm.evidence(batch, encoder.answer_trie(N), LAYERS, **options)


def test_instruction_is_the_prompt_with_a_sentence_before_it(run, records, tiny_vlm) -> None:
    for record, found in zip(records, scores(records, "instruction"), strict=True):
        evidence = plain_evidence(run, tiny_vlm, record, [record["permutation"]], INSTRUCTION + BASE_TEMPLATE)
        np.testing.assert_allclose(found, evidence.log_probs[0], atol=1e-5)


@pytest.mark.parametrize("method", ["permutation_average", "permutation_average_random"])
def test_averages_are_over_orders_of_the_tested_prompt_by_image(run, records, tiny_vlm, method) -> None:
    changes = cyclic_shifts(N) if method == "permutation_average" else random_permutations(N, 4, 42)
    for record, found in zip(records, scores(records, method), strict=True):
        orders = [[record["permutation"][place] for place in change] for change in changes]
        log_probs = plain_evidence(run, tiny_vlm, record, orders).log_probs.numpy()
        by_image = [
            np.mean([row[order.index(image)] for row, order in zip(log_probs, orders, strict=True)])
            for image in range(N)
        ]
        np.testing.assert_allclose(found, [by_image[image] for image in record["permutation"]], atol=1e-5)


@pytest.mark.parametrize(("method", "variant"), [("sofa", "published"), ("sofa_paper", "paper")])
def test_soft_attention_with_the_chosen_weight(run, records, tiny_vlm, method, variant) -> None:
    for record, found in zip(records[:3], scores(records, method), strict=False):
        evidence = plain_evidence(run, tiny_vlm, record, [record["permutation"]], sofa=Sofa(variant, 0.25, 2))
        np.testing.assert_allclose(found, evidence.log_probs[0], atol=1e-5)
        plain = plain_evidence(run, tiny_vlm, record, [record["permutation"]])
        assert np.abs(found - plain.log_probs[0].numpy()).max() > 1e-4


def test_contextual_methods_take_off_what_a_content_free_caption_gives(run, records, tiny_vlm) -> None:
    for row, record in enumerate(records):
        with_caption, free = (
            plain_evidence(run, tiny_vlm, record, [record["permutation"]], caption=caption) for caption in (None, "N/A")
        )
        calibrated = with_caption.log_probs - free.log_probs
        np.testing.assert_allclose(scores(records, "contextual_calibration")[row], calibrated[0], atol=1e-4)
        ours, theirs = (evidence.attention[0].mean(1).numpy() for evidence in (with_caption, free))
        chosen = np.argsort(-ours.sum(1))[:2]
        over = np.log(ours[chosen] / theirs[chosen]).mean(0)
        np.testing.assert_allclose(scores(records, "contextual_attention_over")[row], over, atol=1e-3)
        minus = (ours[chosen] - theirs[chosen]).mean(0)
        np.testing.assert_allclose(scores(records, "contextual_attention_minus")[row], minus, atol=1e-6)


def test_in_context_re_ranking_by_hand(run, records, tiny_folder: Path) -> None:
    """From whole eager maps, in plain NumPy."""
    subject, dropped = Subject(qwen2_5_vl.FAMILY, tiny_folder, []), 0
    for row, record in enumerate(records):
        attention = []
        for caption in (record["caption"], "N/A"):
            images = tuple(
                Image.open(run / name).convert("RGB").resize((84, 84), Image.Resampling.BICUBIC)
                for name in record["images"]
            )
            entry = PermutedSample(Sample("", tuple(record["images"]), caption, 0), 0, (), images)
            inputs, spans, tokens = subject.plain_prompt(entry, tuple(record["permutation"]))
            with torch.no_grad():
                maps = subject.eager(**inputs, output_attentions=True).attentions
            added = sum(maps[layer][0, :, tokens].double().mean(1).sum(0).numpy() for layer in LAYERS)
            attention.append([added[span[0] - 1 : span[-1] + 2] for span in spans])  # delimiters included
        expected = []
        for with_caption, free in zip(*attention, strict=True):
            c = with_caption - free
            kept = c > c.mean() - 2 * c.std(ddof=1)
            dropped += int((~kept).sum())
            expected.append(c[kept].sum())
        np.testing.assert_allclose(scores(records, "icr")[row], expected, atol=1e-6)
    assert dropped > 0


def test_tokens_without_spread_all_count() -> None:
    attention = torch.tensor([[9.0, 1.0, 2.0, 2.0, 2.0, *[1.0] * 8, -9.0]])
    positions = torch.tensor([[-1, 0, 1, 1, 1, *[2] * 9]])
    scores = icr_scores(attention, torch.zeros(1, 13), positions, positions[:, 1:], 3)
    assert scores.tolist() == [[1.0, 6.0, 8.0]]  # one token, equal ones, and an outlier that is left out


@pytest.mark.parametrize(("method", "chains"), [("cot", 1), ("self_consistency", 3)])
def test_generated_texts_are_stored_and_read(run: Path, records: list[dict], method: str, chains: int) -> None:
    prompts = read_prompts(run / f"evidence-{method}.parquet")
    assert prompts.texts is not None
    assert {len(texts) for texts in prompts.texts} == {chains}
    expected = [majority([read_choice(text, ("1", "2", "3"), "digits") for text in texts]) for texts in prompts.texts]
    assert [record["choices"][method] for record in records] == expected
    values = json.loads((run / "metrics.json").read_text())["readouts"][method]
    assert values["success_rate"] == pytest.approx(np.mean([choice is not None for choice in expected]))
    assert method not in records[0]["scores"]


def test_costs_count_forward_passes(run: Path) -> None:
    costs = json.loads((run / "costs.json").read_text())["methods"]
    forwards = {name: cost["forwards"] for name, cost in costs.items()}
    assert {forwards[name] for name in ("vanilla", "agd", "instruction", "sofa")} == {1}
    assert forwards["permutation_average"] == N
    assert forwards["permutation_average_random"] == 4
    assert forwards["contextual_calibration"] == forwards["icr"] == 2
    assert 2 <= forwards["cot"] <= 1 + 8
    assert 1 + 3 <= forwards["self_consistency"] <= 1 + 3 * 6
    assert all(cost["seconds"] > 0 for cost in costs.values())


def test_names_that_are_no_methods(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'agd' needs no forward passes of its own; name it in model.readouts" in fails(
        capsys, "test", "--model.methods=[agd]"
    )
    line = fails(capsys, "test", "--model.methods=[cott]")
    assert "'cott' is not a method; choose from cot, self_consistency, " in line
    assert "method.chains is 0" in fails(capsys, "test", "--model.method.chains=0")
