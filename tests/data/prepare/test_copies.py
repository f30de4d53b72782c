"""Copies of pictures: found in a pool, and never two of them in a prepared sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from PIL import Image
from tiny_vlm import write_noise_images
from torch.nn.functional import normalize

from lad_pl.data.prepare.caption_sets import Draw, paired_draws, without_copies
from lad_pl.data.prepare.copies import count_near, originals
from lad_pl.data.prepare.hard_negatives import Pool, exclusions, nearest_candidates


def test_copies_by_bytes_and_by_pixels(tmp_path: Path) -> None:
    names = [path.name for path in write_noise_images(tmp_path, 4)]
    shutil.copy(tmp_path / names[1], tmp_path / "bytes.png")
    with Image.open(tmp_path / names[2]) as image:
        image.save(tmp_path / "pixels.bmp")
        image.crop((0, 0, image.width, image.height - 1)).save(tmp_path / "cropped.png")
    for empty in ("empty0.png", "empty1.png"):
        (tmp_path / empty).touch()
    names += ["bytes.png", "pixels.bmp", "cropped.png", "empty0.png", "empty1.png"]
    assert originals(names, tmp_path) == [0, 1, 2, 3, 1, 5, 6, 7, 8]
    same = [0, 1, 2, 3, 1, 2, 2, 3, 3]  # of which embedding each image has
    vectors = normalize(torch.randn(4, 80, generator=torch.Generator().manual_seed(0)), dim=1)[same]
    assert originals(names, tmp_path, vectors) == [0, 1, 2, 3, 1, 2, 6, 7, 8]


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch) -> None:
    names = [path.name for path in write_noise_images(tmp_path, 9)]
    for number, name in enumerate(names):
        with Image.open(tmp_path / names[number % 4]) as image:
            image.save(tmp_path / name, compress_level=number)  # other bytes, or the same
    vectors = normalize(torch.randn(4, 70, generator=torch.Generator().manual_seed(0)), dim=1)[torch.arange(9) % 4]
    for elements in (9, 27, 1 << 20):
        monkeypatch.setattr("lad_pl.data.prepare.copies._BLOCK_ELEMENTS", elements)
        assert originals(names, tmp_path, vectors) == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_mining_leaves_copies_out() -> None:
    generator = torch.Generator().manual_seed(1)
    images, texts = (normalize(torch.randn(30, 16, generator=generator), dim=1) for _ in range(2))
    first = torch.arange(30)
    first[[7, 21, 22]] = torch.tensor([3, 3, 10])
    images = images[first]
    pool = Pool(images, texts, originals=first)
    found = nearest_candidates(pool, range(30), 5, max_text_similarity=0.4).tolist()
    for anchor, negatives in enumerate(found):
        exact = images[anchor].double() @ images.double().T
        allowed = [p for p in range(30) if first[p] == p != first[anchor] and texts[p] @ texts[anchor] < 0.4]
        assert negatives == sorted(allowed, key=lambda p: -exact[p])[:5]
        assert exclusions(pool, anchor, 0.4).candidates == len(allowed)


def test_random_draws_are_changed_only_where_they_show_copies() -> None:
    first = list(range(40))
    first[5] = first[9] = 2
    draws = paired_draws(40, 6, 40, seed=0, difficulty="random")
    changed = 0
    for number, draw in enumerate(draws):
        shown = (draw.anchor, *draw.negatives)
        own = without_copies(draw, first, str(number))
        assert (own.anchor, own.order) == (draw.anchor, draw.order)
        assert len({first[image] for image in (own.anchor, *own.negatives)}) == 6
        changed += own != draw
        assert (own == draw) == (len({first[image] for image in shown}) == 6)
    assert changed
    assert without_copies(Draw(0, (1, 2), (0, 1, 2)), [0, 0, 2, 3], "") == Draw(0, (3, 2), (0, 1, 2))


def test_nearly_identical_images_are_counted() -> None:
    angles = torch.tensor([0.0, 0.1, 1.5, 1.6, 3.0])
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    assert count_near([(0, 1, 2), (0, 2, 3), (0, 2, 4), (2, 1, 3)], vectors, 0.98) == ([0, 3], [1])
    assert count_near([(0, 1, 2), (0, 2, 3)], vectors, 0.999) == ([], [])
