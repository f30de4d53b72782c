"""Photos and captions given on the command line: samples without a known answer."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob, has_magic
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lad_pl.data.batches import LoadImage
from lad_pl.data.datamodule import MultiImageData, Split, numbered
from lad_pl.data.images import (
    FORMATS,
    HOW_TO_READ,
    NAMED,
    file_digest,
    file_fault,
    open_image,
    raise_broken,
    resize,
    size_of,
)
from lad_pl.errors import UserError
from lad_pl.provenance import short_digest
from lad_pl.types import Sample

_READ = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
_OTHER_FORMATS = {
    "HEIC photos": ".heic .heif .heics .heifs .hif",
    "AVIF photos": ".avif .avifs",
    "JPEG XL photos": ".jxl",
    "JPEG 2000 photos": ".jp2 .j2k .jpf .jpx .jpc .j2c",
    "JPEG XR photos": ".jxr .wdp .hdp",
    "raw photos": ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srw .x3f",
    "Photoshop files": ".psd .psb",
    "SVG drawings": ".svg",
    "pictures of other formats": ".dds .exr .hdr .ico .pbm .pcx .pgm .pnm .ppm .tga",
}
_NOT_READ = {end: kind for kind, ends in _OTHER_FORMATS.items() for end in ends.split() if end not in _READ}
_REMEDIES = {kind: HOW_TO_READ.get(kind.split()[0], "save them as JPEG or PNG") for kind in _OTHER_FORMATS}
_COPIES = "copies"
_SHOWN = 3


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
        left_out = LeftOut()
        self.photos = find_photos(self.patterns, left_out)
        if not self.captions or not all(caption.strip() for caption in self.captions):
            raise UserError("Name at least one caption, and no empty one.")
        if self.rounds < 1:
            raise UserError(f"rounds is {self.rounds}; every photo must be shown at least once.")
        if len(self.photos) < self.group_size:
            few = (
                f"There are {len(self.photos)} photos, and the calibration holds for {self.group_size} at a time; add "
                f"photos, or run fit with samples of {len(self.photos)} images."
            )
            raise UserError(" ".join([few, *left_out.sentences()]))
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(self.digest_of, self.photos))
        self.groups = groups(digests, self.group_size, self.rounds)
        question = [
            [[str(Path(photo).resolve()), found] for photo, found in zip(self.photos, digests, strict=True)],
            [self.captions, self.group_size, self.rounds, self.num_permutations],
            self.groups,
        ]
        self._results_folder = f"photos-{short_digest(question, 8)}"
        super().setup(stage)
        for sentence in left_out.sentences():
            rank_zero_only(partial(print, file=sys.stderr))(f"lad_pl: {sentence}")

    def all_samples(self) -> Split:
        """One sample per caption and group."""
        return [
            Sample(f"{caption_number}-{group_number}", tuple(self.photos[i] for i in group), caption, None)
            for caption_number, caption in enumerate(self.captions)
            for group_number, group in enumerate(self.groups)
        ]

    def check_names(self) -> None:
        """Photos are wherever a person says, each once."""

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
        """The function that decodes one photo as people see it, as RGB, resized to ``side`` pixels square if given."""
        return partial(_load_as_seen, side=side)

    def check_images(self) -> None:
        """Check every photo, as ``image_check`` says.

        Raises:
            UserError: photos are broken; it names the first ten.
        """
        raise_broken({Path(name): "" for name in self.photos}, self.image_check == "full", "replace or remove them")


class LeftOut:
    """Files that are not shown, by kind; each once, as patterns may overlap."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}

    def add(self, kind: str, path: Path, shown: str = "") -> None:
        """Count a file, which is shown by its name unless something else is given."""
        self._names.setdefault(kind, {})[os.path.abspath(path)] = shown or path.name

    def sentences(self) -> list[str]:
        """One about each kind."""
        return [self._sentence(kind, [*names.values()]) for kind, names in self._names.items()]

    def _sentence(self, kind: str, names: Sequence[str]) -> str:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        remedy = f"; {_REMEDIES[kind]}" if kind in _REMEDIES else ""
        return f"Left out {kind}: {len(names):,} ({shown}){remedy}."


def find_photos(patterns: Sequence[str], left_out: LeftOut | None = None) -> tuple[str, ...]:
    """The image files that files, folders and patterns name, each once, in the order of their full names.

    Args:
        patterns: files, folders, or patterns.
        left_out: is given what is not taken: further copies of a photo and, from folders and patterns, photos in
            formats that are not read and broken links.

    Raises:
        UserError: one of them finds no image, or names a file that is missing or in a format that is not read.
    """
    left_out = LeftOut() if left_out is None else left_out
    found: dict[Path, str] = {}
    faults: list[str] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if not path.is_dir() and (path.exists() or not has_magic(pattern)):
            chosen, fault = [path], _fault(path)
            if fault is not None:
                faults.append(f"{path} {fault}")
        else:
            files = sorted(path.iterdir() if path.is_dir() else map(Path, glob(str(path), recursive=True)))
            chosen = [file for file in files if not file.name.startswith(".") and _is_photo(file, left_out)]
            if not chosen:
                none = "the folder is empty" if path.is_dir() else "nothing has such a name"
                why = none if not files else f"none of {len(files):,} names is one of a photo"
                raise UserError(" ".join([f"'{pattern}' finds no image file: {why}.", *left_out.sentences()]))
        for photo in chosen:
            first = found.setdefault(photo.resolve(), str(photo))
            if Path(first).name != photo.name:
                left_out.add(_COPIES, photo, f"{photo.name} of {Path(first).name}")
    if faults:
        more = f"; and {len(faults) - NAMED:,} more" if len(faults) > NAMED else ""
        raise UserError(f"{'; '.join(faults[:NAMED])}{more}.")
    photos = _without_copies({path: found[path] for path in sorted(found)}, left_out)
    for name in photos:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise UserError(f"The file name {name!r} has characters that cannot be written; rename the file.")
    return tuple(photos)


def _fault(path: Path) -> str | None:
    """What is wrong with a file that is named by itself: it is taken for an image unless its name says otherwise."""
    kind = _NOT_READ.get(path.suffix.lower())
    unread = None if kind is None else f"cannot be read ({kind}; {_REMEDIES[kind]})"
    return file_fault(path) or unread


def _is_photo(path: Path, left_out: LeftOut) -> bool:
    """Whether a file of a folder is a photo that can be read; other photos are added to those left out."""
    suffix = path.suffix.lower()
    kind = _NOT_READ.get(suffix)
    if suffix in _READ and path.is_file():
        return True
    if suffix in _READ and (path.is_symlink() or path.is_dir()):
        kind = "folders named like photos" if path.is_dir() else "broken links"
    if kind is not None:
        left_out.add(kind, path)
    return False


def _without_copies(found: dict[Path, str], left_out: LeftOut) -> list[str]:
    """The names of the files whose content no earlier one has."""
    sizes = Counter(path.stat().st_size for path in found)
    first: dict[str, str] = {}
    photos = []
    for path, name in found.items():
        size = path.stat().st_size
        if size > 0 and sizes[size] > 1:
            kept = first.setdefault(file_digest(path), name)
            if kept != name:
                left_out.add(_COPIES, Path(name), f"{Path(name).name} of {Path(kept).name}")
                continue
        photos.append(name)
    return photos


def _load_as_seen(name: str, side: int | None) -> Image.Image:
    return resize(open_image(Path(name), as_seen=True), side)


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
