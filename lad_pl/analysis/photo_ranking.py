"""Photos ranked by how well they match a caption: the ranking, its table and its contact sheet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lad_pl.analysis.table import Table, percent
from lad_pl.data.images import open_image
from lad_pl.data.photos import PhotoData, PhotoGroup
from lad_pl.errors import UserError, printable
from lad_pl.files import atomic_write
from lad_pl.readouts import ReadoutSettings, log_probabilities

_THUMBNAIL, _COLUMNS, _MARGIN, _LINE = 220, 5, 12, 18
Ranking = dict[str, Any]


def rank_photos(
    records: Iterable[Mapping[str, Any]], data: PhotoData, settings: ReadoutSettings, rank_by: str
) -> list[Ranking]:
    """Merge the answers to all prompts into one ranking per caption.

    Args:
        records: the lines of predictions.jsonl.
        data: the question: its photos, captions and groups.
        settings: the readouts' free choices.
        rank_by: the readout that orders the photos.

    Returns:
        For each caption ``caption``, ``rank_by``, ``photos`` (best first: ``image`` and ``probability`` by readout)
        and ``agreement`` by readout: the share of orders of the images under which the same photo of a group came
        first, from 1 / N to 1; 1 means that the order did not matter.
    """
    prompts: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        prompts.setdefault(record["id"], []).append(record)
    rankings = []
    for number, caption in enumerate(data.captions):
        by_group = [prompts[f"{number}-{group}"] for group in range(len(data.groups))]
        probabilities, agreement = {}, {}
        for readout in by_group[0][0]["scores"]:
            log_probs = torch.stack([_by_photo(group, readout, settings) for group in by_group])  # (G, T, N)
            merged = log_probs.mean(1).log_softmax(-1)
            probabilities[readout] = strengths(data.groups, merged, len(data.photos)).exp().tolist()
            first = log_probs.argmax(-1) == merged.argmax(-1)[:, None]
            agreement[readout] = float(first.double().mean())
        order = sorted(range(len(data.photos)), key=lambda photo: -probabilities[rank_by][photo])
        photos = [
            {"image": data.photos[photo], "probability": {name: p[photo] for name, p in probabilities.items()}}
            for photo in order
        ]
        rankings.append({"caption": caption, "rank_by": rank_by, "photos": photos, "agreement": agreement})
    return rankings


def _by_photo(prompts: Sequence[Mapping[str, Any]], readout: str, settings: ReadoutSettings) -> Tensor:
    """(T, N) log-probabilities of a group's photos under its T permutations, in the group's order."""
    rows = []
    for prompt in prompts:
        by_position = log_probabilities(readout, torch.tensor(prompt["scores"][readout]).double(), settings)
        rows.append(torch.empty_like(by_position).scatter(0, torch.tensor(prompt["permutation"]), by_position))
    return torch.stack(rows)


def ranking_table(ranking: Ranking) -> Table:
    """One row per photo, best first, with its probability by the ranking readout and by the model's own answer."""
    rank_by = ranking["rank_by"]
    readouts = [rank_by, *(["vanilla"] if "vanilla" in ranking["agreement"] and rank_by != "vanilla" else [])]
    agreement = ", ".join(f"{readout} {percent(ranking['agreement'][readout], 0)} %" for readout in readouts)
    return Table(
        name="ranking",
        title=ranking["caption"],
        columns=["", "photo", *readouts],
        rows=[
            [str(place), photo["image"], *(f"{percent(photo['probability'][readout])} %" for readout in readouts)]
            for place, photo in enumerate(ranking["photos"], 1)
        ],
        caption=f"The same photo came first whatever the order of the images: {agreement}.",
        text_column=1,
    )


def write_contact_sheet(path: str | Path, rankings: Sequence[Ranking]) -> None:
    """Write one picture: for every caption its photos, best first, with their probabilities.

    Raises:
        UserError: the file cannot be written as a picture.
    """
    font = ImageFont.load_default(size=14)
    width = _MARGIN + _COLUMNS * (_THUMBNAIL + _MARGIN)
    cell = _THUMBNAIL + _LINE + _MARGIN
    heights = [_LINE + _MARGIN + -(-len(ranking["photos"]) // _COLUMNS) * cell for ranking in rankings]
    sheet = Image.new("RGB", (width, _MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for ranking, height in zip(rankings, heights, strict=True):
        draw.text((_MARGIN, top), _cut(ranking["caption"], font, width - 2 * _MARGIN), "black", font)
        for place, photo in enumerate(ranking["photos"]):
            row, column = divmod(place, _COLUMNS)
            left, upper = _MARGIN + column * (_THUMBNAIL + _MARGIN), top + _LINE + row * cell
            thumbnail = open_image(Path(photo["image"]), as_seen=True)
            thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL))
            sheet.paste(thumbnail, (left, upper + _THUMBNAIL - thumbnail.height))
            share = percent(photo["probability"][ranking["rank_by"]])
            label = _cut(f"{place + 1}  {share} %  {Path(photo['image']).name}", font, _THUMBNAIL)
            draw.text((left, upper + _THUMBNAIL), label, "black", font)
        top += height
    try:
        with atomic_write(path) as partial:
            sheet.save(partial, format=Image.registered_extensions()[Path(path).suffix.lower()])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"Cannot write the contact sheet {path} ({error}); give a name such as sheet.jpg.") from error


def _cut(text: str, font: Any, width: int) -> str:
    """As much of a text as fits."""
    text = " ".join(printable(text).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def strengths(dealt: Sequence[PhotoGroup], log_probs: Tensor, num_photos: int) -> Tensor:
    """Log-probabilities of M photos that explain the groups' log-odds best.

    Least squares: within every group, strengths less their mean against log-probabilities less their mean.

    Args:
        dealt: G groups of N photo indices that link all photos.
        log_probs: (G, N) log-probabilities within each group, in the groups' order; finite.
        num_photos: M.

    Returns:
        (M,) log-probabilities, double precision.
    """
    members = torch.tensor(dealt)
    size = members.shape[1]
    centred = log_probs.double() - log_probs.double().mean(-1, keepdim=True)
    # Normal equations: the graph's Laplacian, made regular by fixing the mean of the strengths.
    laplacian = torch.full((num_photos, num_photos), 1 / num_photos, dtype=torch.double)
    laplacian.diagonal().add_(torch.bincount(members.flatten(), minlength=num_photos))
    pairs = (members[:, :, None].expand(-1, -1, size), members[:, None].expand(-1, size, -1))
    laplacian.index_put_(pairs, torch.tensor(-1 / size, dtype=torch.double), accumulate=True)
    evidence = torch.zeros(num_photos, dtype=torch.double).index_add(0, members.flatten(), centred.flatten())
    return torch.linalg.solve(laplacian, evidence).log_softmax(0)
