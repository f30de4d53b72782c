"""Captioned images from the official files of COCO and Flickr, from plain JSON, and from Hugging Face data sets."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lad_pl.data.prepare.pickles import read_pickle
from lad_pl.data.prepare.pictures import is_empty, picture_format, write_picture
from lad_pl.data.prepare.questions import ImageFolder, SkipItem
from lad_pl.data.prepare.table_reader import csv_fault, picture_folders, read_rows
from lad_pl.errors import UserError
from lad_pl.files import brief, is_writable, read_json, read_text, split_lines

Categories = dict[str, frozenset[int | str]]
"""The object categories of each image, by image name."""
Exclusion = Literal["subset", "identical"]
"""Which images share an anchor's categories: those with all of them, or those with exactly the same ones."""

_CUT_OFF = "Was it cut off while downloading?"
_SUFFIXES = {
    **{"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tiff"},
    **{"AVIF": ".avif", "HEIF": ".heic"},
}
_LINE_BREAKS = re.compile("[\t-\r\x1c-\x1e\x85\u2028\u2029]+")  # and tabs
_SWALLOWED = re.compile(r"\n[^\n,]+\.(?:jpe?g|png|webp|gif)\s*,", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionedImages:
    """Images by name, relative to the image folder, with their captions and the categories of their objects."""

    captions: dict[str, list[str]]
    """At least one caption per image, in the file's order; unchanged, except for line breaks (:func:`in_one_line`)."""
    categories: Categories | None = None
    """Images without objects may be absent; None if the data set has no categories."""
    without_captions: tuple[str, ...] = ()
    """Images that the source lists without a caption."""
    without_pictures: tuple[str, ...] = ()
    """Rows of a table whose picture is empty."""
    unusable: dict[str, list[str]] = field(default_factory=dict)
    """Rows of a table whose picture is a file that cannot be taken, by the reason."""

    @property
    def num_captions(self) -> int:
        """Captions of all images together."""
        return sum(map(len, self.captions.values()))

    @classmethod
    def gather(
        cls, pairs: Iterable[tuple[str, str]], listed: Iterable[str] = (), categories: Categories | None = None
    ) -> CaptionedImages:
        """Group (name, caption) pairs by image; blank captions do not count.

        Args:
            pairs: image names and captions.
            listed: names of further images, which are reported if ``pairs`` has no caption for them.
            categories: of the images, where they are known.
        """
        captions: dict[str, list[str]] = {name: [] for name in listed}
        for name, caption in pairs:
            captions.setdefault(name, [])
            if caption.strip():
                captions[name].append(in_one_line(caption))
        without = tuple(name for name, texts in captions.items() if not texts)
        return cls({name: texts for name, texts in captions.items() if texts}, categories, without)


def in_one_line(text: str) -> str:
    """A text with every run of line breaks and tabs as one blank; any other text is unchanged.

    >>> in_one_line("A dog\\r\\n\\tat  the beach. \\n")
    'A dog at  the beach.'
    """
    parts = _LINE_BREAKS.split(text)
    return text if len(parts) == 1 else " ".join(filter(None, map(str.strip, parts)))


# ------------------------------------------------------------------------------------------------------- COCO


def read_coco(captions: str | Path, instances: str | Path | None = None) -> CaptionedImages:
    """COCO's official captions and instances files, or plain mappings of image names (JSON, published pickles).

    Raises:
        UserError: a file is missing, malformed, names an image twice, or has captions of images that it does not list.
    """
    categories = None if instances is None else read_categories(instances)
    content = _read_values(captions)
    if not _is_official(content):
        return CaptionedImages.gather(_mapped_captions(content, captions), categories=categories)
    names = _image_names(content, captions)
    pairs = [
        (names[image_id], _text(caption, f"{captions}: the caption of image {names[image_id]}"))
        for image_id, caption in _annotations(content, "caption", names, captions)
    ]
    return CaptionedImages.gather(pairs, names.values(), categories)


def read_categories(path: str | Path) -> Categories:
    """Category sets from COCO's instances file, or from a JSON or pickled mapping {name: [category, ...]}.

    Raises:
        UserError: the file is missing or malformed, or names an image twice.
    """
    content = _read_values(path)
    if _is_official(content):
        names = _image_names(content, path)
        found: dict[str, set[int | str]] = {}
        for image_id, category in _annotations(content, "category_id", names, path):
            found.setdefault(names[image_id], set()).add(category)
        return {name: frozenset(members) for name, members in found.items()}
    content = content.get("file_to_catIds", content)  # one of several tables in the published pickle
    if not isinstance(content, dict):
        raise UserError(f"{path} must map image names to categories.")
    for name, members in content.items():
        if not isinstance(members, list | tuple | set | frozenset) or any(type(m) not in (int, str) for m in members):
            raise UserError(f"{path}: the categories of {name} must be a list of numbers or names.")
    return {name: frozenset(members) for name, members in content.items()}


def _read_values(path: str | Path) -> dict[str, Any]:
    content = read_pickle(path) if Path(path).suffix in (".pkl", ".pickle") else read_json(path, _CUT_OFF)
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise UserError(
            f"{path} must hold either COCO's images and annotations or an object that maps image names to values."
        )
    for name in content:
        _text(name, f"{path}: an image name")
    return content


def _is_official(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list)


def _image_names(content: Mapping[str, Any], path: str | Path) -> dict[int | str, str]:
    """File names by image id; both must be unique."""
    images = [
        _fields(entry, ("id", "file_name"), f"{path}: images[{row}]") for row, entry in enumerate(content["images"])
    ]
    _no_duplicates((image_id for image_id, _ in images), f"{path}: images", "id")
    names = {image_id: _text(name, f"{path}: the file_name of image {image_id}") for image_id, name in images}
    _no_duplicates(names.values(), f"{path}: images", "file_name")
    return names


def _annotations(
    content: Mapping[str, Any], field: str, names: Mapping[int | str, str], path: str | Path
) -> Iterator[tuple[int | str, Any]]:
    entries = [
        _fields(entry, ("image_id", field), f"{path}: annotations[{row}]")
        for row, entry in enumerate(content["annotations"])
    ]
    strangers = [image_id for image_id, _ in entries if image_id not in names]
    if strangers:
        raise UserError(
            f"{path}: {len(strangers)} annotations belong to images that it does not list, the first to image_id "
            f"{strangers[0]}; take the complete official file."
        )
    yield from entries


def _mapped_captions(content: Mapping[str, Any], path: str | Path) -> Iterator[tuple[str, str]]:
    for name, texts in content.items():
        for text in texts if isinstance(texts, list | tuple) else [texts]:
            yield name, _text(text, f"{path}: the caption of {name}")


# ----------------------------------------------------------------------------------------------------- Flickr


def read_flickr(path: str | Path) -> CaptionedImages:
    """Flickr8k or Flickr30k: the official token file, the usual CSV files, or Karpathy's dataset_flickr*.json.

    Token file: lines of ``name.jpg#0<tab>caption``. CSV: columns ``image, caption``, or with ``|`` between them
    ``image_name| comment_number| comment``.

    Raises:
        UserError: the file is missing or a line (named) is malformed.
    """
    if Path(path).suffix == ".json":
        return _read_karpathy(path)
    text = read_text(path)
    lines = split_lines(text)
    header = lines[0].replace(" ", "") if lines else ""
    if header.startswith("image") and "|" in header:
        rows = [line.split("|", 2) for line in lines]
        return CaptionedImages.gather(_columns(enumerate(rows, start=1), 3, path))
    if header == "image,caption":
        return CaptionedImages.gather(_columns(_csv_rows(text, path), 2, path))
    rows = [line.split("\t") for line in lines]
    return CaptionedImages.gather((name.rpartition("#")[0], text) for name, text in _token_rows(rows, path))


def _csv_rows(text: str, path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the lines at which they end; a quoted cell may have several lines."""
    reader = csv.reader(io.StringIO(text, newline=""))
    begun = 1
    try:
        for row in reader:
            if any(map(_SWALLOWED.search, row)):
                raise UserError(f"{path}: a quotation mark before line {reader.line_num} is not closed; fix the line.")
            yield reader.line_num, row
            begun = reader.line_num + 1
    except csv.Error as error:
        raise UserError(csv_fault(path, begun, reader.line_num, error)) from error


def _columns(rows: Iterable[tuple[int, list[str]]], count: int, path: str | Path) -> Iterator[tuple[str, str]]:
    """(name, caption) from numbered rows under a header: the first and the last of ``count`` columns."""
    for number, row in islice(rows, 1, None):
        if len(row) != count:
            raise UserError(f"{path}: line {number} has {len(row)} columns instead of {count}: {row}; fix the line.")
        yield row[0].strip(), row[-1].strip()


def _token_rows(rows: list[list[str]], path: str | Path) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows, start=1):
        if row == [""]:
            continue
        if len(row) != 2 or "#" not in row[0]:
            raise UserError(f"{path}: line {number} is not 'name.jpg#0<tab>caption': {' '.join(row)[:80]!r}.")
        yield row[0], row[1]


def _read_karpathy(path: str | Path) -> CaptionedImages:
    content = read_json(path, _CUT_OFF)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{path} has no list 'images'; Karpathy's files have one, with filename and sentences.")
    entries = [_fields(entry, ("filename", "sentences"), f"{path}: images[{row}]") for row, entry in enumerate(images)]
    for row, (name, sentences) in enumerate(entries):
        if not isinstance(sentences, list):
            raise UserError(f"{path}: images[{row}]: sentences must be a list, not {brief(sentences)}.")
        _text(name, f"{path}: images[{row}]: the filename")
    _no_duplicates((name for name, _ in entries), f"{path}: images", "filename")
    pairs = [
        (name, _text(_fields(sentence, ("raw",), where)[0], where))
        for name, sentences in entries
        for where in [f"{path}: a sentence of {name}"]
        for sentence in sentences
    ]
    return CaptionedImages.gather(pairs, [name for name, _ in entries])


# ---------------------------------------------------------------------------------------- Hugging Face data sets


def read_dataset(
    dataset: str,
    image_column: str,
    caption_column: str,
    split: str | None,
    subset: str | None,
    images: Path | None,
    written: Path,
) -> CaptionedImages:
    """A Hugging Face data set, by its id or as a local folder, or a local Parquet, JSON, JSONL or CSV file.

    The caption column holds a text or a list of texts. The image column holds file names relative to ``images``; or,
    where ``images`` is None, the pictures themselves, which are then written to the folder ``written``, unless they
    are there already. Of pictures that are files, those are taken that lie in the table's own folder (of a data set:
    or where its downloads are kept) and can be decoded. Rows with the same image are merged.

    Raises:
        UserError: the data set cannot be loaded, lacks a column, two pictures have one name, or none can be used.
    """
    rows = read_rows(dataset, split, subset)
    rows.require(image_column, "the images: --image_column")
    rows.require(caption_column, "the captions: --caption_column")
    pairs: list[tuple[str, str]] = []
    listed: list[str] = []
    empty: list[str] = []
    unusable: dict[str, list[str]] = {}
    folders = [ImageFolder(folder) for folder in picture_folders(dataset)]
    digests: dict[str, str] = {}
    for label, row in rows:
        where = f"{dataset}, {label}"
        image, texts = row.get(image_column), row.get(caption_column)
        if is_empty(image):
            empty.append(label)
            continue
        if images is None:
            try:
                name = _write_picture(image, written, folders, digests, f"{where}: column '{image_column}'")
            except SkipItem as reason:
                unusable.setdefault(str(reason), []).append(label)
                continue
        else:
            name = _text(image, f"{where}: the image, a file name in {images},")
        listed.append(name)
        # None counts as an empty caption: the image is reported as one without.
        for text in texts if isinstance(texts, list) else [texts or ""]:
            pairs.append((name, _text(text, f"{where}: column '{caption_column}'")))
    return replace(CaptionedImages.gather(pairs, listed), without_pictures=tuple(empty), unusable=unusable)


def _write_picture(
    picture: Any, folder: Path, given: Sequence[ImageFolder], digests: dict[str, str], where: str
) -> str:
    """Write an encoded picture; one without a name is named by its content, so that copies are one image.

    Raises:
        SkipItem: it is a file outside the given folders, missing, or no picture.
        UserError: it is something else, or another one has its name.
    """
    if isinstance(picture, bytes):
        picture = {"bytes": picture}
    if not isinstance(picture, dict):
        raise UserError(f"{where} holds no picture but {brief(picture)}; name the folder of the images: --images.")
    content, path = picture.get("bytes"), picture.get("path") or ""
    if not isinstance(path, str) or not isinstance(content, bytes | None):
        raise UserError(f"{where} holds no picture but {brief(picture)}; its bytes or path are of another kind.")
    if content is None:
        content = _read_picture(path, given)
    digest = hashlib.sha256(content).hexdigest()
    name = Path(path).name.replace("..", "")
    name = name or digest[:16] + _SUFFIXES.get(picture_format(content) or "", "")  # what cannot be read is found later
    if digests.setdefault(name, digest) != digest:
        raise UserError(f"{where}: two different pictures have the name {name}.")
    write_picture(content, folder / name)
    return name


def _read_picture(path: str, folders: Sequence[ImageFolder]) -> bytes:
    """The file that a table names, relative to the first of some folders or within any."""
    reasons: list[SkipItem] = []
    for folder in folders:
        try:
            return (folder.path / folder.find(path)).read_bytes()
        except SkipItem as reason:
            reasons.append(reason)
    raise next((reason for reason in reasons if "outside" not in str(reason)), reasons[0])


# ----------------------------------------------------------------------------------------------------- checks


def _fields(entry: Any, names: tuple[str, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object with {' and '.join(names)}.")
    for name in names:
        if name not in entry:
            raise UserError(f"{where} lacks '{name}'.")
        if name.endswith("id") and type(entry[name]) not in (int, str):
            raise UserError(f"{where}: {name} must be a number or a text, not {brief(entry[name])}.")
    return tuple(entry[name] for name in names)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} must be a text, not '{brief(value)}'.")
    if not is_writable(value):
        raise UserError(f"{where} is {brief(value)}, with half of a character, which UTF-8 cannot write.")
    return value


def _no_duplicates(values: Iterable[Any], where: str, field: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise UserError(
            f"{where}: {len(repeated)} values of {field} occur more than once, the first is {brief(repeated[0])}."
        )
