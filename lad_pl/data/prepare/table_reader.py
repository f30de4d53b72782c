"""The rows of a JSONL, JSON, CSV or Parquet file, or of a Hugging Face data set."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.progress
from rich.markup import escape

from lad_pl.errors import UserError, first_line, printable
from lad_pl.files import parse_json, read_json, read_text, split_lines


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
        reading = escape(printable(f"Reading {Path(self.source).name}"))
        for number, row in rich.progress.track(numbered, reading, total=self.count):
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
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        rows = _read_data_set(source, split, subset)
    else:
        raise UserError(f"{source} does not exist, and is no data set's id on the Hugging Face hub either.")
    if rows.count == 0:
        raise UserError(f"{source} has no rows.")
    return rows


def picture_folders(source: str) -> list[Path]:
    """The folders in which pictures may lie that a table names: its own and, of a data set, that of its downloads.

    The table is a stranger's: what it names elsewhere are the user's own files.
    """
    path = Path(source)
    if path.is_file():
        return [path.parent]
    from datasets.config import DOWNLOADED_DATASETS_PATH, EXTRACTED_DATASETS_PATH
    from huggingface_hub.constants import HF_HUB_CACHE

    own = [path, path.resolve()] if path.is_dir() else []
    return [*own, *map(Path, (HF_HUB_CACHE, DOWNLOADED_DATASETS_PATH, EXTRACTED_DATASETS_PATH))]


def _read_jsonl(path: Path) -> Rows:
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            raise UserError(f"{path}, line {number} is empty; every line must be a JSON object.")
        try:
            entry = parse_json(line)
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
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    lines = reader.reader  # its line number is right where a row cannot be read; that of `reader` is the row's before
    entries = []
    begun = 1
    try:
        columns = list(reader.fieldnames or [])
        _check_columns(columns, path)
        begun = lines.line_num + 1
        for entry in reader:
            if None in entry or None in entry.values():
                raise UserError(f"{path}, line {lines.line_num} has not as many cells as the first line.")
            entries.append(entry)
            begun = lines.line_num + 1
    except csv.Error as error:
        raise UserError(csv_fault(path, begun, lines.line_num, error)) from error
    return Rows(str(path), columns, len(entries), entries)


def csv_fault(path: str | Path, begun: int, line: int, error: csv.Error) -> str:
    """What is wrong with a CSV file, and what to do.

    Args:
        path: the file.
        begun: the line at which the row begins that cannot be read.
        line: where the reader stopped.
        error: that it raised.
    """
    where = f"line {line}" if begun >= line else f"lines {begun} to {line}"
    unclosed = "Is a quotation mark not closed?"
    if "field limit" in str(error):
        most = f"{csv.field_size_limit():,}"
        return (
            f"{path}, {where}: a cell has more than {most} characters. {unclosed} Otherwise shorten the cell, or save "
            "the table as JSONL."
        )
    hint = f" {unclosed}" if "unexpected end" in str(error) else ""
    return f"{path}, {where}: not valid CSV: {error}.{hint}"


def _check_columns(columns: list[str], path: str | Path) -> None:
    """Refuse names that two columns have; columns without any name, as spreadsheets write them, cannot be meant."""
    repeated = next((name for name, count in Counter(columns).items() if name and count > 1), None)
    if repeated is not None:
        raise UserError(f"{path} has two columns named '{repeated}'; rename or delete one.")


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        columns = file.schema_arrow.names
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no complete Parquet file: {first_line(error)}; fetch it again.") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # such as names of columns that are no text
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(_damaged(path, error)) from error
    _check_columns(columns, path)
    # A few rows at a time, as they may contain images.
    rows = _batch_rows(file.iter_batches(batch_size=16), path)
    return Rows(str(path), columns, file.metadata.num_rows, rows)


def _batch_rows(batches: Iterable[Any], source: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of Arrow's batches; of damaged pages Arrow raises errors of many kinds, none of which names the file."""
    import pyarrow as pa

    try:
        for batch in batches:
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(_damaged(source, error)) from error


def _damaged(source: str | Path, error: Exception) -> str:
    if isinstance(error, NotImplementedError):
        return f"{source} cannot be read: {first_line(error)}; save it anew, with another compression."
    return f"{source} is damaged ({first_line(error)}); fetch it again."


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
    rows = _batch_rows(batches, source)
    return Rows(source, loaded.column_names, len(loaded), rows)


def _keys(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for entry in entries for key in entry))
