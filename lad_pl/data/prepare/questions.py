"""Benchmark items whose answer is one of their images: which items fit, and the annotation files made of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lad_pl.data.prepare.pictures import is_empty, picture_format, write_picture
from lad_pl.errors import UserError, say
from lad_pl.files import atomic_write, is_writable
from lad_pl.prompts.template import identifiers

QUESTION_TEMPLATE = (
    "Given {n} images indexed from {first} to {last}, answer the question with one of them. "
    "Respond with the index number only and nothing else.\nQuestion: {caption}\nAnswer: "
)
"""The paper's base prompt with a question in place of the caption."""

_ORDINALS = {word: index for index, word in enumerate(identifiers("words", 26))} | {"forth": 3}
_PICTURE = r"(?:image|picture|photo|photograph|figure)"
_ORDINAL = rf"(?:{'|'.join(sorted(_ORDINALS, key=len, reverse=True))}|\d+(?:st|nd|rd|th))"
_NAME = re.compile(rf"(?:the )?(?:({_ORDINAL}) {_PICTURE}|{_PICTURE} ?#?(\d+|[a-z])|([a-z]))\.?", re.IGNORECASE)
_POSITION = rf"(?:{_ORDINAL}|last|next|previous|left|right|other)"
_NUMBER = "(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve)"
_LISTED = rf"(?: (?:and|or|to|{_NUMBER}|\d+|{_POSITION}))*"
_MENTION = re.compile(
    rf"\b(?i:{_POSITION}{_LISTED} {_PICTURE}s?|{_PICTURE}s?[ _-]?#?(?:\d+|{_NUMBER}))\b|\b(?i:{_PICTURE}) \(?[A-Z]\b"
)
_OPTION = re.compile(r"\(?([A-Z])\)?\s*(?:[:.)]|$)\s*(.*)")


DEFAULT_PERMUTATIONS = 5
"""T of the shipped configurations; two images have fewer permutations."""


class SkipItem(Exception):
    """An item cannot become a sample; the message is the reason, worded alike for all such items."""


# ------------------------------------------------------------------------------------------------ options and answer


def split_options(text: str) -> list[str]:
    """The texts of lettered options, one per line.

    >>> split_options("A: the first image\\nB: the second image\\n")
    ['the first image', 'the second image']

    Raises:
        SkipItem: the lines are not lettered A, B, C and so on.
    """
    options: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _OPTION.fullmatch(line)
        if match is None or letter_index(match[1]) != len(options):
            raise SkipItem("the options are not lettered A, B, C, ... line by line")
        options.append(match[2].strip())
    return options


def option_images(options: Sequence[str], num_images: int) -> list[int]:
    """The 0-based image that each option names; every image must be named by exactly one option.

    An option names an image by its position ("the second image", "Image 2", "Figure 2"), or is the image at the
    option's own position ("<image>", its letter, or nothing).

    >>> option_images(["The second image", "The first image"], 2)
    [1, 0]

    Raises:
        SkipItem: the numbers of images and options differ (a query image, say), or an option is something else.
    """
    if len(options) < num_images:
        raise SkipItem("more images than options (images that are shown, but cannot be the answer)")
    if len(options) > num_images:
        raise SkipItem("more options than images")
    images = [_named_image(option.strip(), own) for own, option in enumerate(options)]
    if sorted(images) != list(range(num_images)):
        raise SkipItem("the options do not name every image once")
    return images


def _named_image(option: str, own: int) -> int:
    if option in ("", "<image>"):
        return own
    match = _NAME.fullmatch(option)
    if match is None:
        raise SkipItem("the options are texts, not the images")
    ordinal, number, letter = match.groups()
    if letter or (number and number.isalpha()):
        return letter_index(letter or number)
    if number:
        return int(number) - 1
    return _ORDINALS[ordinal.lower()] if ordinal.lower() in _ORDINALS else int(re.sub(r"\D", "", ordinal)) - 1


def letter_index(letter: Any) -> int:
    """The 0-based index of an option's letter: ``A``, ``(A)``, ``A.`` or ``A:``.

    Raises:
        SkipItem: there is no answer, or it is no letter.
    """
    if letter is None or not str(letter).strip():
        raise SkipItem("no answer")
    match = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", str(letter).strip())
    if match is None:
        raise SkipItem("the answer is no letter")
    return ord(match[1].upper()) - ord("A")


def check_order_free(question: str) -> None:
    """Refuse a question that refers to an image by its position, as permuting the images would change its meaning.

    Raises:
        SkipItem: it does, or it has characters that UTF-8 cannot encode.
    """
    if _MENTION.search(question):
        raise SkipItem("the question refers to an image by its position, which changes with the order of the images")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise SkipItem("the question has characters that cannot be written") from error


def pick(images: Sequence[int], answer: int) -> int:
    """The image of the correct option.

    Args:
        images: the image of each option, as :func:`option_images` gives them.
        answer: 0-based index of the correct option.

    Raises:
        SkipItem: there is no such option.
    """
    if not 0 <= answer < len(images):
        raise SkipItem("the answer is none of the options")
    return images[answer]


# ---------------------------------------------------------------------------------------------------------- images


class ImageFolder:
    """The folder that image names are relative to. Every image is decoded once, to find broken files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._checked: set[str] = set()
        self._stored: dict[str, str] = {}

    def find(self, *candidates: str) -> str:
        """The first of some paths that is a file, as an image name relative to this folder.

        Raises:
            SkipItem: a path leads outside the folder, no file exists, or it is no image.
        """
        names = [os.path.relpath(os.path.normpath(self.path / path), self.path) for path in candidates]
        if any(name == ".." or name.startswith(f"..{os.sep}") for name in names):
            raise SkipItem(f"an image outside the image folder {self.path}")
        found = [name for name in names if os.path.isfile(self.path / name)]  # False, too, of names that none can have
        if not found:
            there = any(os.path.exists(self.path / name) for name in names)  # a folder, or a pipe, which would wait
            raise SkipItem(f"an image {'that is no regular file' if there else 'file is missing'} in {self.path}")
        name = Path(found[0]).as_posix()
        if name not in self._checked:
            from lad_pl.data.images import open_image

            try:
                open_image(self.path / name)
            except UserError as error:
                raise SkipItem("an image file cannot be read") from error
            self._checked.add(name)
        return name

    def store(self, content: bytes) -> str:
        """Write an embedded image to a file named by its content; returns the name.

        Raises:
            SkipItem: the image cannot be decoded.
        """
        digest = hashlib.sha256(content).hexdigest()[:20]
        if digest not in self._stored:
            kind = picture_format(content, decode=True)
            if kind is None:
                raise SkipItem("an embedded image cannot be read")
            name = f"{digest}.{kind.lower()}"
            write_picture(content, self.path / name)
            self._stored[digest] = name
        return self._stored[digest]


def store_image(image: Any, given: ImageFolder, embedded: ImageFolder) -> str:
    """The name of an image that is a path, bytes, or Hugging Face's ``{bytes, path}``.

    Raises:
        SkipItem: it is empty, something else, missing or broken.
    """
    if is_empty(image):
        raise SkipItem("an empty image")
    content = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(content, bytes):
        return embedded.store(content)
    path = image.get("path") if isinstance(image, dict) else image
    if not isinstance(path, str):
        raise SkipItem("an image that is neither a path nor embedded")
    return given.find(path)


# ---------------------------------------------------------------------------------------------------------- output


class AnnotationWriter:
    """Collects samples and the reasons for items left out; writes an annotation file per task and number of images."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._samples: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self._ids: set[str] = set()

    def add(self, task: str, name: str, images: Sequence[str], index: int | None, caption: str) -> None:
        """Add a sample.

        Raises:
            SkipItem: its id is taken, or it shows an image twice.
        """
        if name in self._ids:
            raise SkipItem("an id that came before")
        if len(set(images)) < len(images):
            raise SkipItem("the same image twice, so that the correct answer would be ambiguous")
        if not all(map(is_writable, (name, *images, caption))):
            raise SkipItem("a text has characters that cannot be written")
        self._ids.add(name)
        sample: dict[str, Any] = {"id": name, "image_ids": list(images), "caption": caption}
        if index is not None:
            sample["index"] = index
        self._samples[task, len(images)].append(sample)

    def leave_out(self, name: str, reason: SkipItem) -> None:
        """Count an item that is no sample."""
        self._left_out[str(reason)].append(name)

    def finish(self, output: str | Path, images: Path, questions: bool = True) -> None:
        """Write the annotation files and a configuration for each; print what was written and what left out.

        Args:
            output: folder to write to.
            images: the folder that the image names are relative to.
            questions: the texts are questions rather than captions.

        Raises:
            UserError: no item is left.
        """
        from lad_pl.data.annotations import write_annotations

        left_out = sum(map(len, self._left_out.values()))
        reasons = sorted(self._left_out.items(), key=lambda reason: -len(reason[1]))
        lines = [f"{len(names):,}: {reason} (first: {names[0]})" for reason, names in reasons]
        if not self._samples:
            raise UserError(f"{self.source}: none of {left_out:,} items can be used. " + "; ".join(lines) + ".")
        count = sum(map(len, self._samples.values()))
        say(f"{self.source}: {count:,} of {count + left_out:,} items have one of their images as the answer.")
        stems = {task: re.sub(r"[^\w.+-]+", "_", task) for task, _ in self._samples}
        for task, stem in stems.items():
            twin = next((name for name in stems if name != task and stems[name].casefold() == stem.casefold()), None)
            if twin is not None:
                raise UserError(f"{self.source}: tasks '{task}' and '{twin}' would have the same file; rename one.")
        for (task, num_images), samples in sorted(self._samples.items()):
            path = Path(output) / f"{stems[task]}_{num_images}.json"
            write_annotations(path, samples)
            with atomic_write(path.with_suffix(".yaml")) as partial:
                partial.write_text(_configuration(path, images, num_images, questions), encoding="utf-8")
            say(f"  {path}: {len(samples):,} samples of {num_images} images")
        if lines:
            say(f"Left out {left_out:,}:")
            for line in lines:
                say(f"  {line}")
        say(
            f"Next: python -m lad_pl fit --config configs/qwen.yaml --config "
            f"{shlex.quote(str(path.with_suffix('.yaml')))} --trainer.default_root_dir checkpoints/{path.stem}"
        )


def _configuration(annotations: Path, images: Path, num_images: int, questions: bool) -> str:
    """YAML to add to a model's configuration: the data, and the prompt if texts are questions."""
    lines = [
        "data:",
        "  class_path: lad_pl.data.MultiImageData",
        "  init_args:",
        f"    annotations: {json.dumps(annotations.as_posix())}",  # a JSON string is a YAML string
        f"    images: {json.dumps(images.as_posix())}",
    ]
    permutations = math.factorial(num_images)
    if permutations < DEFAULT_PERMUTATIONS:
        lines.append(f"    num_permutations: {permutations}  # {num_images} images have no more orders")
    if questions:
        lines += ["model:", "  prompt:", f"    template: {json.dumps(QUESTION_TEMPLATE)}"]
    return "\n".join(lines) + "\n"
