"""Random and adversarial sets from captioned images, as in the paper's appendix C."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from lad_pl.data.image_names import leads_outside
from lad_pl.data.prepare.captions import (
    CaptionedImages,
    Exclusion,
    read_categories,
    read_coco,
    read_dataset,
    read_flickr,
)
from lad_pl.errors import UserError, check_at_least, say

Difficulty = Literal["random", "adversarial"]
MissingImages = Literal["error", "drop"]
Compat = Literal["published"]

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


# ------------------------------------------------------------------------------------------------ the commands


def coco(
    captions: str = "data/coco/annotations/captions_val2014.json",
    instances: str | None = "data/coco/annotations/instances_val2014.json",
    images: str = "data/coco/val2014",
    output: str = "data/coco",
    **options: Any,
) -> None:
    """Make random and adversarial sets from COCO's captions, categories and images.

    Args:
        captions: official captions JSON, or {image name: caption} as JSON or the published repository's pickle.
        instances: official instances JSON, or {image name: categories} as JSON or pickle; null knows no categories.
        images: folder of the images.
        output: folder for the annotation files, and for the embeddings unless they have their own.
        **options: those of :func:`build_sets`.
    """
    _check_there(captions, "the captions", "--captions")
    if instances is not None:
        _check_there(instances, "the instances (categories)", "--instances", ", or --instances null to do without")
    build_sets(read_coco(captions, instances), images, output, **options)


def flickr8k(
    captions: str = "data/flickr8k/Flickr8k.token.txt",
    images: str = "data/flickr8k/Flicker8k_Dataset",
    output: str = "data/flickr8k",
    **options: Any,
) -> None:
    """Make random and adversarial sets from Flickr8k, which has no categories.

    The official file has captions of one image that does not exist (2258277193_586949ec62.jpg.1): set missing_images
    to drop.

    Args:
        captions: Flickr8k.token.txt, the CSV captions.txt, or Karpathy's dataset_flickr8k.json.
        images: folder of the images.
        output: folder for the annotation files, and for the embeddings unless they have their own.
        **options: those of :func:`build_sets`.
    """
    _check_there(captions, "the captions", "--captions")
    build_sets(read_flickr(captions), images, output, **options)


def flickr30k(
    captions: str = "data/flickr30k/results_20130124.token",
    images: str = "data/flickr30k/flickr30k-images",
    output: str = "data/flickr30k",
    **options: Any,
) -> None:
    """Make random and adversarial sets from Flickr30k, which has no categories.

    Args:
        captions: results_20130124.token, the CSV results.csv, or Karpathy's dataset_flickr30k.json.
        images: folder of the images.
        output: folder for the annotation files, and for the embeddings unless they have their own.
        **options: those of :func:`build_sets`.
    """
    _check_there(captions, "the captions", "--captions")
    build_sets(read_flickr(captions), images, output, **options)


def captions(
    dataset: str,
    output: str,
    images: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    split: str | None = None,
    subset: str | None = None,
    categories: str | None = None,
    **options: Any,
) -> None:
    """Make random and adversarial sets from any captioned images: a Hugging Face data set or a local table.

    Args:
        dataset: id of a Hugging Face data set, local folder of one, or Parquet, JSON, JSONL or CSV file.
        output: folder for the annotation files, and for the embeddings unless they have their own.
        images: folder of the images that the image column names; unset if the column holds the pictures themselves,
            which are then written to the folder images in output.
        image_column: column of image names or pictures.
        caption_column: column of a caption or a list of captions.
        split: split of a Hugging Face data set; needed if it has several.
        subset: configuration of a Hugging Face data set; needed if it has several.
        categories: JSON of {image name: [category, ...]}, or COCO's instances file; unset knows no categories.
        **options: those of :func:`build_sets`.
    """
    written = Path(output) / "images"
    folder = None if images is None else Path(images)
    source = read_dataset(dataset, image_column, caption_column, split, subset, folder, written)
    if categories is not None:
        source = replace(source, categories=read_categories(categories))
    build_sets(source, images or str(written), output, **options)


def build_sets(
    source: CaptionedImages,
    images: str,
    output: str,
    num_candidates: Sequence[int] = (4, 8, 12),
    num_samples: int = 1005,
    difficulties: Sequence[Difficulty] = ("random", "adversarial"),
    pool_size: int = 20000,
    seed: int = 42,
    exclude: Exclusion = "subset",
    max_text_similarity: float = 0.9,
    near_identical: float = 0.98,
    compat: Compat | None = None,
    image_prefix: str = "",
    missing_images: MissingImages = "error",
    model: str = "ViT-L-14",
    pretrained: str = "openai",
    embeddings: str | None = None,
    rebuild: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
) -> None:
    """Write annotations_N_1_random.json and annotations_N_1_adversarial.json for every N.

    A sample is N images and the caption of one of them, the anchor. In the random sets the others are any images of the
    pool; in the adversarial sets they are those nearest to the anchor by CLIP's image embeddings, without images of
    the same categories or with a similar caption. All N and both difficulties have the same anchors, each once. No
    sample shows a picture twice: identical files, and where images are embedded also files with identical pixels, count
    as one picture.

    Args:
        source: the captioned images.
        images: folder of the images.
        output: folder for the annotation files.
        num_candidates: the numbers N of images per sample, one pair of files each.
        num_samples: samples per file, those for the calibration (5 by default) included.
        difficulties: random, adversarial or both; random alone needs no CLIP model.
        pool_size: images to draw from, sampled from all usable ones; all if there are fewer.
        seed: of pool, anchors, random images and the order of the images.
        exclude: subset leaves out images with all of the anchor's categories, as the published code does; identical
            only those with the same set of categories, as in the paper: harder, but more captions fit two images.
        max_text_similarity: images whose caption is at least this similar to the anchor's are left out (cosine).
        near_identical: samples with two images whose embeddings are more similar than this (cosine) are counted; they
            stay in the sets.
        compat: published draws as the published code does, with repeated anchors, and other anchors in each file.
        image_prefix: written before the image names, such as data/val2014/ in the published files.
        missing_images: error stops at images without file or caption and at broken files; drop leaves them out.
        model: open_clip model; hf-hub:OWNER/NAME or local-dir:FOLDER (open_clip_config.json and weights) work as well.
        pretrained: open_clip's name of the weights, or a local checkpoint file (OpenAI's: with ViT-L-14-quickgelu).
        embeddings: folder that keeps the embeddings for later runs, also of an interrupted one; the folder embeddings
            in output if unset.
        rebuild: delete stored embeddings of another model and compute them again.
        batch_size: images embedded at once.
        num_workers: processes that decode images; 0 does it in the main process.

    Raises:
        UserError: an input is missing or malformed, or there are too few images.
    """
    # Imported here because torch takes seconds to import, and the help of a command needs none of it.
    from lad_pl.data.annotations import write_annotations
    from lad_pl.data.prepare.clip_embeddings import ClipSpec, embed
    from lad_pl.data.prepare.copies import count_near, originals
    from lad_pl.data.prepare.hard_negatives import Miner

    if not num_candidates or min(num_candidates) < 2 or len(set(num_candidates)) < len(num_candidates):
        raise UserError(f"num_candidates is {list(num_candidates)}; it must list different numbers, each at least 2.")
    if not difficulties:
        raise UserError("difficulties is empty; choose random, adversarial or both.")
    check_at_least(1, num_samples=num_samples, pool_size=pool_size, batch_size=batch_size)
    check_at_least(0, num_workers=num_workers)
    folder = Path(images)
    names = usable_images(source, folder, missing_images)
    _check_pool(min(pool_size, len(names)), num_candidates, num_samples, distinct=compat is None)
    if compat is None:  # the published code embeds all images, and draws from those that could be embedded
        names = sorted(_sampled(names, pool_size, seed))
    embedded = None
    if "adversarial" in difficulties:
        store = Path(embeddings) if embeddings else Path(output) / "embeddings"
        captions = {name: source.captions[name][0] for name in names}
        embedded = embed(captions, folder, store, ClipSpec(model, pretrained), batch_size, num_workers, rebuild)
        kept = len(embedded.names) - embedded.computed
        say(f"Embeddings: {embedded.computed:,} computed, {kept:,} taken from before, all in {store}.")
        _leave_out_broken(embedded.broken, missing_images)
        names = list(embedded.names)
    pool = _sampled(names, pool_size, seed) if compat else names
    _check_pool(len(pool), num_candidates, num_samples, distinct=compat is None)  # less what turned out broken
    say(f"Pool: {len(pool):,} images, drawn with seed {seed}.")
    vectors = None if embedded is None else embedded.of(pool)[0]
    first = originals(pool, folder, vectors)
    _report_copies(pool, first, max(num_candidates))
    miner = None
    if embedded is not None:
        miner = Miner(embedded, pool, source.categories, max_text_similarity, exclude, first)
    near: dict[str, tuple[list[int], list[int]]] = {}
    files: dict[str, list[dict[str, Any]]] = {}
    for n in num_candidates:
        draws = published_draws(len(names), len(pool), n, num_samples, seed) if compat else None
        for difficulty in difficulties:
            drawn = draws[difficulty] if draws else paired_draws(len(pool), n, num_samples, seed, difficulty)
            if miner is not None and difficulty == "adversarial":
                found = miner.negatives([draw.anchor for draw in drawn], n)
                drawn = [replace(draw, negatives=own) for draw, own in zip(drawn, found, strict=True)]
            else:
                drawn = [without_copies(draw, first, f"{seed} {number}") for number, draw in enumerate(drawn)]
            name = f"annotations_{n}_1_{difficulty}.json"
            files[name] = _annotations(drawn, pool, source, image_prefix)
            if vectors is not None:
                near[name] = count_near([(draw.anchor, *draw.negatives) for draw in drawn], vectors, near_identical)
    for name, samples in files.items():
        write_annotations(Path(output) / name, samples)
        say(f"{Path(output) / name}: {len(samples):,} samples of {len(samples[0]['image_ids'])} images.")
        _report_near(*near.get(name, ([], [])))
    base = images.rstrip("/").removesuffix(image_prefix.rstrip("/")) or "."
    say(
        "Next: python -m lad_pl fit --config configs/qwen.yaml --data.annotations "
        f"{shlex.quote(str(Path(output) / next(iter(files))))} --data.images {shlex.quote(base)}"
        f"{' --data.num_permutations 2' if num_candidates[0] == 2 else ''}"
    )


# --------------------------------------------------------------------------------------------------- the draws


@dataclass(frozen=True)
class Draw:
    """One sample, its images as indices into the pool."""

    anchor: int
    negatives: tuple[int, ...]
    """N - 1 images; none yet for an adversarial sample."""
    order: tuple[int, ...]
    """Which of anchor (0) and negatives (1 to N - 1) stands at each position."""


def published_draws(
    num_images: int, pool_size: int, num_candidates: int, num_samples: int, seed: int
) -> dict[Difficulty, list[Draw]]:
    """The published code's draws, random before adversarial, from the one generator that has drawn the pool before.

    Adversarial draws have no negatives yet; the generator's numbers do not depend on which images these are.
    """
    generator = Random(seed)
    generator.sample(range(num_images), pool_size)
    draws: dict[Difficulty, list[Draw]] = {"random": [], "adversarial": []}
    for difficulty, drawn in draws.items():
        for _ in range(num_samples):
            anchor = generator.sample(range(pool_size), num_candidates)[0]
            random = difficulty == "random"
            negatives = _others(generator, anchor, pool_size, num_candidates - 1) if random else ()
            drawn.append(Draw(anchor, negatives, _order(generator, num_candidates)))
    return draws


def paired_draws(
    pool_size: int, num_candidates: int, num_samples: int, seed: int, difficulty: Difficulty
) -> list[Draw]:
    """Distinct anchors, the same for every N and difficulty; negatives and order from a generator per file."""
    anchors = Random(f"{seed} anchors").sample(range(pool_size), num_samples)
    generator = Random(f"{seed} {difficulty} {num_candidates}")
    return [
        Draw(
            anchor,
            _others(generator, anchor, pool_size, num_candidates - 1) if difficulty == "random" else (),
            _order(generator, num_candidates),
        )
        for anchor in anchors
    ]


def without_copies(draw: Draw, originals: Sequence[int], seed: str) -> Draw:
    """A random draw whose images show different pictures: a copy of one before it is replaced by another image.

    The draws' own generator has no part in it, so that nothing else changes.

    Args:
        draw: of images of the pool.
        originals: for every image of the pool the first one with the same picture; at least N differ.
        seed: of the images that are put in place of copies.
    """
    generator = Random(f"{seed} copies")
    shown, negatives = {originals[draw.anchor]}, []
    for negative in draw.negatives:
        while originals[negative] in shown:
            negative = generator.randrange(len(originals))
        shown.add(originals[negative])
        negatives.append(negative)
    return replace(draw, negatives=tuple(negatives))


def _sampled(names: Sequence[str], pool_size: int, seed: int) -> list[str]:
    return Random(seed).sample(names, min(pool_size, len(names)))


def _others(generator: Random, anchor: int, pool_size: int, count: int) -> tuple[int, ...]:
    """Sampled from the pool without the anchor."""
    return tuple(index + (index >= anchor) for index in generator.sample(range(pool_size - 1), count))


def _order(generator: Random, num_candidates: int) -> tuple[int, ...]:
    order = list(range(num_candidates))
    generator.shuffle(order)
    return tuple(order)


def _annotations(
    draws: Sequence[Draw], pool: Sequence[str], source: CaptionedImages, prefix: str
) -> list[dict[str, Any]]:
    samples = []
    for number, draw in enumerate(draws):
        shown = (draw.anchor, *draw.negatives)
        samples.append(
            {
                "id": number,
                "image_ids": [prefix + pool[shown[image]] for image in draw.order],
                "index": draw.order.index(0),
                "target": pool[draw.anchor],
                "caption": source.captions[pool[draw.anchor]][0],
            }
        )
    return samples


# ----------------------------------------------------------------------------------------------- usable images


def _check_there(path: str, what: str, option: str, otherwise: str = "") -> None:
    if not Path(path).exists():
        raise UserError(f"Cannot read {path}: no such file; name the file of {what} with {option}{otherwise}.")


def usable_images(source: CaptionedImages, folder: Path, missing_images: MissingImages) -> list[str]:
    """Sorted names of the images that have a caption, a file and, where categories are known, a category.

    Prints what is left out. Without its categories, an image cannot be compared with others.

    Raises:
        UserError: images lack a caption or a file and are not to be dropped, or none is left.
    """
    for reason, rows in source.unusable.items():
        _leave_out(rows, f"that are no pictures to be used ({reason})", missing_images)
    if source.unusable and not source.captions:
        raise UserError("No image is left; complete the data.")
    if not folder.is_dir():
        raise UserError(f"The image folder {folder} does not exist; name it with --images.")
    outside = next(filter(leads_outside, source.captions), None)
    if outside is not None:
        raise UserError(f"The captions name the image '{outside}', which leads out of the image folder; fix the name.")
    say(f"{len(source.captions):,} images with {source.num_captions:,} captions; the first of each image is used.")
    missing = [name for name in source.captions if not (folder / name).is_file()]
    _leave_out(source.without_pictures, "without a picture", missing_images)
    _leave_out(source.without_captions, "without a caption", missing_images)
    _leave_out(missing, f"with a caption but no file in {folder}", missing_images)
    unlisted = sum(
        path.suffix.lower() in _IMAGE_SUFFIXES and path.name not in source.captions for path in folder.iterdir()
    )
    if unlisted:
        say(f"Not used: {unlisted:,} files in {folder} that the captions do not name.")
    names = sorted(source.captions.keys() - set(missing))
    if source.categories is None:
        say("No categories: images that show the same are recognised by their captions only.")
    else:
        _leave_out([name for name in names if not source.categories.get(name)], "without a category", "drop")
        names = [name for name in names if source.categories.get(name)]
    if not names:
        raise UserError(f"No image of {folder} can be used; do captions, categories and images belong together?")
    return names


def _leave_out(names: Sequence[str], what: str, missing_images: MissingImages) -> None:
    if names and missing_images == "error":
        raise UserError(
            f"{len(names)} images {what}, the first is {names[0]}; complete the data, or leave them out with "
            "--missing_images drop."
        )
    if names:
        say(f"Left out: {len(names):,} images {what}, the first is {names[0]}.")


def _leave_out_broken(broken: Mapping[str, str], missing_images: MissingImages) -> None:
    if not broken:
        return
    name, fault = next(iter(broken.items()))
    if missing_images == "error":
        raise UserError(
            f"{len(broken)} images of the pool are broken, the first is {name} ({fault}); replace them, or leave them "
            "out with --missing_images drop."
        )
    say(f"Left out: {len(broken):,} broken images, the first is {name} ({fault}).")


def _report_copies(pool: Sequence[str], originals: Sequence[int], num_candidates: int) -> None:
    copies = [(index, original) for index, original in enumerate(originals) if index != original]
    if not copies:
        return
    index, original = copies[0]
    say(
        f"Copies: {len(copies):,} images of the pool show the picture of another, the first is {pool[index]}, that of "
        f"{pool[original]}; no sample shows a picture twice."
    )
    if len(pool) - len(copies) < num_candidates:
        raise UserError(
            f"The pool has {len(pool) - len(copies)} different pictures, too few for samples of N = {num_candidates}."
        )


def _report_near(with_correct: Sequence[int], among_others: Sequence[int]) -> None:
    for numbers, what in ((with_correct, "the correct image and another"), (among_others, "two other images")):
        if numbers:
            say(f"  {len(numbers):,} of them show {what} that are nearly identical, the first is {numbers[0]}.")


def _check_pool(size: int, num_candidates: Sequence[int], num_samples: int, distinct: bool) -> None:
    if size < max(num_candidates):
        raise UserError(f"The pool has {size} images, too few for samples of N = {max(num_candidates)}.")
    if distinct and size < num_samples:
        raise UserError(
            f"The pool has {size} images, too few for {num_samples} samples with different anchors; lower num_samples."
        )
