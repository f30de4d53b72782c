"""The demo's annotation files: `python -m lad_pl.demo.sets` writes them to data/demo, byte for byte the same.

A sample is N images, a caption and the 0-based position of the one image that fits it:

* random: N scenes drawn from the split's held-out combinations;
* adversarial: all N images are alterations of a centre scene, which itself is not shown, each in one
  attribute of the six. So any two images differ in one or two attributes. The target is one of them like any
  other, so that the images alone do not reveal it (were the distractors alterations of the target, it would be
  the central image).

Targets come from the split's held-out combinations, and a split never shows a held-out combination of the
other.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from lad_pl.demo.scenes import (
    ATTRIBUTES,
    TEMPLATES,
    TEST_SCENES,
    TRAINING_SCENES,
    VALIDATION_SCENES,
    Scene,
    render_name,
)

DATA_DIR = Path(__file__).parents[2] / "data" / "demo"
CANDIDATE_COUNTS = (4, 8, 12)
KINDS = ("random", "adversarial")
SPLITS = {"annotations": (TEST_SCENES, 305), "validation": (VALIDATION_SCENES, 105)}
"""File prefix -> (scene indices that may be targets, number of samples)."""
JITTERS = range(1_000, 10_000)
"""Jitter seeds of the sets; training uses smaller ones (`train.py`), so no picture is seen twice."""


class SampleRecord(TypedDict):
    """One line of an annotation file."""

    id: int
    image_ids: list[str]
    """Image names, in the order in which they are shown."""
    index: int
    """0-based position of the image that the caption fits."""
    caption: str


def alterations(scene: Scene) -> list[Scene]:
    """The 23 scenes that differ from `scene` in exactly one attribute."""
    return [
        replace(scene, **{attribute: word})
        for attribute, words in ATTRIBUTES.items()
        for word in words
        if word != getattr(scene, attribute)
    ]


def differing_attributes(one: Scene, other: Scene) -> int:
    """In how many of the six attributes two scenes differ."""
    return sum(a != b for a, b in zip(one.words, other.words, strict=True))


def random_distractors(
    target: Scene, count: int, allowed: frozenset[int], held_out: tuple[int, ...], generator: random.Random
) -> list[Scene]:
    """`count` other scenes, distinct, of the split's held-out combinations."""
    others = [index for index in held_out if index != target.index]
    return [Scene.from_index(index) for index in generator.sample(others, count)]


def adversarial_distractors(
    target: Scene, count: int, allowed: frozenset[int], held_out: tuple[int, ...], generator: random.Random
) -> list[Scene]:
    """`count` distinct scenes that, like the target, differ from a hidden centre scene in one attribute.

    The centre is drawn among the target's alterations. Every scene has equally many alterations, so this is
    the same as drawing the centre first, altering it count + 1 times and taking any of these as the target.
    """
    centre = generator.choice(alterations(target))
    others = [scene for scene in alterations(centre) if scene != target and scene.index in allowed]
    return generator.sample(others, count)


DISTRACTORS = {"random": random_distractors, "adversarial": adversarial_distractors}


def build_set(split: str, candidates: int, kind: str) -> list[SampleRecord]:
    """All samples of one file, from a seed of its own.

    Args:
        split: "annotations" (the test set) or "validation".
        candidates: number N of images per sample.
        kind: "random" or "adversarial".

    Returns:
        Records `{"id", "image_ids", "index", "caption"}`; targets are distinct scenes, and the N positions of
        the target occur equally often (to within one).
    """
    held_out, samples = SPLITS[split]
    allowed = frozenset(TRAINING_SCENES) | frozenset(held_out)
    generator = random.Random(f"{split} {candidates} {kind}")
    positions = [sample % candidates for sample in range(samples)]
    generator.shuffle(positions)
    records: list[SampleRecord] = []
    for number, (target_index, position) in enumerate(zip(generator.sample(held_out, samples), positions, strict=True)):
        target = Scene.from_index(target_index)
        images = DISTRACTORS[kind](target, candidates - 1, allowed, held_out, generator)
        images.insert(position, target)
        records.append(
            {
                "id": number,
                "image_ids": [render_name(scene.index, generator.choice(JITTERS)) for scene in images],
                "index": position,
                "caption": target.caption(generator.randrange(len(TEMPLATES))),
            }
        )
    return records


def file_name(split: str, candidates: int, kind: str) -> str:
    """Name of an annotation file, such as `annotations_4_random.json`."""
    return f"{split}_{candidates}_{kind}.json"


def as_json(records: list[SampleRecord]) -> str:
    """A JSON list with one sample per line."""
    return "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"


def build_all() -> dict[str, str]:
    """File name -> content, for every split, N and kind."""
    return {
        file_name(split, candidates, kind): as_json(build_set(split, candidates, kind))
        for split in SPLITS
        for candidates in CANDIDATE_COUNTS
        for kind in KINDS
    }


def main() -> None:
    """Write every annotation file."""
    parser = argparse.ArgumentParser(description="Write the demo's annotation files.")
    parser.add_argument("--output", type=Path, default=DATA_DIR, help="folder to write to")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for name, content in build_all().items():
        (output / name).write_text(content, encoding="utf-8", newline="\n")
        print(f"wrote {output / name}")


if __name__ == "__main__":
    main()
