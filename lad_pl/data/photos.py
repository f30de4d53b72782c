"""Photos and captions given on the command line: samples without a known answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from glob import glob, has_magic
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from lad_pl.data.batches import LoadImage
from lad_pl.data.datamodule import MultiImageData, Split, numbered
from lad_pl.data.images import FORMATS, file_digest, open_image, resize, size_of
from lad_pl.errors import UserError
from lad_pl.provenance import short_digest
from lad_pl.types import Sample


class PhotoData(MultiImageData):
    """Photos to be ranked for captions, in groups of N.

    The photos are put into one order first, by their names, so that the order in which they are named makes no
    difference.

    Args:
        photos: files, folders, or patterns such as 'holiday/*.jpg' (** goes into subfolders).
        captions: what to rank them for.
        group_size: N, how many photos stand in one prompt; on the command line the calibration's N if unset.
        rounds: how many times every photo is shown, each time in other company, where there are more than N.
        options: further arguments of :class:`MultiImageData`, such as num_permutations and batch_size.
    """

    def __init__(
        self, photos: list[str], captions: list[str], group_size: int | None = None, rounds: int = 3, **options: Any
    ) -> None:
        super().__init__(annotations="", images=".", **options)
        if group_size is None:
            raise UserError("Give group_size: the N that the calibration was made with.")
        self.patterns = photos
        self.captions = captions
        self.group_size = group_size
        self.rounds = rounds
        self.num_permutations = min(self.num_permutations, math.factorial(group_size))
        self.photos: tuple[str, ...] = ()
        self.groups: tuple[PhotoGroup, ...] = ()
        self._results_folder = ""

    @property
    def results_folder(self) -> str:
        """Each set of photos and captions has its own results folder."""
        return self._results_folder

    def setup(self, stage: str) -> None:
        """Find the photos and lay them out in groups.

        Raises:
            UserError: the stage needs known answers, a pattern finds nothing, or there are too few photos or captions.
        """
        if stage != "predict":
            raise UserError(f"Photos have no known answer: they can be ranked by predict, not used by {stage}.")
        self.photos = find_photos(self.patterns)
        if not self.captions or not all(caption.strip() for caption in self.captions):
            raise UserError("Name at least one caption, and no empty one.")
        if self.rounds < 1:
            raise UserError(f"rounds is {self.rounds}; every photo must be shown at least once.")
        if len(self.photos) < self.group_size:
            raise UserError(
                f"There are {len(self.photos)} photos, and the calibration holds for {self.group_size} at a time; add "
                f"photos, or run fit with samples of {len(self.photos)} images."
            )
        digests = [self.digest_of(photo) for photo in self.photos]
        self.groups = groups(digests, self.group_size, self.rounds)
        question = [
            [[str(Path(photo).resolve()), found] for photo, found in zip(self.photos, digests, strict=True)],
            [self.captions, self.group_size, self.rounds, self.num_permutations],
            self.groups,
        ]
        self._results_folder = f"photos-{short_digest(question, 8)}"
        super().setup(stage)

    def all_samples(self) -> Split:
        """One sample per caption and group."""
        return [
            Sample(f"{caption_number}-{group_number}", tuple(self.photos[i] for i in group), caption, None)
            for caption_number, caption in enumerate(self.captions)
            for group_number, group in enumerate(self.groups)
        ]

    def image_key(self, name: str) -> str:
        """The file's own name: evidence outlives a folder that is moved."""
        return Path(name).name

    def digest_of(self, name: str) -> str:
        """A digest of a photo; empty if it cannot be read, which :meth:`check_images` reports."""
        try:
            return file_digest(Path(name))
        except OSError:
            return ""

    def chosen(self) -> dict[str, Any]:
        """The options that choose the photos, as plain values."""
        return {"photos": list(self.patterns), "captions": list(self.captions)}

    def image_size(self, name: str) -> tuple[int, int]:
        """Width and height of a photo in pixels, from its header; EXIF rotation does not matter for batch planning."""
        return size_of(Path(name))

    def image_loader(self, side: int | None) -> LoadImage:
        """The function that decodes one photo, upright, as RGB, resized to ``side`` pixels square if given."""
        return partial(_load_upright, side=side)


def find_photos(patterns: Sequence[str]) -> tuple[str, ...]:
    """The image files that files, folders and patterns name, each once, in the order of their full names.

    Raises:
        UserError: one of them finds no image.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    found: dict[Path, str] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = [str(file) for file in path.iterdir()]
        elif has_magic(pattern) and not path.exists():
            files = glob(str(path), recursive=True)
        else:
            found.setdefault(path.resolve(), str(path))  # whatever it is called, and missed if it is not there
            continue
        images = [Path(file) for file in files if Path(file).suffix.lower() in known and Path(file).is_file()]
        images = [image for image in images if not image.name.startswith(".")]
        if not images:
            raise UserError(f"'{pattern}' finds no image file.")
        for image in images:
            found.setdefault(image.resolve(), str(image))
    for name in found.values():
        if not name.isprintable():
            raise UserError(f"The file name {name!r} has characters that cannot be written; rename the file.")
    return tuple(found[path] for path in sorted(found))


def _load_upright(name: str, side: int | None) -> Image.Image:
    return resize(open_image(Path(name), upright=True), side)


PhotoGroup = tuple[int, ...]


def groups(photos: Sequence[str], group_size: int, rounds: int = 3, seed: int = 42) -> tuple[PhotoGroup, ...]:
    """Which photos are shown in one prompt.

    Every round orders all photos by digests of its own and cuts the order into stretches of at most 8 N photos, where
    the digests' next bit changes, and these into groups of N; the last group of a stretch is filled up from the
    stretch's beginning. So a photo that comes or goes changes a few groups of one stretch in each round, and the others
    keep their evidence. Rounds are added until every photo can be compared with every other.

    >>> groups(["a", "b", "c"], 3)
    ((0, 1, 2),)
    >>> [len(group) for group in groups(["a", "b", "c", "d", "e"], 4, rounds=2)]
    [4, 4, 4, 4]

    Args:
        photos: a digest of each of the M photos.
        group_size: N, from 2 to M.
        rounds: how many times every photo is shown at least.
        seed: of the deals.

    Returns:
        Groups of N indices into ``photos``.

    Raises:
        UserError: there are fewer photos than a group holds.
    """
    if not 2 <= group_size <= len(photos):
        raise UserError(f"{len(photos)} photos do not make a group of {group_size}.")
    if len(photos) == group_size:
        return (tuple(range(group_size)),)
    names = numbered(photos)  # copies of a photo do not stay side by side
    dealt: list[PhotoGroup] = []
    for number in count():
        if number >= rounds and _connected(dealt, len(photos)):
            return tuple(dealt)
        places = [int(short_digest([seed, number, name]), 16) for name in names]
        for stretch in _stretches(sorted(range(len(names)), key=places.__getitem__), places, group_size):
            for start in range(0, len(stretch), group_size):
                group = stretch[start : start + group_size]
                dealt.append(tuple(group + stretch[: group_size - len(group)]))
    raise AssertionError("count() has no end")


def _stretches(order: list[int], places: Sequence[int], group_size: int, bit: int = 63) -> list[list[int]]:
    """Cut an order of photos in two, by the next bit of their 64-bit places, until each part has at most 8 N photos.

    A part with fewer than N is not cut off.
    """
    if len(order) <= _LONGEST * group_size or bit < 0:
        return [order]
    split = sum(not places[photo] >> bit & 1 for photo in order)
    halves = order[:split], order[split:]
    if 0 < min(map(len, halves)) < group_size:
        return [order]
    return [part for half in halves if half for part in _stretches(half, places, group_size, bit - 1)]


_LONGEST = 8
"""Groups of a stretch, at most."""


def _connected(dealt: Sequence[PhotoGroup], num_photos: int) -> bool:
    met: list[set[int]] = [set() for _ in range(num_photos)]
    for group in dealt:
        for photo in group:
            met[photo].update(group)
    reached, waiting = {0}, [0]
    while waiting:
        new = met[waiting.pop()] - reached
        reached |= new
        waiting += new
    return len(reached) == num_photos
