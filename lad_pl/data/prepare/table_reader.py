"""The rows of a JSONL, JSON, CSV or Parquet file, or of a Hugging Face data set."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.progress

from lad_pl.errors import UserError
from lad_pl.files import read_json


@dataclass
class Rows:
    """The rows of a table, each with a label for error messages, such as ``row 3``."""

    source: str
    columns: list[str]
    count: int
    rows: Iterable[Mapping[str, Any]]
    unit: str = "row"
    first: int = 1

    @property
    def name(self) -> str:
        """Name of the table, without folder and file ending."""
        path = Path(self.source)
        return path.stem if path.is_file() else path.name

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        numbered = enumerate(self.rows, start=self.first)
        for number, row in rich.progress.track(numbered, f"Reading {Path(self.source).name}", total=self.count):
            yield f"{self.unit} {number}", row

    def require(self, column: str, hint: str) -> None:
        """Raise a UserError with ``hint`` unless the table has the column."""
        if column not in self.columns:
            raise UserError(f"{self.source} has no column '{column}' ({hint}); it has: {', '.join(self.columns)}.")


def read_rows(source: str, split: str | None = None, subset: str | None = None) -> Rows:
    """The rows of a file, a folder, or a data set of the Hugging Face hub.

    Raises:
        UserError: it does not exist, has no rows, or is malformed (with the line).
    """
    path = Path(source)
    readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    readers[".parquet"] = _read_parquet
    reader = readers.get(path.suffix.lower())
    if path.is_dir():
        rows = _read_data_set(source, split, subset)
    elif path.is_file() and reader is None:
        raise UserError(f"{source}: '{path.suffix}' is no table that can be read; give {', '.join(readers)}.")
    elif reader is not None:
        try:
            rows = reader(path)
        except OSError as error:
            raise UserError(f"Cannot read {source}: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{source} is not UTF-8 text ({error}).") from error
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        rows = _read_data_set(source, split, subset)
    else:
        raise UserError(f"{source} does not exist, and is no data set's id on the Hugging Face hub either.")
    if rows.count == 0:
        raise UserError(f"{source} has no rows.")
    return rows


def _read_jsonl(path: Path) -> Rows:
    entries: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                raise UserError(f"{path}, line {number} is empty; every line must be a JSON object.")
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is not valid JSON: {error}.") from error
            if not isinstance(entry, dict):
                raise UserError(f"{path}, line {number} is not a JSON object.")
            entries.append(entry)
    return Rows(str(path), _keys(entries), len(entries), entries, "line")


def _read_json(path: Path) -> Rows:
    entries = read_json(path, "One object per line? Name it .jsonl.")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} must hold a JSON list of objects.")
    return Rows(str(path), _keys(entries), len(entries), entries, "item", first=0)


def _read_csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        entries = []
        try:
            for entry in reader:
                if None in entry or None in entry.values():
                    raise UserError(f"{path}, line {reader.line_num} has not as many cells as the first line.")
                entries.append(entry)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is not valid CSV: {error}.") from error
    return Rows(str(path), list(reader.fieldnames or []), len(entries), entries)


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no complete Parquet file: {error}") from error
    # A few rows at a time, as they may contain images.
    rows = (row for batch in file.iter_batches(batch_size=16) for row in batch.to_pylist())
    return Rows(str(path), file.schema_arrow.names, file.metadata.num_rows, rows)


def _read_data_set(source: str, split: str | None, subset: str | None) -> Rows:
    """A data set's rows, with undecoded images. A data set's own code is never run."""
    import datasets

    folder = Path(source)
    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source, subset)
    except ConnectionError as error:
        raise UserError(
            f"The Hugging Face hub cannot be reached for {source}. Where it can, type `hf download --repo-type dataset "
            f"{source} --local-dir my_folder`; then give my_folder in place of {source}."
        ) from error
    except Exception as error:  # the readers of the many formats raise many kinds
        raise UserError(f"The data set {source} cannot be loaded: {' '.join(str(error).split())}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if (split is None and len(loaded) > 1) or (split is not None and split not in loaded):
            found = f"no split '{split}'" if split else "several splits"
            raise UserError(f"{source} has {found}; choose with --split: {', '.join(loaded)}.")
        loaded = loaded[split or next(iter(loaded))]
    batches = loaded.with_format("arrow").iter(batch_size=16)
    rows = (row for batch in batches for row in batch.to_pylist())
    return Rows(source, loaded.column_names, len(loaded), rows)


def _keys(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for entry in entries for key in entry))
