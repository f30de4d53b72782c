"""Training runs through all of its phases; the shipped model matches its card."""

import json
import random
from dataclasses import replace

import pytest
import torch
from paths import ROOT
from transformers import AutoModelForImageTextToText, AutoProcessor

from lad_pl.demo.architecture import build_model
from lad_pl.demo.evaluation import evaluate
from lad_pl.demo.language import Reader, blinding_mask, train_language
from lad_pl.demo.pairs import HARD
from lad_pl.demo.questions import Encoder, draw_question, skewed_positions, uniform_positions
from lad_pl.demo.recipes import RECIPES
from lad_pl.demo.scenes import STANDARD
from lad_pl.demo.sets import build_set
from lad_pl.demo.train import probe, probe_inputs, torch_threads, train
from lad_pl.demo.vision import draw_pictures, train_vision
from lad_pl.demo.vocabulary import build_processor

CHECKPOINT = ROOT / "checkpoints" / "demo-vlm"


def two_steps(recipe):
    return replace(recipe, steps=2, batch_size=4)


def smoke(name):
    """A recipe cut to two steps a phase."""
    recipe = RECIPES[name]
    phases = tuple(map(two_steps, recipe.phases))
    return replace(recipe, vision=two_steps(recipe.vision), phases=phases, jitters=1, candidate_counts=(12,), samples=2)


@pytest.fixture(scope="module")
def demo():
    if not (CHECKPOINT / "model.safetensors").exists():
        pytest.skip(f"no demo model in {CHECKPOINT}")
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.mark.slow
def test_every_phase_runs_and_is_kept(tmp_path, capsys):
    output, keep = tmp_path / "model", tmp_path / "keep"
    with torch_threads(1):
        train(output, seed=0, control=False, keep=keep, recipe=smoke("standard"))
        train(output, seed=0, control=True, keep=keep, recipe=smoke("standard"))
    assert sorted(path.name for path in keep.iterdir()) == [
        "control.pt",
        "phase_a.pt",
        "phase_b.pt",
        "vision.pt",
    ]
    assert capsys.readouterr().out.count("taken from") == 2  # the control's vision and phase A
    figures = json.loads((output / "figures.json").read_text())
    assert list(figures["sets"]) == [
        "validation_12_random",
        "validation_12_adversarial",
        "annotations_12_random",
        "annotations_12_adversarial",
    ]
    card = (output / "README.md").read_text()
    assert "## Control" in card
    model = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"


def test_every_phase_of_the_hard_recipe_runs(capsys):
    """On random features, so that no thousands of pictures are drawn."""
    recipe = smoke("hard")
    processor = build_processor(HARD)
    model = build_model(processor, recipe.architecture, seed=0)
    train_vision(model, processor, draw_pictures(HARD, (0, 1, 2, 3), range(1)), HARD, recipe.vision, seed=0)
    tower = [weight.clone() for weight in model.model.visual.parameters()]
    features = torch.randn(len(HARD.splits.training), 1, 4, recipe.architecture.width)
    for phase in (*recipe.phases, *recipe.control):
        before = [weight.clone() for weight in model.model.language_model.parameters()]
        train_language(model, processor, features, HARD, phase, seed=0)
        after = model.model.language_model.parameters()
        assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(tower, model.model.visual.parameters(), strict=True))
    assert "summary" in capsys.readouterr().out
    outcome = evaluate(model, processor, build_set("validation", 4, "adversarial", HARD)[:2], HARD)
    assert len(outcome.attention_by_layer) == recipe.architecture.layers


def test_blinded_text_cannot_see_images_but_the_last_token_can(demo):
    _, processor = demo
    generator = random.Random(0)
    questions = [draw_question(STANDARD, 3, 0.5, uniform_positions, generator) for _ in range(2)]
    batch = Encoder(processor).encode(questions)
    mask = blinding_mask(batch, torch.tensor([True, False]))[:, 0]
    last = batch.last[0]
    assert not mask[0, batch.image_columns[-1] + 1 : last, batch.image_columns].any()
    assert mask[0, last, batch.image_columns].all()
    assert mask[0, last, : last + 1].all()
    causal = torch.ones(mask.shape[-1], mask.shape[-1], dtype=torch.bool).tril()
    assert torch.equal(mask[1], causal)


def test_skewed_positions_favour_the_ends():
    weights = skewed_positions(4)
    assert weights[0] > weights[3] > weights[1] > weights[2]


def test_shipped_folder_is_small_and_complete(demo):
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert sum(files.values()) < 5_000_000
    assert {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
    } <= set(files)


def test_shipped_model_is_position_biased_but_attends_to_the_correct_image(demo):
    with torch_threads(1):
        outcome = evaluate(*demo, build_set("validation", 4, "random")[:40])
    assert outcome.vanilla < 90
    assert outcome.recall_std > 15
    assert outcome.attention > 95


@torch.no_grad()
def test_features_from_a_table_read_like_images(demo):
    """The evaluation's short cut (`Reader`) and the model's own way from pictures give the same logits."""
    model, processor = demo
    logits = probe(model, processor, STANDARD)
    inputs = probe_inputs(processor, STANDARD)
    features = model.model.get_image_features(inputs.pixel_values, inputs.image_grid_thw).pooler_output
    columns = (inputs.input_ids[0] == processor.image_token_id).nonzero().flatten()
    states = Reader(model)(inputs.input_ids, columns, torch.stack(list(features))[None], None).last_hidden_state
    torch.testing.assert_close(model.lm_head(states), logits, atol=1e-4, rtol=1e-4)
