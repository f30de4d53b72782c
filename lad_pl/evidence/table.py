"""Prompts with their evidence, as rows of a table and back.

One row per prompt:

==================== ==================================================================================
sample               id of the sample
group, place         number of the sample in its split; which of its permutations (0..T-1)
permutation          N: original index of the image at each position
target               position of the right image; null where nobody knows it
log_probs            N: log-probability of each identifier, float32
attention            L x N, flat: attention mass on each image, mean over heads, float32
head_attention_sqrt  L x H x N, flat: square root of the attention mass of each head, float16
free_...             the same three under a content-free caption, for passes that have one
texts                what the model wrote, for passes that generate: a list of chains; these have no log_probs
seconds, forwards    the prompt's share of its batch's time; how often the language model ran for it
==================== ==================================================================================

The square root keeps masses down to 4e-9 to within 0.1 % in half precision, whose own smallest normal number, 6e-5,
lies above what many heads spend on an image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lad_pl.types import Batch, Evidence

FORMAT = 1
HEADER = b"lad_pl"
"""Key of the schema's metadata under which a table says what it is of."""
HEADS = "head_attention_sqrt"
_FREE = "free_"


@dataclass(frozen=True)
class EvidenceRecords:
    """Evidence of P prompts, and which prompts they are."""

    evidence: Evidence
    """Log-probabilities (P, N) and attention mass (P, L, H, N), on the CPU in double precision; without candidates
    (P, 0) where the model answered in words."""
    targets: Tensor
    """(P,) position of the right image, -1 where it is unknown."""
    permutations: Tensor
    """(P, N) original index of the image at each position."""
    sample_index: Tensor
    """(P,) number of the sample in its split."""
    permutation_index: Tensor
    """(P,) which of the sample's permutations."""
    ids: tuple[str, ...]
    """Sample id of each prompt."""
    seconds: Tensor
    """(P,) the prompt's share of its batch's wall time."""
    forwards: Tensor
    """(P,) how many forward passes of the language model the prompt took."""
    free: Evidence | None = None
    """Evidence of the same prompts under a content-free caption."""
    texts: tuple[tuple[str, ...], ...] | None = None
    """What the model wrote: the chains of each prompt."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> EvidenceRecords:
        """The prompts with these numbers, (R,) integers."""
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


def as_stored(evidence: Evidence) -> Evidence:
    """Evidence as the store gives it back: what is computed from it now and from the file later is the same."""
    return Evidence(
        evidence.log_probs.detach().cpu().float().double(),
        evidence.attention.detach().cpu().double().sqrt().half().double().square(),
        evidence.layer_attention.detach().cpu().float().double(),
    )


def no_evidence(num_prompts: int) -> Evidence:
    """Evidence without a candidate, of prompts that were answered in words."""
    return Evidence(torch.empty(num_prompts, 0).double(), torch.empty(num_prompts, 0, 0, 0).double())


def of_batch(
    batch: Batch,
    evidence: Evidence,
    seconds: float,
    forwards: int = 1,
    free: Evidence | None = None,
    texts: tuple[tuple[str, ...], ...] | None = None,
) -> EvidenceRecords:
    """The prompts of one batch, in which the permutations of a sample travel together.

    Args:
        batch: the prompts.
        evidence: what the model told about them.
        seconds: wall time of the batch.
        forwards: how often the language model ran for each prompt.
        free: evidence under a content-free caption.
        texts: what the model wrote.
    """
    rows = torch.arange(len(batch))
    num_permutations = len(batch) // len(batch.vision)
    return EvidenceRecords(
        evidence=as_stored(evidence),
        targets=batch.targets.cpu(),
        permutations=batch.permutations.cpu(),
        sample_index=batch.sample_index.cpu(),
        permutation_index=rows % num_permutations,
        ids=batch.ids,
        seconds=torch.full((len(rows),), seconds / len(rows), dtype=torch.float64),
        forwards=torch.full((len(rows),), forwards),
        free=None if free is None else as_stored(free),
        texts=texts,
    )


def to_record_batch(prompts: EvidenceRecords, settings: Mapping[str, Any]) -> pa.RecordBatch:
    """Prompts as rows; ``settings``, plain values, go into the schema's metadata."""
    columns: dict[str, pa.Array] = {
        "sample": pa.array(prompts.ids, pa.string()),
        "group": pa.array(prompts.sample_index.numpy(), pa.int32()),
        "place": pa.array(prompts.permutation_index.numpy(), pa.int16()),
        "permutation": _lists(prompts.permutations, np.int16),
        "target": pa.array(prompts.targets.numpy(), pa.int16(), mask=(prompts.targets < 0).numpy()),
        **_evidence_columns(prompts.evidence, ""),
        **({} if prompts.free is None else _evidence_columns(prompts.free, _FREE)),
        **({} if prompts.texts is None else {"texts": pa.array(prompts.texts, pa.list_(pa.large_string()))}),
        "seconds": pa.array(prompts.seconds.numpy(), pa.float32()),
        "forwards": pa.array(prompts.forwards.numpy(), pa.int32()),
    }
    header = {"format": FORMAT, "shape": [*prompts.evidence.attention.shape[1:]], "settings": settings}
    schema = pa.schema(
        {name: column.type for name, column in columns.items()}, metadata={HEADER: json.dumps(header).encode()}
    )
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


def from_table(table: pa.Table) -> EvidenceRecords:
    """Rows as prompts; where the column of heads was not read, attention has H = 1, the mean over heads."""
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
        free=_evidence(table, _FREE, *shape) if f"{_FREE}log_probs" in table.column_names else None,
        texts=texts,
    )


def joined(parts: Sequence[EvidenceRecords]) -> EvidenceRecords:
    """Several tables' prompts, one after the other."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], Evidence):
            return Evidence.cat(values)
        if isinstance(values[0], tuple):
            return tuple(item for value in values for item in value)
        return None if values[0] is None else torch.cat(values)

    if len(parts) == 1:
        return parts[0]
    return EvidenceRecords(
        **{item.name: join([getattr(part, item.name) for part in parts]) for item in fields(EvidenceRecords)}
    )


def _evidence_columns(evidence: Evidence, prefix: str) -> dict[str, pa.Array]:
    if not evidence.log_probs.shape[1]:
        return {}
    return {
        f"{prefix}log_probs": _lists(evidence.log_probs, np.float32),
        f"{prefix}attention": _lists(evidence.layer_attention.flatten(1), np.float32),
        prefix + HEADS: _lists(evidence.attention.sqrt().flatten(1), np.float16),
    }


def _evidence(table: pa.Table, prefix: str, layers: int, heads: int, n: int) -> Evidence:
    if f"{prefix}log_probs" not in table.column_names:
        return no_evidence(len(table))
    log_probs = _numbers(table[f"{prefix}log_probs"], np.float64)
    mean = _numbers(table[f"{prefix}attention"], np.float64).reshape(-1, layers, n)
    if prefix + HEADS not in table.column_names:
        return Evidence(log_probs, mean[:, :, None], mean)
    roots = _numbers(table[prefix + HEADS], np.float64).reshape(-1, layers, heads, n)
    return Evidence(log_probs, roots.square_(), mean)


def _lists(values: Tensor, dtype: Any) -> pa.Array:
    """(P, W) numbers as P lists of W."""
    flat = np.ascontiguousarray(values.numpy().astype(dtype)).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def _numbers(column: pa.ChunkedArray, dtype: Any) -> Tensor:
    """P lists of W numbers as (P, W)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.astype(dtype).reshape(len(column), -1))
