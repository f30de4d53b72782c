"""Photos and captions given on the command line: samples without a known answer."""

from __future__ import annotations

import hashlib
import math
import os
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lad_pl.data.batches import LoadImage
from lad_pl.data.datamodule import MultiImageData, Split
from lad_pl.data.images import FORMATS, HOW_TO_READ, NAMED, file_fault, open_image, raise_broken, resize, size_of
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

    @property
    def results_folder(self) -> str:
        """Each set of photos and captions has its own results folder."""
        question = [
            [str(Path(photo).resolve()) for photo in self.photos],
            self.captions,
            self.group_size,
            self.rounds,
            self.num_permutations,
        ]
        return f"photos-{short_digest(question, 8)}"

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
        self.groups = groups(len(self.photos), self.group_size, self.rounds)
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
            with path.open("rb") as file:
                kept = first.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), name)
            if kept != name:
                left_out.add(_COPIES, Path(name), f"{Path(name).name} of {Path(kept).name}")
                continue
        photos.append(name)
    return photos


def _load_as_seen(name: str, side: int | None) -> Image.Image:
    return resize(open_image(Path(name), as_seen=True), side)


PhotoGroup = tuple[int, ...]


def groups(num_photos: int, group_size: int, rounds: int = 3, seed: int = 42) -> tuple[PhotoGroup, ...]:
    """Which photos are shown in one prompt.

    Every round deals all photos into groups of N; the last group of a round is filled up with photos from the
    round's beginning. Rounds are added until every photo can be compared with every other.

    >>> groups(3, 3)
    ((0, 1, 2),)
    >>> [len(group) for group in groups(5, 4, rounds=2)]
    [4, 4, 4, 4]

    Args:
        num_photos: M.
        group_size: N, from 2 to M.
        rounds: how many times every photo is shown at least.
        seed: of the deals.

    Raises:
        UserError: there are fewer photos than a group holds.
    """
    if not 2 <= group_size <= num_photos:
        raise UserError(f"{num_photos} photos do not make a group of {group_size}.")
    if num_photos == group_size:
        return (tuple(range(num_photos)),)
    generator = random.Random(seed)
    dealt: list[PhotoGroup] = []
    while rounds > 0 or not _connected(dealt, num_photos):
        order = generator.sample(range(num_photos), num_photos)
        for start in range(0, num_photos, group_size):
            group = order[start : start + group_size]
            dealt.append(tuple(group + order[: group_size - len(group)]))
        rounds -= 1
    return tuple(dealt)


def _connected(dealt: Sequence[PhotoGroup], num_photos: int) -> bool:
    reached, waiting = {0}, [0]
    while waiting:
        photo = waiting.pop()
        met = {other for group in dealt if photo in group for other in group} - reached
        reached |= met
        waiting += met
    return len(reached) == num_photos
