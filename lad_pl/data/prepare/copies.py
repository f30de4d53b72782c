"""Copies within a pool of images: files with the same bytes, and files with the same pixels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lad_pl.data.images import ends_digest, file_digest, open_image
from lad_pl.errors import UserError

_SAME = 1e-4
"""Half of the squared distance of two images' embeddings below which their pixels are compared; rounding is less."""
_COMPARED = 64
"""Dimensions of the embeddings by which they are compared: few images are this near in them without being alike."""
_BLOCK_ELEMENTS = 1 << 23


def originals(names: Sequence[str], folder: Path, embeddings: Tensor | None = None) -> list[int]:
    """For each image the index of the first one that shows the same picture, which as a rule is itself.

    Files are read only where another one has the same size, and decoded only where another one's embedding is the same.

    Args:
        names: of P images.
        folder: where they are.
        embeddings: of the images, (P, D), rows of unit length; without them, only the files' bytes are compared.
    """
    paths = [folder / name for name in names]
    groups: Iterable[list[int]] = [list(range(len(paths)))]
    steps: tuple[Callable[[Path], Hashable], ...] = (_size, ends_digest, file_digest)
    for fingerprint in steps:  # from cheap to certain
        groups = [same for group in groups for same in _alike(group, paths, fingerprint)]
    first = list(range(len(paths)))
    for group in groups:
        for index in group:
            first[index] = group[0]
    for group in _alike(_near_another(embeddings), paths, _pixels):
        joined = {first[index] for index in group}
        if len(joined) > 1:
            first = [min(joined) if original in joined else original for original in first]
    return first


def _alike(group: Sequence[int], paths: Sequence[Path], fingerprint: Callable[[Path], Hashable]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = defaultdict(list)
    for index in group:
        found[fingerprint(paths[index])].append(index)
    return [same for key, same in found.items() if len(same) > 1 and key is not None]


def _size(path: Path) -> int | None:
    return path.stat().st_size or None  # empty files are broken, not alike


def _pixels(path: Path) -> str | None:
    try:
        image = open_image(path)
    except UserError:
        return None
    return f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"


def _near_another(embeddings: Tensor | None) -> list[int]:
    """Images whose embedding may be that of another up to rounding; a block of the images at a time."""
    if embeddings is None:
        return []
    part = embeddings[:, :_COMPARED]
    lengths, ones = part.square().sum(1, keepdim=True) / -2, part.new_ones(len(part), 1)
    left, right = torch.cat([part, lengths, ones], 1), torch.cat([part, ones, lengths], 1)
    found: set[int] = set()
    size = max(1, _BLOCK_ELEMENTS // len(embeddings))
    for start in range(0, len(embeddings), size):
        near = (left[start : start + size] @ right[start:].T > -_SAME).triu(1)
        found.update((start + near.any(1).nonzero()[:, 0]).tolist(), (start + near.any(0).nonzero()[:, 0]).tolist())
    return sorted(found)


def count_near(shown: Sequence[Sequence[int]], embeddings: Tensor, threshold: float) -> tuple[list[int], list[int]]:
    """Samples that show nearly identical images: the correct one and another, and two others.

    Args:
        shown: the images of each sample, the correct one first, as indices into the embeddings.
        embeddings: of the images, (P, D), rows of unit length.
        threshold: cosine above which two images are nearly identical.
    """
    with_correct, among_others = [], []
    for number, images in enumerate(shown):
        vectors = embeddings[list(images)]
        near = (vectors @ vectors.T).triu(1) > threshold
        if near[0].any():
            with_correct.append(number)
        if near[1:].any():
            among_others.append(number)
    return with_correct, among_others
