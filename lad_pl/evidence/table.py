"""Evidence of prompts as the rows of a table.

One row per prompt:

==================== ==================================================================================
sample               id of the sample
key                  digest of the sample: of its images, caption and answer; absent from files of earlier versions
group, place         index of the sample in its split; index of the permutation (0..T-1)
permutation          N: original index of the image at each position
target               position of the correct image; null if unknown
log_probs            N: log-probability of each identifier, float32
attention            L x N, flat: attention mass on each image, mean over heads, float32
head_attention_sqrt  L x H x N, flat: square root of the attention mass of each head, float16
caption_attention_sqrt  L x H x N, flat: square root of the attention mass that the caption's tokens give each image,
                     their mean, float16; absent from files of earlier versions, and where no such mass was read
free_...             the same four under a content-free caption, of methods that have one
icr                  N: scores of In-Context Re-ranking, float32, of the method that computes them; absent likewise
texts                the generated texts, of methods that generate: a list per prompt; these have no log_probs
seconds, forwards    the prompt's share of its batch's time; forward passes of the language model
==================== ==================================================================================

The square root keeps masses down to 4e-9 to within 0.1 % in half precision, whose own smallest normal number, 6e-5,
lies above the mass of many heads on an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lad_pl.types import Batch, Evidence

FORMAT = 3
"""Since format 2 every record batch and every column carries a digest; since format 3 evidence has the attention of the
caption's tokens, where the model's passes give it. Formats 1 and 2 are read as well."""
FORMATS = (1, 2, FORMAT)
_FREE = "free_"
HEADER = b"lad_pl"
"""Key of the schema's metadata that holds the settings of the evidence."""
HEADS = "head_attention_sqrt"
CAPTION = "caption_attention_sqrt"
SINCE = {CAPTION: 3, _FREE + CAPTION: 3, "icr": 3}
"""Columns that evidence of earlier formats lacks, and the format that first has them."""
_TOLERANCE = 1e-3
"""How far rounding may take a sum of probabilities, or of attention mass, from what it should be."""


@dataclass(frozen=True)
class EvidenceRecords:
    """Evidence of P prompts, with their samples and permutations."""

    evidence: Evidence
    """Log-probabilities (P, N) and attention mass (P, L, H, N), on the CPU in double precision; without candidates
    (P, 0) where the model generated text."""
    targets: Tensor
    """(P,) position of the correct image, -1 if unknown."""
    permutations: Tensor
    """(P, N) original index of the image at each position."""
    sample_index: Tensor
    """(P,) index of the sample in its split."""
    permutation_index: Tensor
    """(P,) index of the permutation, 0 to T - 1."""
    ids: tuple[str, ...]
    """Sample id of each prompt."""
    seconds: Tensor
    """(P,) the prompt's share of its batch's wall time."""
    forwards: Tensor
    """(P,) forward passes of the language model."""
    content_free: Evidence | None = None
    """Evidence of the same prompts under a content-free caption."""
    texts: tuple[tuple[str, ...], ...] | None = None
    """The generated texts of each prompt."""
    icr: Tensor | None = None
    """(P, N) scores of In-Context Re-ranking."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> EvidenceRecords:
        """The prompts at these rows, (R,) integers."""
        chosen = rows.tolist()

        def pick(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(value[row] for row in chosen)
            return value if value is None else value[rows]

        return EvidenceRecords(**{item.name: pick(getattr(self, item.name)) for item in fields(self)})

    @property
    def num_candidates(self) -> int:
        """N."""
        return self.permutations.shape[1]

    @property
    def num_permutations(self) -> int:
        """T."""
        return int(self.permutation_index.max()) + 1

    @classmethod
    def from_batch(
        cls,
        batch: Batch,
        evidence: Evidence,
        seconds: float,
        forwards: int = 1,
        content_free: Evidence | None = None,
        texts: tuple[tuple[str, ...], ...] | None = None,
        icr: Tensor | None = None,
    ) -> EvidenceRecords:
        """The prompts of one batch, which holds all permutations of its samples.

        Args:
            batch: the prompts.
            evidence: of the prompts.
            seconds: wall time of the batch.
            forwards: forward passes of the language model per prompt.
            content_free: evidence under a content-free caption.
            texts: the generated texts.
            icr: scores (B, N) of In-Context Re-ranking.
        """
        rows = torch.arange(len(batch))
        num_permutations = len(batch) // len(batch.vision)
        return cls(
            evidence=as_stored(evidence),
            targets=batch.targets.cpu(),
            permutations=batch.permutations.cpu(),
            sample_index=batch.sample_index.cpu(),
            permutation_index=rows % num_permutations,
            ids=batch.ids,
            seconds=torch.full((len(rows),), seconds / len(rows), dtype=torch.float64),
            forwards=torch.full((len(rows),), forwards),
            content_free=None if content_free is None else as_stored(content_free),
            texts=texts,
            icr=None if icr is None else icr.detach().cpu().float().double(),
        )

    @staticmethod
    def concat(parts: Sequence[EvidenceRecords]) -> EvidenceRecords:
        """The prompts of several, one after the other."""

        def join(values: list[Any]) -> Any:
            if isinstance(values[0], Evidence):
                return Evidence.concat(values)
            if isinstance(values[0], tuple):
                return tuple(item for value in values for item in value)
            return None if any(value is None for value in values) else torch.cat(values)

        if len(parts) == 1:
            return parts[0]
        return EvidenceRecords(
            **{item.name: join([getattr(part, item.name) for part in parts]) for item in fields(EvidenceRecords)}
        )


def as_stored(evidence: Evidence) -> Evidence:
    """Evidence rounded as the store rounds it: results computed now and from the file later are the same."""
    caption = evidence.caption_attention
    return Evidence(
        evidence.log_probs.detach().cpu().float().double(),
        _rounded(evidence.attention),
        evidence.layer_attention.detach().cpu().float().double(),
        None if caption is None else _rounded(caption),
    )


def _rounded(mass: Tensor) -> Tensor:
    """As its square root in half precision."""
    return mass.detach().cpu().double().sqrt().half().double().square()


def damage(records: EvidenceRecords) -> str | None:
    """Why prompts cannot have been stored like this, in a few words; None if their values are possible.

    Log-probabilities are finite and their probabilities sum to 1; attention masses lie between 0 and 1, and each
    layer's is the mean of its heads'; other scores are finite.
    """
    n = records.num_candidates
    wrong = [
        ("order of images", (records.permutations.sort(1).values != torch.arange(n)).any(1)),
        ("position of the correct image", (records.targets < -1) | (records.targets >= n)),
        ("index", (records.sample_index < 0) | (records.permutation_index < 0)),
        ("cost", ~(records.seconds >= 0) | records.seconds.isinf() | (records.forwards < 0)),
    ]
    if records.icr is not None:
        wrong.append(("In-Context Re-ranking score", ~records.icr.isfinite().all(1)))
    for evidence in filter(None, (records.evidence, records.content_free)):
        if evidence.log_probs.shape[1]:
            wrong += _impossible(evidence)
    for what, rows in wrong:
        if rows.any():
            return f"the {what} of sample {records.ids[int(rows.nonzero()[0])]} is impossible"
    return None


def _impossible(evidence: Evidence) -> list[tuple[str, Tensor]]:
    """By kind of value: which of P prompts (P,) have impossible ones."""
    sums = evidence.log_probs.exp().sum(1)
    masses = (evidence.attention, evidence.layer_attention, evidence.caption_attention)
    within = [_is_mass(mass) for mass in masses if mass is not None]
    apart = (evidence.attention.mean(2) - evidence.layer_attention).abs()
    return [
        ("log-probabilities", ~(evidence.log_probs.isfinite().all(1) & ((sums - 1).abs() <= _TOLERANCE))),
        ("attention mass", ~torch.stack(within).all(0)),
        # Rounding to half precision changes a mass by at most one part in a thousand.
        ("mean attention mass", ~(apart <= 2e-3 * evidence.layer_attention + 1e-6).flatten(1).all(1)),
    ]


def _is_mass(values: Tensor) -> Tensor:
    """(P,): whether a prompt's values lie between 0 and 1."""
    return ((values >= 0) & (values <= 1 + _TOLERANCE)).flatten(1).all(1)


def column_digests(table: pa.Table | pa.RecordBatch) -> dict[str, str]:
    """A digest of each column's values, the same in memory, in a part and in the finished file."""
    return {name: _column_digest(table[name]) for name in table.schema.names}


def record_digest(batch: pa.RecordBatch) -> bytes:
    """A digest of a record batch: its values, their names, and the settings in its schema."""
    digest = hashlib.sha256((batch.schema.metadata or {}).get(HEADER, b""))
    digest.update(json.dumps(column_digests(batch)).encode())
    return digest.hexdigest().encode()


def _column_digest(column: pa.Array | pa.ChunkedArray) -> str:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.list_size if pa.types.is_fixed_size_list(array.type) else 0
    values = array.flatten() if width else array
    digest = hashlib.sha256()
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        digest.update(
            f"{len(array)} {width} {values.type} {values.is_null().to_pylist() if values.null_count else ''}".encode()
        )
        digest.update(np.ascontiguousarray(pc.fill_null(values, 0).to_numpy(zero_copy_only=False)).tobytes())
    else:
        digest.update(json.dumps(values.to_pylist()).encode())
    return digest.hexdigest()[:32]


def no_evidence(num_prompts: int) -> Evidence:
    """Evidence without a candidate, of prompts whose answers are generated texts."""
    return Evidence.from_heads(torch.empty(num_prompts, 0).double(), torch.empty(num_prompts, 0, 0, 0).double())


def to_record_batch(
    records: EvidenceRecords, settings: Mapping[str, Any], keys: Sequence[str] | None = None
) -> pa.RecordBatch:
    """The prompts as rows; ``settings``, plain values, go into the schema's metadata, ``keys`` into a column."""
    columns: dict[str, pa.Array] = {
        "sample": pa.array(records.ids, pa.string()),
        "key": pa.array(records.ids if keys is None else keys, pa.string()),
        "group": pa.array(records.sample_index.numpy(), pa.int32()),
        "place": pa.array(records.permutation_index.numpy(), pa.int16()),
        "permutation": _lists(records.permutations, np.int16),
        "target": pa.array(records.targets.numpy(), pa.int16(), mask=(records.targets < 0).numpy()),
        **_evidence_columns(records.evidence, ""),
        **({} if records.content_free is None else _evidence_columns(records.content_free, _FREE)),
        **({} if records.icr is None else {"icr": _lists(records.icr, np.float32)}),
        **({} if records.texts is None else {"texts": pa.array(records.texts, pa.list_(pa.large_string()))}),
        "seconds": pa.array(records.seconds.numpy(), pa.float32()),
        "forwards": pa.array(records.forwards.numpy(), pa.int32()),
    }
    header = {"format": FORMAT, "shape": [*records.evidence.attention.shape[1:]], "settings": settings}
    schema = pa.schema(
        {name: column.type for name, column in columns.items()}, metadata={HEADER: json.dumps(header).encode()}
    )
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


def from_table(table: pa.Table) -> EvidenceRecords:
    """The prompts of a table; if the column of heads was not read, attention has H = 1, the mean over heads.

    What a table of an earlier format lacks is None.
    """
    shape = json.loads(table.schema.metadata[HEADER])["shape"]
    texts = tuple(map(tuple, table["texts"].to_pylist())) if "texts" in table.column_names else None
    return EvidenceRecords(
        evidence=_evidence(table, "", *shape),
        targets=torch.from_numpy(table["target"].fill_null(-1).to_numpy().astype(np.int64)),
        permutations=_numbers(table["permutation"], np.int64),
        sample_index=torch.from_numpy(table["group"].to_numpy().astype(np.int64)),
        permutation_index=torch.from_numpy(table["place"].to_numpy().astype(np.int64)),
        ids=tuple(table["sample"].to_pylist()),
        seconds=torch.from_numpy(table["seconds"].to_numpy().astype(np.float64)),
        forwards=torch.from_numpy(table["forwards"].to_numpy().astype(np.int64)),
        content_free=_evidence(table, _FREE, *shape) if f"{_FREE}log_probs" in table.column_names else None,
        texts=texts,
        icr=_numbers(table["icr"], np.float64) if "icr" in table.column_names else None,
    )


def _evidence_columns(evidence: Evidence, prefix: str) -> dict[str, pa.Array]:
    if not evidence.log_probs.shape[1]:
        return {}
    caption = evidence.caption_attention
    return {
        f"{prefix}log_probs": _lists(evidence.log_probs, np.float32),
        f"{prefix}attention": _lists(evidence.layer_attention.flatten(1), np.float32),
        prefix + HEADS: _lists(evidence.attention.sqrt().flatten(1), np.float16),
        **({} if caption is None else {prefix + CAPTION: _lists(caption.sqrt().flatten(1), np.float16)}),
    }


def _evidence(table: pa.Table, prefix: str, layers: int, heads: int, n: int) -> Evidence:
    if f"{prefix}log_probs" not in table.column_names:
        return no_evidence(len(table))
    log_probs = _numbers(table[f"{prefix}log_probs"], np.float64)
    mean = _numbers(table[f"{prefix}attention"], np.float64).reshape(-1, layers, n)
    if prefix + HEADS not in table.column_names:
        return Evidence(log_probs, mean[:, :, None], mean)
    columns = [prefix + name for name in (HEADS, CAPTION) if prefix + name in table.column_names]
    masses = [_numbers(table[name], np.float64).reshape(-1, layers, heads, n).square_() for name in columns]
    return Evidence(log_probs, masses[0], mean, *masses[1:])


def _lists(values: Tensor, dtype: Any) -> pa.Array:
    """(P, W) numbers as P lists of W."""
    flat = np.ascontiguousarray(values.numpy().astype(dtype)).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def _numbers(column: pa.ChunkedArray, dtype: Any) -> Tensor:
    """P lists of W numbers as (P, W)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.astype(dtype).reshape(len(column), -1))
