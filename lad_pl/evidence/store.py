"""Append-only, resumable evidence store: Arrow streams while a stage runs, one Parquet file when it is done.

While a stage runs, every process appends its prompts to an Arrow stream of its own in ``<name>.parquet.parts-.../``:
what is on disk survives a kill, and a torn last record is recognised and left out. When all prompts are there, the
parts become one Parquet file in the samples' order, atomically. :mod:`lad_pl.evidence.table` lists its columns; the
schema's metadata holds the settings that all of the evidence depends on. What each row depends on beside them, its
sample, is in its key: if samples change, come or go, the evidence of the others stays.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lad_pl.errors import UserError, first_line
from lad_pl.evidence.table import (
    CAPTION,
    FORMATS,
    HEADER,
    HEADS,
    SINCE,
    EvidenceRecords,
    column_digests,
    damage,
    from_table,
    record_digest,
    to_record_batch,
)
from lad_pl.files import abandoned, atomic_write, full_disk_named, writer
from lad_pl.provenance import first_difference, short_digest

_ROWS_PER_GROUP = 4096
_DIGESTED = 2
"""The first format with digests, which whatever is written now carries."""
_OF_WHOLE_SETS = ("samples", "images", "image_contents")
_ABSENT = "absent.arrows"
"""The part with evidence of samples that a finished stage did not have."""
_DIGEST = b"digest"
"""Key of a record batch's digest, in its own metadata."""
_DIGESTS = b"lad_pl_digests"
"""Key of the digests of the settings and of every column, in the metadata of the finished file."""


class EvidenceStore:
    """One stage's evidence on disk: parts while the stage runs, a Parquet file when it is done.

    Args:
        path: of the Parquet file.
        settings: that all of the evidence depends on; a store of other settings is refused.
        overwrite: replace a store of other settings instead.
        samples: the stage's samples in their order: the key of each, by which its evidence is known whatever the other
            samples are, and its id; the settings ``samples`` and ``images``, by which earlier versions told whole sets
            apart, then count only for their evidence. Unset: samples are known by their index alone.
        captions: whether the attention of the captions' tokens is needed; evidence of earlier versions, which lacks it,
            is then one of other settings where it may be replaced, and taken as it is where it may not.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        samples: Mapping[str, str] | None = None,
        captions: bool = False,
    ) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))  # as it is read back: tuples become lists
        of_set = () if samples is None else [name for name in _OF_WHOLE_SETS if name in self.settings]
        self._former = {name: self.settings.pop(name) for name in of_set}
        self.folder = self.path.with_name(f"{self.path.name}.parts-{short_digest(self.settings, 8)}")
        """Of the parts; each configuration has its own, so they cannot mix."""
        self._overwrite, self._captions = overwrite, captions
        self._ids = None if samples is None else list(samples.values())
        self._keys = None if samples is None else list(samples)
        self._index = None if samples is None else {key: index for index, key in enumerate(samples)}
        self._replaceable: tuple[str | None, ...] = ()
        self._file: FileIO | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._schema = pa.schema({})

    # ------------------------------------------------------------------------------------------------- what is stored

    def check(self) -> None:
        """Refuse evidence of other settings.

        Raises:
            UserError: there is some, or an unreadable file, and it must not be overwritten.
        """
        difference = None if self._overwrite else self._difference_of_parts() or self._difference_of_file()
        if difference:
            raise UserError(self._refusal(difference))
        self._replaceable = (self._difference_of_file(),)

    def done(self, num_permutations: int) -> set[int]:
        """Indices of the samples all of whose T permutations are stored under these settings."""
        found: dict[int, set[int]] = {}
        for table in self._tables(("key", "place")):
            for index, place in zip(self._indices(table), table["place"].to_pylist(), strict=True):
                if index is not None:
                    found.setdefault(index, set()).add(place)
        return {index for index, places in found.items() if len(places) == num_permutations}

    def _refusal(self, difference: str) -> str:
        return (
            f"{self.path} holds evidence of another configuration ({difference}). Choose another folder with "
            "--trainer.default_root_dir (naming this one's calibration with --ckpt_path), or replace it with "
            "--model.overwrite true."
        )

    def _difference_of_file(self) -> str | None:
        """How the Parquet file's settings differ from ours, or why they cannot be read; None if they do not."""
        try:
            return self._difference_of(_open(self.path).schema_arrow, self.path) if self.path.exists() else None
        except UserError as error:
            return str(error).rstrip(".")

    def _difference_of_parts(self) -> str | None:
        """The same for the first of the parts that differs."""
        try:
            found = [self._difference_of(schema, part) for part, schema in _all_parts(self.path) if schema]
        except UserError as error:
            return str(error).rstrip(".")
        return next(filter(None, found), None)

    def _difference_of(self, schema: pa.Schema, path: Path) -> str | None:
        """The same for one file."""
        found = self._difference(_settings(schema, path))
        if found is None and self._overwrite and self._captions and _lacks_captions(schema):
            return "an earlier version's, without the attention of the caption's tokens"
        return found

    def _difference(self, there: Mapping[str, Any]) -> str | None:
        rest = {name: value for name, value in there.items() if name not in self._former}
        of_samples = {name: there[name] for name in self._former if name in there}
        found = first_difference(rest, self.settings)
        if found is None and any(self._former[name] != value for name, value in of_samples.items()):
            return "other samples or images; this evidence of an earlier version cannot be told apart by sample"
        return found

    def _parts(self) -> list[Path]:
        """The parts of these settings."""

        def is_ours(part: Path, schema: pa.Schema | None) -> bool:
            if schema is None:
                return part.parent == self.folder
            try:
                return self._difference_of(schema, part) is None
            except UserError:
                return False

        return [part for part, schema in _all_parts(self.path) if is_ours(part, schema)]

    def _tables(self, columns: Sequence[str] | None = None, parts: Sequence[Path] | None = None) -> Iterator[pa.Table]:
        """All rows of these settings, those of the Parquet file first; its keys are added where they are missing.

        Args:
            columns: to read; all if unset.
            parts: to read; all of these settings if unset.
        """
        if self.path.exists() and not self._difference_of_file():
            yield self._keyed(_read_table(self.path, columns), columns)
        for part in self._parts() if parts is None else parts:
            for batch in _intact_batches(part):
                yield self._keyed(pa.Table.from_batches([batch]), columns)

    def _keyed(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        if self._keys is None or "key" not in table.column_names:
            of_index = {} if self._keys is None else dict(enumerate(self._keys))
            keys = [of_index.get(index, str(index)) for index in table["group"].to_pylist()]
            table = table.drop_columns(["key"]) if "key" in table.column_names else table
            table = table.add_column(min(1, table.num_columns), "key", pa.array(keys, pa.string()))
        return table if columns is None else table.select(columns)

    def _indices(self, table: pa.Table) -> list[int | None]:
        """Index of each row's sample among the stage's samples; None of one that is not among them."""
        keys = table["key"].to_pylist()
        return list(map(int, keys)) if self._index is None else list(map(self._index.get, keys))

    # ------------------------------------------------------------------------------------------------------- writing

    def append(self, records: EvidenceRecords, rank: int = 0) -> None:
        """Write records; they survive whatever happens to the process from here on.

        Raises:
            UserError: their values are impossible, as of a model whose attention is not a softmax; or the disk is full.
        """
        if not len(records):
            return
        if found := damage(records):
            raise UserError(f"The model's output cannot be used: {found}.")
        keys = None if self._keys is None else [self._keys[index] for index in records.sample_index.tolist()]
        self._append(to_record_batch(records, self.settings, keys), f"rank{rank}")

    def adopt(self, others: Sequence[Path], num_permutations: int) -> None:
        """Copy the evidence that other stores of these settings have of this stage's samples; by one process.

        Args:
            others: paths of the other stores' Parquet files, which need not exist.
            num_permutations: T; samples are taken whole or not at all.
        """
        for path in others:
            settings = {**self.settings, **self._former}
            other = EvidenceStore(path, settings, self._overwrite, self._samples(), self._captions)
            try:
                wanted = other.done(num_permutations) - self.done(num_permutations)
                for table in other._tables() if wanted else ():
                    rows = [row for row, index in enumerate(self._indices(table)) if index in wanted]
                    if rows:
                        taken = self._headed(table.take(rows), _format(table.schema))
                        for batch in taken.combine_chunks().to_batches():
                            self._append(batch, "adopted")
            except UserError:  # a damaged file of another question; what it has is computed
                continue
            self.close()

    def _samples(self) -> dict[str, str] | None:
        return None if self._keys is None else dict(zip(self._keys, self._ids or (), strict=True))

    def _append(self, batch: pa.RecordBatch, name: str) -> None:
        with full_disk_named(self.folder / "evidence", f"What was computed before is kept in {self.folder}."):
            if self._writer is not None and not self._schema.equals(batch.schema, check_metadata=True):
                self.close()  # evidence with other columns, as of an earlier version
            if self._writer is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                # No other process writes to the same file.
                path = self.folder / f"{name}-{time.time_ns()}-{writer()}.arrows"
                self._file = _WholeWrites(path, "xb")
                self._writer, self._schema = pa.ipc.new_stream(self._file, batch.schema), batch.schema
            _write_record(self._writer, batch)

    def close(self) -> None:
        """Close this process's part."""
        if self._writer is not None and self._file is not None:
            with full_disk_named(self.folder / "evidence", f"What was computed is kept in {self.folder}."):
                self._writer.close()
                self._file.close()
        self._writer = self._file = None

    def finish(self, num_samples: int, num_permutations: int) -> None:
        """Merge the parts into one file, in the samples' order; called by one process, after all have closed theirs.

        A file of other settings is replaced now, and not before. Evidence of samples that are not in this stage stays
        in a part.

        Raises:
            UserError: prompts are missing, or there is evidence of other settings that was not there when the run
                began; the parts stay.
        """
        found = self._difference_of_file()
        if found and not (self._overwrite and found in (self._replaceable or (found,))):
            raise UserError(f"{self._refusal(found)} What this run computed is kept in {self.folder}.")
        parts = self._parts()
        complete = not found and self._is_complete(num_samples * num_permutations)
        if not complete or any(part.name != _ABSENT for part in parts):
            tables = list(self._tables(parts=parts))
            absent: dict[tuple[str, int], tuple[int, int]] = {}
            present: dict[tuple[int, int], tuple[int, int]] = {}
            for number, table in enumerate(tables):
                indices, keys, places = self._indices(table), table["key"].to_pylist(), table["place"].to_pylist()
                for row, (index, key, place) in enumerate(zip(indices, keys, places, strict=True)):
                    if index is None:
                        absent.setdefault((key, place), (number, row))
                    else:
                        present.setdefault((index, place), (number, row))
            missing = num_samples * num_permutations - len(present)
            if missing:
                raise UserError(
                    f"{missing} of {num_samples * num_permutations} prompts have no evidence; what is stored stays in "
                    f"{self.folder}. Run the same command again to go on, without trainer.limit_..._batches, "
                    "max_epochs or fast_dev_run (for fewer samples, set --data.num_test, or --data.num_calibration for "
                    "fit); several machines need the run folder on a disk that they share."
                )
            if absent:
                self._keep(self._gathered(tables, list(absent.values())))
            if not complete:
                self._write_merged(tables, dict(sorted(present.items())))
            for part in parts:
                if not (absent and part == self.folder / _ABSENT):
                    part.unlink(missing_ok=True)
        self._remove_others()

    def _is_complete(self, num_prompts: int) -> bool:
        """Whether the Parquet file, of these settings, holds the stage's samples under their ids, and no others."""
        if not self.path.exists():
            return False
        if self._keys is None or self._ids is None:
            return pq.read_metadata(self.path).num_rows == num_prompts
        if "key" not in _open(self.path).schema_arrow.names:
            return True  # of an earlier version, and of these samples
        table = _read_table(self.path, ("key", "sample"))
        each = num_prompts // len(self._keys)
        expected = [[item for item in items for _ in range(each)] for items in (self._keys, self._ids)]
        return [table["key"].to_pylist(), table["sample"].to_pylist()] == expected

    def _write_merged(self, tables: Sequence[pa.Table], order: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Write the rows at these (table, row), by (index, place), under the samples' present indices and ids."""
        table = self._gathered(tables, list(order.values()))
        indices = [index for index, _ in order]
        table = _with_column(table, "group", pa.array(indices, pa.int32()))
        if self._ids is not None:
            table = _with_column(table, "sample", pa.array([self._ids[index] for index in indices], pa.string()))
        digests: dict[str, list[str]] = {name: [] for name in table.column_names}
        with (
            atomic_write(self.path) as partial,
            pq.ParquetWriter(partial, table.schema, compression="zstd", write_page_checksum=True) as file,
        ):
            for first in range(0, len(table), _ROWS_PER_GROUP):
                group = table.slice(first, _ROWS_PER_GROUP)
                file.write_table(group)
                for name, digest in column_digests(group).items():
                    digests[name].append(digest)
            checked = {"header": _header_digest(table.schema), "columns": digests}
            file.add_key_value_metadata({_DIGESTS: json.dumps(checked).encode()})

    def _gathered(self, tables: Sequence[pa.Table], order: Sequence[tuple[int, int]]) -> pa.Table:
        """The rows at these (table, row); without columns that one of them lacks, as one of an earlier version does."""
        used = sorted({number for number, _ in order})
        chosen = [tables[number] for number in used]
        lost = {name for name in SINCE for table in chosen if name not in table.column_names}
        starts = dict(zip(used, np.cumsum([0, *map(len, chosen)]).tolist(), strict=False))
        oldest = min(_format(table.schema) for table in chosen)
        headed = [
            self._headed(table.select([name for name in table.column_names if name not in lost]), oldest)
            for table in chosen
        ]
        return pa.concat_tables(headed).take([starts[number] + row for number, row in order])

    def _headed(self, table: pa.Table, kind: int) -> pa.Table:
        """A table with these settings in its header, in place of those of an earlier version; its format, as far as
        evidence goes, stays."""
        header = json.loads(table.schema.metadata[HEADER])
        header |= {"settings": self.settings, "format": max(kind, _DIGESTED)}
        return table.replace_schema_metadata({HEADER: json.dumps(header).encode()})

    def _keep(self, absent: pa.Table) -> None:
        """Write the evidence of absent samples into a part of its own."""
        batches = absent.combine_chunks().to_batches(_ROWS_PER_GROUP)
        with (
            atomic_write(self.folder / _ABSENT) as partial,
            _WholeWrites(partial, "xb") as file,
            pa.ipc.new_stream(file, absent.schema) as stream,
        ):
            for batch in batches:
                _write_record(stream, batch)

    def _remove_others(self) -> None:
        """Remove parts of other settings if they may be replaced and nobody writes to them, and empty folders."""
        ours = set(self._parts())
        for part, _ in _all_parts(self.path) if self._overwrite else ():
            if part not in ours and (abandoned(part) or part.name == _ABSENT):
                part.unlink(missing_ok=True)
        for folder in self.path.parent.glob(f"{self.path.name}.parts-*"):
            with suppress(OSError):
                folder.rmdir()  # only if it is empty


class _WholeWrites(FileIO):
    """A file without a buffer that writes all that it is given or raises; a disk that fills up takes a part."""

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            rest = rest[os.write(self.fileno(), rest) :]
        return size


def _write_record(stream: pa.RecordBatchStreamWriter, batch: pa.RecordBatch) -> None:
    stream.write_batch(batch, custom_metadata={_DIGEST: record_digest(batch)})


def _with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


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
    with suppress(UserError):
        if path.exists():
            yield read_settings(path)
    for part, schema in _all_parts(path):
        with suppress(UserError):
            if schema is not None:
                yield _settings(schema, part)


def read_prompts(path: str | Path, heads: bool = True) -> EvidenceRecords:
    """All prompts of a finished store.

    Args:
        path: of the Parquet file.
        heads: read the attention of every head; otherwise ``evidence.attention`` has H = 1, the mean, and
            ``caption_attention`` is None.

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
    groups = _row_groups(path, [name for name in names if heads or not name.endswith((HEADS, CAPTION))])
    for group in groups:
        table = group if rest is None else pa.concat_tables([rest, group])
        whole = _start_of_last_sample(table)
        rest = table.slice(whole)
        if whole:
            yield _checked(table.slice(0, whole), path)
    if rest is not None and len(rest):
        yield _checked(rest, path)


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
    if stored is None and _format(schema) == 1:
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


def _read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a finished store; the key and group columns as well where ``columns`` has the key.

    Raises:
        UserError: as :func:`read_prompts`.
    """
    names = _open(path).schema_arrow.names
    chosen = names if columns is None else [name for name in (*columns, "group") if name in names]
    return pa.concat_tables(list(_row_groups(path, chosen)))


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
    try:
        _digests(file)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, first_line(error)) from error
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


def _format(schema: pa.Schema) -> int:
    return _header(schema)["format"]


def _lacks_captions(schema: pa.Schema) -> bool:
    """Whether evidence, of an earlier format, lacks the attention of the captions' tokens, which that of today has."""
    return "log_probs" in schema.names and CAPTION not in schema.names and _format(schema) < SINCE[CAPTION]


def _all_parts(path: Path) -> list[tuple[Path, pa.Schema | None]]:
    """Every part of a store, of whatever settings, with its schema."""
    parts = sorted(path.parent.glob(f"{path.name}.parts-*/*.arrows"))
    return [(part, _stream_schema(part)) for part in parts]


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
        if written is None and _format(batch.schema) != 1:
            return False
        if written is not None and written != record_digest(batch):
            return False
        return damage(from_table(pa.Table.from_batches([batch]))) is None
    except (pa.ArrowException, LookupError, ValueError, TypeError, AttributeError, RuntimeError):
        return False
