"""The demos' annotation files: `python -m lad_pl.demo.sets` writes them to data/, byte for byte the same.

A sample is N images, a caption and the 0-based position of the one image that fits it:

* random: N scenes drawn from the split's held-out combinations;
* adversarial: all N images are one change away from a centre scene, which itself is not shown. On the standard
  scenes (data/demo), a change is another word for one of the six attributes; so any two images differ in one or two
  attributes. On the hard ones (data/demo-hard), it is that or, for up to three images, an exchange of one attribute
  between the two objects. The target is one of the images like any other, so that the images alone do not reveal it
  (were the distractors alterations of the target, it would be the central image).

Targets come from the split's held-out combinations, and a split never shows a held-out combination of the
other.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import TypedDict

from lad_pl.demo.scenes import STANDARD
from lad_pl.demo.world import Combination, World
from lad_pl.demo.worlds import WORLDS

PROJECT = Path(__file__).parents[2]
CANDIDATE_COUNTS = (4, 8, 12)
KINDS = ("random", "adversarial")
SPLITS = {"annotations": 305, "validation": 105}
"""File prefix -> number of samples."""
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


def random_distractors(
    world: World, target: Combination, count: int, held_out: tuple[int, ...], generator: random.Random
) -> list[Combination]:
    """`count` other scenes, distinct, of the split's held-out combinations."""
    others = [index for index in held_out if index != target.index]
    return [world.scene.from_index(index) for index in generator.sample(others, count)]


def build_set(split: str, candidates: int, kind: str, world: World = STANDARD) -> list[SampleRecord]:
    """All samples of one file, from a seed of its own.

    Args:
        split: "annotations" (the test set) or "validation".
        candidates: number N of images per sample.
        kind: "random" or "adversarial".
        world: the scenes to draw from.

    Returns:
        Records `{"id", "image_ids", "index", "caption"}`; targets are distinct scenes, and the N positions of
        the target occur equally often (to within one).
    """
    held_out = world.splits.test if split == "annotations" else world.splits.validation
    allowed = world.training | frozenset(held_out)
    samples = SPLITS[split]
    generator = random.Random(f"{split} {candidates} {kind}")
    positions = [sample % candidates for sample in range(samples)]
    generator.shuffle(positions)
    records: list[SampleRecord] = []
    for number, (target_index, position) in enumerate(zip(generator.sample(held_out, samples), positions, strict=True)):
        target = world.scene.from_index(target_index)
        if kind == "random":
            images = random_distractors(world, target, candidates - 1, held_out, generator)
        else:
            images = world.adversarial(target, candidates - 1, allowed, generator)
        images.insert(position, target)
        records.append(
            {
                "id": number,
                "image_ids": [world.render_name(scene.index, generator.choice(JITTERS)) for scene in images],
                "index": position,
                "caption": target.caption(generator.randrange(len(world.scene.TEMPLATES))),
            }
        )
    return records


def file_name(split: str, candidates: int, kind: str) -> str:
    """Name of an annotation file, such as `annotations_4_random.json`."""
    return f"{split}_{candidates}_{kind}.json"


def as_json(records: list[SampleRecord]) -> str:
    """A JSON list with one sample per line."""
    return "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"


def build_all(world: World) -> dict[str, str]:
    """File name -> content, for every split, N and kind of a world."""
    return {
        file_name(split, candidates, kind): as_json(build_set(split, candidates, kind, world))
        for split in SPLITS
        for candidates in CANDIDATE_COUNTS
        for kind in KINDS
    }


def main() -> None:
    """Write every annotation file of every world."""
    parser = argparse.ArgumentParser(description="Write the demos' annotation files.")
    parser.add_argument("--output", type=Path, default=PROJECT, help="folder to write data/demo and data/demo-hard to")
    output: Path = parser.parse_args().output
    for world in WORLDS.values():
        folder = output / world.data
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in build_all(world).items():
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
            print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()
