"""Train a demo model from scratch: `python -m lad_pl.demo.train --output DIR --seed 0 [--recipe hard]`.

The phases are vision, phase A, phase B, evaluation, saving. `--control` trains phase B with the correct image
at uniform positions instead, and writes figures only: the bias that is left without the skew.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from lad_pl.demo.architecture import build_model
from lad_pl.demo.card import CONTROL as CONTROL_FILE
from lad_pl.demo.card import FIGURES, write_card
from lad_pl.demo.evaluation import evaluate
from lad_pl.demo.language import train_language
from lad_pl.demo.recipes import RECIPES, Recipe
from lad_pl.demo.sets import KINDS, SPLITS, build_set
from lad_pl.demo.vision import (
    all_features,
    draw_pictures,
    train_vision,
    vision_accuracy,
)
from lad_pl.demo.vocabulary import INDEX_QUESTION, build_processor
from lad_pl.demo.world import World

CHECK_JITTERS = range(1_000, 1_002)

Model = Qwen2_5_VLForConditionalGeneration


class Stages:
    """Runs the stages of a training in turn, and keeps the weights after each if a folder is given."""

    def __init__(self, model: Model, keep: Path | None) -> None:
        self.model = model
        self.keep = keep
        self.seconds: dict[str, float] = {}

    def run(self, name: str, train: Callable[[], None]) -> None:
        """Call `train`, or load the weights it left in an earlier run."""
        kept = self.keep / f"{name}.pt" if self.keep else None
        if kept and kept.exists():
            state = torch.load(kept, weights_only=True)
            self.model.load_state_dict(state["weights"])
            self.seconds[name] = state["seconds"]
            print(f"{name}: taken from {kept}", flush=True)
            return
        started = time.monotonic()
        train()
        self.seconds[name] = time.monotonic() - started
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"weights": self.model.state_dict(), "seconds": self.seconds[name]}, kept)


def train(output: Path, seed: int, control: bool, keep: Path | None, recipe: Recipe) -> None:
    """Train, evaluate, and write the model folder (with `control`: only the figures)."""
    world = recipe.world
    processor = build_processor(world)
    model = build_model(processor, recipe.architecture, seed)
    stages = Stages(model, keep)
    pictures = draw_pictures(world, world.splits.training, range(recipe.jitters))
    stages.run("vision", partial(train_vision, model, processor, pictures, world, recipe.vision, seed))
    unseen = draw_pictures(world, world.splits.validation, CHECK_JITTERS)
    named = vision_accuracy(model, processor, unseen, world)
    print(f"all attributes named correctly on unseen combinations: {100 * named:.1f} %", flush=True)
    features = all_features(model, processor, pictures).unflatten(0, (-1, recipe.jitters))
    for phase in recipe.control if control else recipe.phases:
        name = "control" if phase not in recipe.phases else phase.name.lower().replace(" ", "_")
        stages.run(name, partial(train_language, model, processor, features, world, phase, seed))

    round_to_half(model)
    figures = {
        "recipe": world.name,
        "seed": seed,
        "vision_accuracy": 100 * named,
        "seconds": stages.seconds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "samples": {split: recipe.samples or count for split, count in SPLITS.items()},
        "sets": measure(model, processor, recipe),
    }
    output.mkdir(parents=True, exist_ok=True)
    if not control:
        save(model, processor, world, output)
    (output / (CONTROL_FILE if control else FIGURES)).write_text(json.dumps(figures, indent=1) + "\n")
    write_card(output)


@torch.no_grad()
def round_to_half(model: Model) -> None:
    """Round the weights to float16, as saving does, so that the figures are those of the saved model.

    Not `model.half()`: that would also round the rotary frequencies, which are recomputed on loading.
    """
    for weight in model.parameters():
        weight.copy_(weight.half())


def measure(model: Model, processor: Qwen2_5_VLProcessor, recipe: Recipe) -> dict[str, dict[str, object]]:
    """Figures of every validation set and then of every test set; name of the set -> `Outcome` as a dict."""
    figures = {}
    for split in reversed(SPLITS):
        for candidates in recipe.candidate_counts:
            for kind in KINDS:
                name = f"{split}_{candidates}_{kind}"
                samples = build_set(split, candidates, kind, recipe.world)[: recipe.samples]
                outcome = evaluate(model, processor, samples, recipe.world)
                figures[name] = asdict(outcome)
                print(f"{name}  {outcome}", flush=True)
    return figures


def save(model: Model, processor: Qwen2_5_VLProcessor, world: World, output: Path) -> None:
    """Write the Hugging Face folder with float16 weights, and make sure that it reads back the same."""
    before = probe(model, processor, world)
    model.half().save_pretrained(output)
    processor.save_pretrained(output)
    again: Any = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32)
    after = probe(again, AutoProcessor.from_pretrained(output), world)
    difference = (after - before).abs().max().item()
    if type(again) is not type(model) or difference > 1e-4:
        raise RuntimeError(f"the model read back from {output} differs: logits off by {difference:.2g}")


def probe_inputs(processor: Qwen2_5_VLProcessor, world: World) -> BatchFeature:
    """One prompt over three pictures, as the model takes it."""
    scenes = [world.scene.from_index(index) for index in world.splits.validation[:3]]
    text = INDEX_QUESTION.format(N=len(scenes), caption=scenes[1].caption(0))
    content = [*[{"type": "image"} for _ in scenes], {"type": "text", "text": text}]
    messages: list[Any] = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [world.render(scene, CHECK_JITTERS[0]) for scene in scenes]
    return processor(text=[prompt], images=[images], return_tensors="pt")


@torch.no_grad()
def probe(model: Model, processor: Qwen2_5_VLProcessor, world: World) -> torch.Tensor:
    """Logits [1, S, vocabulary] of `probe_inputs`, all the way from pictures and text."""
    return model.eval()(**probe_inputs(processor, world)).logits


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=RECIPES, default="standard", help="which demo to train")
    parser.add_argument("--control", action="store_true", help="train with uniform positions; write figures only")
    parser.add_argument("--keep", type=Path, help="folder for the weights after each phase, to go on from")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is often fastest on so small a model")
    arguments = parser.parse_args()
    with torch_threads(arguments.threads):
        train(arguments.output, arguments.seed, arguments.control, arguments.keep, RECIPES[arguments.recipe])


if __name__ == "__main__":
    main()
