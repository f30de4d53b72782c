"""Download the archives of COCO and Flickr8k: resumable, checked against published digests, unpacked atomically."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

import rich.progress
from rich.console import Console

from lad_pl.errors import UserError, printable, say
from lad_pl.files import atomic_write

ATTEMPTS = 5
"""Failures in a row, without a byte gained, after which a download gives up."""
BACK_OFF = 1.0
"""Seconds before the next attempt; doubled with every failure."""
TIMEOUT = 60.0
"""Seconds of silence after which a connection counts as broken off."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One zip file."""

    url: str
    checksum: str
    """Published digest, as algorithm:hexadecimal."""
    holds: str
    """The file or folder that exists once everything is unpacked."""

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Collection:
    """The archives of one data set, with its licence."""

    folder: str
    licence: str
    archives: tuple[Archive, ...]
    next: str
    """Command to suggest afterwards."""


_COCO_LICENCE = (
    "COCO: the annotations belong to the COCO Consortium, under CC BY 4.0. The consortium does not own the images; "
    "their use must abide by the Flickr terms of use.\nhttps://cocodataset.org/#termsofuse"
)
_FLICKR8K = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"

# The digests are those that torchvision (COCO, SHA-256) and the R package torchvision (Flickr8k, MD5) check.
COLLECTIONS = {
    "coco-val2014": Collection(
        "data/coco",
        _COCO_LICENCE,
        (
            Archive(
                "http://images.cocodataset.org/zips/val2014.zip",
                "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                "val2014",
            ),
        ),
        "python -m lad_pl prepare coco --help",
    ),
    "coco-annotations": Collection(
        "data/coco",
        _COCO_LICENCE,
        (
            Archive(
                "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
                "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
                "annotations",
            ),
        ),
        "python -m lad_pl prepare coco --help",
    ),
    "flickr8k": Collection(
        "data/flickr8k",
        "Flickr8k (Hodosh, Young and Hockenmaier, 2013, University of Illinois): for non-commercial research and "
        "education only. The images belong to Flickr's users, under the Flickr terms of use.\n"
        "https://www.flickr.com/help/terms",
        (
            Archive(f"{_FLICKR8K}/Flickr8k_Dataset.zip", "md5:f18a1e2920de5bd84dae7cf08ec78978", "Flicker8k_Dataset"),
            Archive(f"{_FLICKR8K}/Flickr8k_text.zip", "md5:bf6c1abcb8e4a833b7f922104de18627", "Flickr8k.token.txt"),
        ),
        "python -m lad_pl prepare flickr8k --help",
    ),
}


def download(
    name: Literal["coco-val2014", "coco-annotations", "flickr8k"],
    output: str | None = None,
    accept_licence: bool = False,
    url: str | None = None,
    keep_archives: bool = False,
) -> None:
    """Download COCO's 2014 validation images (6 GB) or annotations (241 MB), or Flickr8k (1 GB), and unpack them.

    The same command resumes an interrupted download. Archives are checked against their published digests.

    Args:
        name: what to download.
        output: folder to unpack into; data/coco or data/flickr8k if unset.
        accept_licence: confirm that you have read the licence and accept it; otherwise only the licence is printed.
        url: folder of a mirror (http or https) that holds the same archives.
        keep_archives: keep the zip files after unpacking.
    """
    collection = COLLECTIONS[name]
    print(collection.licence)
    if not accept_licence:
        raise UserError("Nothing was downloaded. To accept the licence above, add --accept_licence=true.")
    folder = Path(output or collection.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for archive in collection.archives:
        target = folder / archive.holds
        if target.exists():
            say(f"{target} is already there; delete it to fetch it again.")
            continue
        address = archive.url if url is None else f"{url.rstrip('/')}/{archive.name}"
        path = folder / archive.name
        fetch(address, path, archive.checksum)
        count = unpack(path, folder, archive.holds)
        say(f"{path}: {path.stat().st_size:,} bytes, digest as published; {count:,} files unpacked to {target}")
        if not keep_archives:
            path.unlink()
    print(f"Next: {collection.next}")


# -------------------------------------------------------------------------------------------------------- fetching


class _Interrupted(Exception):
    """The transfer broke off; another attempt may succeed."""


def fetch(url: str, path: Path, checksum: str) -> None:
    """Download a file to ``path``, which exists only once it is complete and its digest is the published one.

    A partial download is kept in ``<path>.part``, with its source in ``<path>.part.json``.

    Raises:
        UserError: the address does not work, the transfer keeps breaking off, or the digest is not the published one.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url} is no http or https address.")
    if path.exists():  # complete, but its unpacking was interrupted
        if fault := _fault(path, checksum):
            raise UserError(f"{path} {fault}; delete or rename it, and the same command fetches it.")
        return
    part = _Part(path.with_name(path.name + ".part"), url)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task(path.name, total=part.total)
        _transfer(part, lambda: progress.update(task, completed=part.size, total=part.total), progress.console)
    fault = _fault(part.path, checksum)
    if not fault:
        part.path.rename(path)
    part.discard()
    if fault:
        raise UserError(
            f"{url}: the download {fault} and was deleted; the same command fetches it again, or give a mirror with "
            "--url."
        )


def _transfer(part: _Part, report: Callable[[], None], console: Console) -> None:
    """Download until the file is complete, with growing pauses after failures."""
    failures, most = 0, part.size
    while True:
        try:
            _continue(part, report)
            return
        except _Interrupted as error:
            failures = 0 if part.size > most else failures + 1
            most = max(most, part.size)
            if failures == ATTEMPTS:
                raise UserError(
                    f"{part.url}: {error}, {failures} times without a byte more; {part.size:,} bytes are kept in "
                    f"{part.path}: the same command resumes."
                ) from error
            pause = BACK_OFF * 2**failures
            console.print(printable(f"{error}; going on in {pause:g} s"), markup=False, highlight=False)
            time.sleep(pause)


class _Part:
    """A partially downloaded file, with the server's validator and length of the complete one."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.validator: str | None = None
        """ETag or date of the file, to detect that it has changed at the server."""
        self.total: int | None = None
        self._notes = path.with_name(path.name + ".json")
        self._recall()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _recall(self) -> None:
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["url"] != self.url:
                raise ValueError
            self.validator, self.total = notes["validator"], notes["total"]
        except (OSError, ValueError, KeyError, TypeError):
            self.discard()  # of an unknown source

    def begin(self, validator: str | None, total: int | None) -> None:
        """Start again from the first byte of a file with this validator and length."""
        self.discard()
        self.validator, self.total = validator, total
        with atomic_write(self._notes) as notes:
            notes.write_text(json.dumps({"url": self.url, "validator": validator, "total": total}), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)
        self.validator = self.total = None


def _continue(part: _Part, report: Callable[[], None]) -> None:
    """Request the missing bytes once.

    Raises:
        _Interrupted: it failed, but another attempt may succeed.
        UserError: no attempt can succeed.
    """
    headers = {"User-Agent": "lad_pl", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator
    try:
        response = _opener().open(request.Request(part.url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # no bytes after those we have: the file is complete, or another one
            if _content_range(error.headers) == (None, part.size):
                return
            part.discard()
        elif error.code < 500 and error.code not in (408, 429):
            raise UserError(
                f"{part.url}: the server answers {error.code} {error.reason}; give another address with --url."
            ) from error
        raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _Interrupted(str(getattr(error, "reason", error)) or type(error).__name__) from error
    with response:
        _begin_or_resume(part, response.status, response.headers)
        _check_space(part)
        with part.path.open("ab") as file:
            while block := _read(response):
                _append(file, block)
                report()
    if part.total is not None and part.size != part.total:
        raise _Interrupted(f"the connection broke off at {part.size:,} of {part.total:,} bytes")


def _begin_or_resume(part: _Part, status: int, headers: Message) -> None:
    """Keep the part if the server continues it, with the same file; otherwise start again."""
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if status == 206:
        same = validator is None or part.validator is None or validator == part.validator
        if same and _content_range(headers) == (part.size, part.total):
            return
        part.discard()
        raise _Interrupted("the file at the server has changed")
    length = headers.get("Content-Length")
    part.begin(validator, int(length) if length and length.isdecimal() else None)


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and total length in a Content-Range header; None for what it lacks."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", headers.get("Content-Range", ""))
    first, total = match.groups() if match else (None, None)
    return (int(first) if first else None), (int(total) if total else None)


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(_BLOCK))
    except (OSError, HTTPException) as error:
        raise _Interrupted(f"the connection broke off ({error})") from error


def _append(file: BinaryIO, block: bytes) -> None:
    """Write on; the operating system's exception does not name the file."""
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def _check_space(part: _Part) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if part.total is not None and part.total - part.size > free:
        raise UserError(
            f"{part.path.parent} has {free:,} bytes free, too few for the {part.total - part.size:,} bytes still to "
            "come; make room, or name another folder with --output."
        )


def _opener() -> request.OpenerDirector:
    """An opener for HTTP and HTTPS only: no file, ftp or data address, neither given nor by a redirect."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.UnknownHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _fault(path: Path, checksum: str) -> str | None:
    """The error of a file whose digest is not the published one; None if it is."""
    algorithm, _, published = checksum.partition(":")
    with rich.progress.open(path, "rb", description=f"Checking {path.name}") as file:
        # Against accidents and a changed file, not against an attacker who could make two files of one MD5.
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))  # type: ignore[arg-type]
    found = digest.hexdigest()
    if found == published:
        return None
    size = path.stat().st_size
    return (
        f"is not the published file ({size:,} bytes of {algorithm} {found}, where {algorithm} {published} is published)"
    )


# ------------------------------------------------------------------------------------------------------- unpacking


def unpack(path: Path, folder: Path, holds: str) -> int:
    """Unpack a zip file into ``folder`` and return the number of files; ``holds`` appears last, once all is unpacked.

    Raises:
        UserError: the archive is damaged, would write outside the folder, or there is no room.
    """
    temporary = folder / f".{path.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.filename.startswith("__MACOSX/")]
            for member in members:
                _check_member(member, path)
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(f"{folder} has {free:,} bytes free, too few to unpack {path} ({needed:,} bytes).")
            for member in rich.progress.track(members, f"Unpacking {path.name}"):
                archive.extract(member, temporary)  # checks the CRC
        if not (temporary / holds).exists():
            raise UserError(f"{path} does not hold {holds}; it was not unpacked.")
        for entry in sorted(temporary.iterdir(), key=lambda entry: (entry.name == holds, entry.name)):
            entry.replace(folder / entry.name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        path.unlink()
        raise UserError(f"{path} is damaged ({error}) and was deleted; the same command fetches it again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sum(not member.is_dir() for member in members)


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    """Refuse a member that would be written outside the folder."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or ":" in member.filename or is_link:
        raise UserError(f"{path} holds '{member.filename}', which would be written outside the folder; not unpacked.")
