"""Hard negatives: for every anchor, the nearest images of a pool with other categories and another caption.

With image embeddings v, caption embeddings t (both of unit length) and category sets C, image p is a candidate for
anchor a if ``t_a . t_p < max_text_similarity`` and C_p is not excluded by C_a; the candidates with the largest
``v_a . v_p`` are its negatives (paper, appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lad_pl.data.prepare.captions import Categories, Exclusion
from lad_pl.data.prepare.clip_embeddings import Embeddings, progress
from lad_pl.errors import UserError

_BLOCK_ELEMENTS = 1 << 23
"""Anchors times pool images compared at once: 32 MB per float32 matrix, whatever the size of the pool."""
_SPARE = 32
"""Nearest images beyond k whose captions are compared first; only if they do not suffice, all of the pool's are."""
_PAIRS = 1 << 13
"""Pairs ranked at once in double precision."""
_TIE = 1e-5
"""More than the rounding error of single precision in a product of two unit vectors."""


@dataclass(frozen=True)
class Pool:
    """P images to choose negatives from."""

    images: Tensor
    """Image embeddings, float32 (P, D), rows of unit length."""
    texts: Tensor
    """Caption embeddings, float32 (P, D), rows of unit length."""
    categories: Tensor | None = None
    """Category sets as bits, int64 (P, words), see :func:`category_bits`; None where images have no categories."""
    originals: Tensor | None = None
    """The first image of the pool with the same picture, the image itself as a rule, int64 (P,); None: all differ."""

    def __len__(self) -> int:
        return len(self.images)


class Exclusions(NamedTuple):
    """How many of the other images of the pool are candidates for one anchor, and how many each rule excludes."""

    candidates: int
    same_categories: int
    similar_caption: int
    """Excluded by their caption alone. Copies of other images count nowhere."""


def category_bits(sets: Sequence[frozenset[int | str]]) -> Tensor:
    """Sets as rows of int64 words, one bit per category, so that sets are compared a word at a time."""
    bits = {category: bit for bit, category in enumerate(sorted(frozenset().union(*sets), key=str))}
    rows = [row for row, members in enumerate(sets) for _ in members]
    columns = [bits[category] for members in sets for category in members]
    words = torch.zeros(len(sets), max(1, -(-len(bits) // 62)), dtype=torch.int64)
    column = torch.tensor(columns, dtype=torch.int64)
    # Each bit is added at most once, so that adding is setting; 62 bits keep clear of the sign.
    words.index_put_((torch.tensor(rows, dtype=torch.int64), column // 62), 1 << column % 62, accumulate=True)
    return words


def nearest_candidates(
    pool: Pool,
    anchors: Sequence[int],
    k: int,
    max_text_similarity: float = 0.9,
    exclude: Exclusion = "subset",
    report: Callable[[int], None] = lambda anchors: None,
) -> Tensor:
    """Pool indices of the k nearest candidates of each anchor, int64 (A, k), nearest first.

    Copies of the anchor are no candidates, and of several copies of one picture only the first may be. A row is -1
    throughout if the anchor has fewer than k candidates. Ties in similarity go to the earlier image of the
    pool; they are found in double precision, as single precision can give equal images different similarities.

    Args:
        pool: the images.
        anchors: indices into the pool, (A,).
        k: negatives per anchor.
        max_text_similarity: captions at least as similar as this exclude an image.
        exclude: "subset" excludes images with all of the anchor's categories, "identical" those with the same set.
        report: called after each block with its number of anchors.
    """
    nearest = []
    for rows in torch.as_tensor(anchors, dtype=torch.int64).split(max(1, _BLOCK_ELEMENTS // max(1, len(pool)))):
        nearest.append(_block(pool, rows, k, max_text_similarity, exclude))
        report(len(rows))
    return torch.cat(nearest)


def exclusions(pool: Pool, anchor: int, max_text_similarity: float = 0.9, exclude: Exclusion = "subset") -> Exclusions:
    """How many images each rule of :func:`nearest_candidates` excludes for an anchor."""
    row = torch.tensor([anchor])
    others = ~copies(pool, row)[0]
    same = excluded_by_category(pool.categories, row, exclude, len(pool))[0] & others
    similar = (pool.texts @ pool.texts[anchor] >= max_text_similarity) & others & ~same
    return Exclusions(int((others & ~same & ~similar).sum()), int(same.sum()), int(similar.sum()))


class Miner:
    """Finds the negatives of a pool's images.

    Args:
        embedded: embeddings of the pool's images, among others.
        names: the P images of the pool.
        categories: of the images, where they are known.
        max_text_similarity: as in :func:`nearest_candidates`.
        exclude: as in :func:`nearest_candidates`.
        originals: the first image with the same picture, by index into ``names``.
    """

    def __init__(
        self,
        embedded: Embeddings,
        names: Sequence[str],
        categories: Categories | None,
        max_text_similarity: float,
        exclude: Exclusion,
        originals: Sequence[int],
    ) -> None:
        bits = None if categories is None else category_bits([categories[name] for name in names])
        self.pool = Pool(*embedded.of(names), bits, torch.tensor(originals))
        self.names, self.max_text_similarity, self.exclude = names, max_text_similarity, exclude

    def negatives(self, anchors: Sequence[int], n: int) -> list[tuple[int, ...]]:
        """The n - 1 negatives of each anchor, nearest first; anchors and negatives are indices into the pool.

        Raises:
            UserError: an anchor has too few candidates.
        """
        with progress() as bar:
            task = bar.add_task(f"nearest images, N = {n}", total=len(anchors))
            nearest = nearest_candidates(
                self.pool, anchors, n - 1, self.max_text_similarity, self.exclude, lambda done: bar.advance(task, done)
            )
        short = [anchor for anchor, found in zip(anchors, nearest[:, 0].tolist(), strict=True) if found < 0]
        if short:
            found = exclusions(self.pool, short[0], self.max_text_similarity, self.exclude)
            raise UserError(
                f"{len(short)} of {len(anchors)} anchors have too few candidates for N = {n}: {self.names[short[0]]} "
                f"has {found.candidates} of {n - 1}, as {found.same_categories} of the other {len(self.names) - 1} "
                f"images have its categories and {found.similar_caption} a similar caption; enlarge the pool, or "
                "change exclude or max_text_similarity."
            )
        return [tuple(row) for row in nearest.tolist()]


def _block(pool: Pool, rows: Tensor, k: int, max_text_similarity: float, exclude: Exclusion) -> Tensor:
    similarity = pool.images[rows] @ pool.images.T
    similarity[excluded_by_category(pool.categories, rows, exclude, len(pool))] = -torch.inf
    similarity[copies(pool, rows)] = -torch.inf
    # Few captions are alike, so it mostly suffices to compare those of a few nearest images.
    size = min(k + _SPARE, len(pool))
    near, columns = similarity.topk(size)
    alike = torch.einsum("ad,amd->am", pool.texts[rows], pool.texts[columns]) >= max_text_similarity
    bound = _bound(near.masked_fill_(alike, -torch.inf), k)
    settled = bound > similarity.gather(1, columns[:, -1:])[:, 0]
    place, which = ((near >= bound[:, None]) & settled[:, None]).nonzero(as_tuple=True)
    pairs = [torch.stack([place, columns[place, which]])]
    rest = (~settled).nonzero()[:, 0]
    if len(rest):
        similarity = similarity[rest]
        similarity[pool.texts[rows[rest]] @ pool.texts.T >= max_text_similarity] = -torch.inf
        bound = _bound(similarity, k)
        place, column = ((similarity >= bound[:, None]) & bound.isfinite()[:, None]).nonzero(as_tuple=True)
        pairs.append(torch.stack([rest[place], column]))
    return _rank(pool.images, rows, torch.cat(pairs, dim=1), k)


def copies(pool: Pool, rows: Tensor) -> Tensor:
    """Which pool images show an anchor's own picture or that of an earlier image, bool (A, P)."""
    every = torch.arange(len(pool))
    originals = every if pool.originals is None else pool.originals
    return (originals != every) | (every == originals[rows, None]) | (every == rows[:, None])


def _bound(similarity: Tensor, k: int) -> Tensor:
    """Lower bound of the exact similarity of a row's k-th image; -inf where there is none."""
    if similarity.shape[1] < k:
        return torch.full((len(similarity),), -torch.inf)
    return similarity.topk(k).values[:, -1] - _TIE


def excluded_by_category(categories: Tensor | None, rows: Tensor, exclude: Exclusion, size: int) -> Tensor:
    """Which pool images the anchors' categories exclude, bool (A, P)."""
    if categories is None:
        return torch.zeros(len(rows), size, dtype=torch.bool)
    difference = torch.zeros(len(rows), size, dtype=torch.int64)
    for word in categories.unbind(1):
        own = word[rows, None]
        difference |= own & ~word if exclude == "subset" else own ^ word
    return difference == 0


def _rank(images: Tensor, rows: Tensor, pairs: Tensor, k: int) -> Tensor:
    """The k most similar columns per row from ``pairs`` (row, column), ties to the left; -1 in rows without pairs."""
    place, column = pairs
    exact = torch.cat(
        [
            (images[rows[left]].double() * images[right].double()).sum(1)
            for left, right in zip(place.split(_PAIRS), column.split(_PAIRS), strict=True)
        ]
    )
    order = column.argsort(stable=True)
    order = order[exact[order].argsort(descending=True, stable=True)]
    order = order[place[order].argsort(stable=True)]
    counts = place.bincount(minlength=len(rows))
    first = counts.cumsum(0) - counts
    nearest = torch.full((len(rows), k), -1, dtype=torch.int64)
    found = counts > 0
    nearest[found] = column[order][first[found, None] + torch.arange(k)]
    return nearest
