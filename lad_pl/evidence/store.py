"""Append-only, resumable evidence store: Arrow streams while a stage runs, one Parquet file when it is done.

While a stage runs, every process appends its prompts to an Arrow stream of its own in ``<name>.parquet.parts-.../``:
what is on disk survives a kill, and a torn last record is recognised and left out. When all prompts are there, the
parts become one Parquet file in the samples' order, atomically. :mod:`lad_pl.evidence.table` lists its columns; the
schema's metadata holds the settings that the evidence depends on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lad_pl.errors import UserError, first_line
from lad_pl.evidence.table import (
    FORMATS,
    HEADER,
    HEADS,
    EvidenceRecords,
    column_digests,
    damage,
    from_table,
    record_digest,
    to_record_batch,
)
from lad_pl.files import atomic_write
from lad_pl.provenance import first_difference, short_digest

_ROWS_PER_GROUP = 4096
_DIGEST = b"digest"
"""Key of a record batch's digest, in its own metadata."""
_DIGESTS = b"lad_pl_digests"
"""Key of the digests of the settings and of every column, in the metadata of the finished file."""


class EvidenceStore:
    """One stage's evidence on disk: parts while the stage runs, a Parquet file when it is done.

    Args:
        path: of the Parquet file.
        settings: that the evidence depends on; a store of other settings is refused.
        overwrite: replace a store of other settings instead.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))  # as it is read back: tuples become lists
        self.folder = self.path.with_name(f"{self.path.name}.parts-{short_digest(self.settings, 8)}")
        """Of the parts; each configuration has its own, so they cannot mix."""
        self._overwrite = overwrite
        self._file: FileIO | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None

    # ------------------------------------------------------------------------------------------------- what is stored

    def check(self) -> None:
        """Refuse evidence of other settings.

        Raises:
            UserError: there is some, or an unreadable file, and it must not be overwritten.
        """
        difference = None if self._overwrite else self._difference()
        if difference:
            raise UserError(
                f"{self.path} holds evidence of another configuration ({difference}). Choose another folder with "
                "--trainer.default_root_dir (naming this one's calibration with --ckpt_path), or replace it with "
                "--model.overwrite true."
            )

    def done(self, num_permutations: int) -> set[int]:
        """Indices of the samples all of whose T permutations are stored under these settings."""
        if self._is_finished():
            return {sample for table in _row_groups(self.path, ["group"]) for sample in table["group"].to_pylist()}
        counts: dict[int, set[int]] = {}
        for batch in self._stored():
            for sample, permutation in zip(batch["group"].to_pylist(), batch["place"].to_pylist(), strict=True):
                counts.setdefault(sample, set()).add(permutation)
        return {sample for sample, permutations in counts.items() if len(permutations) == num_permutations}

    def _is_finished(self) -> bool:
        """Whether the Parquet file is there, and of these settings."""
        try:
            return self.path.exists() and not first_difference(read_settings(self.path), self.settings)
        except UserError:  # check() has allowed that it is replaced
            return False

    def _difference(self) -> str | None:
        """How stored settings differ from ours, or why they cannot be read; None if they do not."""
        try:
            there = [read_settings(self.path)] if self.path.exists() else []
            parts = self.path.parent.glob(f"{self.path.name}.parts-*/*.arrows")
            there += [_settings(schema, part) for part in sorted(parts) if (schema := _stream_schema(part))]
        except UserError as error:
            return str(error).rstrip(".")
        return next((found for stored in there if (found := first_difference(stored, self.settings))), None)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrows"))

    def _stored(self) -> Iterator[pa.RecordBatch]:
        for part in self._parts():
            yield from _intact_batches(part)

    # ------------------------------------------------------------------------------------------------------- writing

    def append(self, records: EvidenceRecords, rank: int = 0) -> None:
        """Write records; they survive whatever happens to the process from here on.

        Raises:
            UserError: their values are impossible, as of a model whose attention is not a softmax.
        """
        if not len(records):
            return
        if found := damage(records):
            raise UserError(f"The model's output cannot be used: {found}.")
        table = to_record_batch(records, self.settings)
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"rank{rank}-{time.time_ns()}-{os.getpid()}.arrows"  # no other process writes to the same file
            self._file = (self.folder / name).open("xb", buffering=0)
            self._writer = pa.ipc.new_stream(self._file, table.schema)
        self._writer.write_batch(table, custom_metadata={_DIGEST: record_digest(table)})

    def close(self) -> None:
        """Close this process's part."""
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
        self._writer = self._file = None

    def finish(self, num_samples: int, num_permutations: int) -> None:
        """Merge the parts into one file, in the samples' order; called by one process, after all have closed theirs.

        A file of other settings is replaced now, and not before.

        Raises:
            UserError: prompts are missing; the parts stay.
        """
        if not self._is_finished():
            batches = list(self._stored())
            keys = sorted(
                {
                    key: (number, row)
                    for number, batch in reversed(list(enumerate(batches)))
                    for row, key in enumerate(zip(batch["group"].to_pylist(), batch["place"].to_pylist(), strict=True))
                }.items()
            )
            missing = num_samples * num_permutations - len(keys)
            if missing:
                raise UserError(
                    f"{missing} of {num_samples * num_permutations} prompts have no evidence; what is stored stays in "
                    f"{self.folder}. Run the same command again to go on, without trainer.limit_..._batches, "
                    "max_epochs or fast_dev_run (for fewer samples, set --data.num_test, or --data.num_calibration for "
                    "fit); several machines need the run folder on a disk that they share."
                )
            self._write_merged(batches, [row for _, row in keys])
        for folder in self.path.parent.glob(f"{self.path.name}.parts-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _write_merged(self, batches: Sequence[pa.RecordBatch], order: Sequence[tuple[int, int]]) -> None:
        starts = np.cumsum([0, *(len(batch) for batch in batches)])
        rows = [int(starts[number]) + row for number, row in order]
        table = pa.Table.from_batches(batches)
        digests: dict[str, list[str]] = {name: [] for name in table.column_names}
        with (
            atomic_write(self.path) as partial,
            pq.ParquetWriter(partial, table.schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for first in range(0, len(rows), _ROWS_PER_GROUP):
                group = table.take(rows[first : first + _ROWS_PER_GROUP])
                writer.write_table(group)
                for name, digest in column_digests(group).items():
                    digests[name].append(digest)
            checked = {"header": _header_digest(table.schema), "columns": digests}
            writer.add_key_value_metadata({_DIGESTS: json.dumps(checked).encode()})


# ------------------------------------------------------------------------------------------------------------- reading


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a finished store's evidence depends on.

    Raises:
        UserError: the file is missing, truncated, or no evidence of this toolkit.
    """
    return _settings(_open(path).schema_arrow, path)


def recorded_settings(path: str | Path) -> Iterator[dict[str, Any]]:
    """The settings of a store's finished file and of each of its parts, as far as they can be read."""
    path = Path(path)
    for file in (path, *sorted(path.parent.glob(f"{path.name}.parts-*/*.arrows"))):
        with suppress(UserError):
            if file == path and path.exists():
                yield read_settings(path)
            elif file != path and (schema := _stream_schema(file)):
                yield _settings(schema, file)


def read_prompts(path: str | Path, heads: bool = True) -> EvidenceRecords:
    """All prompts of a finished store.

    Args:
        path: of the Parquet file.
        heads: read the attention of every head; otherwise ``evidence.attention`` has H = 1, the mean.

    Raises:
        UserError: the file is missing, truncated, or no evidence of this toolkit.
    """
    return EvidenceRecords.concat(list(stream_prompts(path, heads)))


def stream_prompts(path: str | Path, heads: bool = True) -> Iterator[EvidenceRecords]:
    """The prompts of a finished store, a few thousand at a time; samples are not split.

    Raises:
        UserError: as :func:`read_prompts`.
    """
    names = _open(path).schema_arrow.names
    rest: pa.Table | None = None
    groups = _row_groups(path, [name for name in names if heads or not name.endswith(HEADS)])
    for following in chain(groups, [None]):
        if following is None:
            table, whole = rest, 0 if rest is None else len(rest)
        else:
            table = following if rest is None else pa.concat_tables([rest, following])
            whole = _start_of_last_sample(table)
        if table is not None and whole:
            yield _checked(table.slice(0, whole), path)
        rest = None if table is None else table.slice(whole)


def _row_groups(path: str | Path, columns: list[str]) -> Iterator[pa.Table]:
    """These columns of a finished store, one row group after the other, each checked by its digests.

    Raises:
        UserError: the file is missing, damaged, or no evidence of this toolkit.
    """
    file = _open(path)
    try:
        digests = _digests(file)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=columns)
            if digests and any(digests[name][number] != digest for name, digest in column_digests(table).items()):
                raise ValueError("a checksum does not fit")
            yield table
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, first_line(error)) from error


def _digests(file: pq.ParquetFile) -> dict[str, list[str]] | None:
    """The digests of each column's row groups, those of the settings being checked; None in a file of format 1.

    Raises:
        ValueError, LookupError, TypeError: there are none, or not those of this file.
    """
    schema = file.schema_arrow
    stored = (file.metadata.metadata or {}).get(_DIGESTS)
    if stored is None and _header(schema)["format"] == 1:
        return None
    found = json.loads(stored or "null")
    columns = found["columns"]
    if found["header"] != _header_digest(schema) or [*columns] != schema.names:
        raise ValueError("the checksum of its settings does not fit")
    if any(len(digests) != file.num_row_groups for digests in columns.values()):
        raise ValueError("parts of it are missing")
    return columns


def _header_digest(schema: pa.Schema) -> str:
    return short_digest((schema.metadata or {}).get(HEADER, b"").decode(), 32)


def _checked(table: pa.Table, path: str | Path) -> EvidenceRecords:
    """The prompts of a table, if their values are possible ones.

    Raises:
        UserError: they are not, or the table is not as this toolkit writes it.
    """
    try:
        records = from_table(table)
        found = damage(records)
    except (pa.ArrowException, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _damaged(path, first_line(error)) from error
    if found:
        raise _damaged(path, found)
    return records


def _damaged(path: str | Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); remove it and run the same command again.")


def _start_of_last_sample(table: pa.Table) -> int:
    samples = table["group"].to_numpy()
    return int(np.searchsorted(samples, samples[-1])) if len(samples) else 0


def _open(path: str | Path) -> pq.ParquetFile:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no evidence at {path}; run test (or fit, validate, predict) with that run folder.")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({first_line(error)}); is it truncated?") from error
    _settings(schema, path)
    return file


def _settings(schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    try:
        header = _header(schema)
        kind, settings = header["format"], header["settings"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no evidence of this toolkit, or damaged.") from error
    if kind not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise UserError(f"{path} was written by another version of lad_pl (format {kind}, this one reads {known}).")
    return settings


def _header(schema: pa.Schema) -> dict[str, Any]:
    return json.loads((schema.metadata or {})[HEADER])


def _stream_schema(part: Path) -> pa.Schema | None:
    """A part's schema; None if the process died before writing it."""
    try:
        with pa.OSFile(str(part), "rb") as file, pa.ipc.open_stream(file) as reader:
            return reader.schema
    except (pa.ArrowException, OSError, EOFError):
        return None


def _intact_batches(part: Path) -> Iterator[pa.RecordBatch]:
    """The records of a part, up to a torn end and without damaged ones, which are computed again."""
    try:
        with pa.memory_map(str(part)) as file, pa.ipc.open_stream(file) as reader:
            while True:
                batch, own = reader.read_next_batch_with_custom_metadata()
                if _is_intact(batch, own):
                    yield batch
    except (StopIteration, pa.ArrowException, OSError, EOFError, ValueError):
        return


def _is_intact(batch: pa.RecordBatch, own: Mapping[bytes, bytes] | None) -> bool:
    """Whether a record is as it was written."""
    try:
        batch.validate(full=True)
        written = (own or {}).get(_DIGEST)
        if written is None and _header(batch.schema)["format"] != 1:
            return False
        if written is not None and written != record_digest(batch):
            return False
        return damage(from_table(pa.Table.from_batches([batch]))) is None
    except (pa.ArrowException, LookupError, ValueError, TypeError, AttributeError, RuntimeError):
        return False
