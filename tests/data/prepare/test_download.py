"""Downloads, against a local server that breaks off, ignores ranges, changes its file, or sends wrong bytes."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lad_pl.data.prepare import download as module
from lad_pl.data.prepare.download import COLLECTIONS, Archive, Collection, download, fetch, unpack
from lad_pl.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


def digest(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Host:
    """What the server does; tests change it as they go."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/file.bin": CONTENT}
        self.etag: str | None = '"one"'
        self.break_off_after: list[int] = []
        """For the next requests, one after the other: bytes after which the connection is cut."""
        self.ranges = True
        self.if_range = True
        self.length = True
        self.statuses: list[int] = []
        """Answers of the next requests, before any file is sent."""
        self.requests: list[tuple[str | None, str | None]] = []
        """Range and If-Range of every request."""
        self.sent = 0
        self.redirect: str | None = None


class Handler(BaseHTTPRequestHandler):
    host: Host

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        host, wanted = self.host, self.headers.get("Range")
        host.requests.append((wanted, self.headers.get("If-Range")))
        content = host.files.get(self.path)
        if host.statuses or content is None:
            self.send_response(host.statuses.pop(0) if host.statuses else 404)
            self.end_headers()
            return
        if host.redirect:
            self.send_response(302)
            self.send_header("Location", host.redirect)
            self.end_headers()
            return
        unchanged = not host.if_range or self.headers.get("If-Range") in (None, host.etag)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and host.ranges and unchanged else 0  # type: ignore[index]
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if host.etag:
            self.send_header("ETag", host.etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if host.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if host.break_off_after:
            body = body[: host.break_off_after.pop(0)]
        self.wfile.write(body)
        host.sent += len(body)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(module, "BACK_OFF", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    host = Host()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"host": host}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    host.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield host
    server.shutdown()
    server.server_close()


def get(host: Host, path: Path, name: str = "file.bin", checksum: str | None = None) -> None:
    fetch(f"{host.address}/{name}", path, checksum or digest(CONTENT))  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------------- fetching


def test_a_whole_file(host: Host, tmp_path: Path) -> None:
    get(host, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert host.requests == [(None, None)]


def test_what_broke_off_goes_on_where_it_ended(host: Host, tmp_path: Path) -> None:
    host.break_off_after = [100_000, 50_000]
    get(host, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert host.requests == [(None, None), ("bytes=100000-", '"one"'), ("bytes=150000-", '"one"')]
    assert host.sent == len(CONTENT)


def test_an_unreliable_host_is_given_up_after_some_attempts_and_the_command_resumes(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    host.break_off_after = [120_000] + 10 * [0]
    with pytest.raises(UserError, match=r"broke off at 120,000 of 300,000 bytes, 5 times without .*resumes"):
        get(host, path)
    assert not path.exists()
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:120_000]
    assert len(host.requests) == 6  # the first, which brought something, and five that brought nothing
    host.break_off_after, host.requests = [], []
    get(host, path)
    assert host.requests == [("bytes=120000-", '"one"')]
    assert path.read_bytes() == CONTENT
    assert not list(tmp_path.glob("*.part*"))


def test_many_breaks_are_no_failure_as_long_as_something_comes(host: Host, tmp_path: Path) -> None:
    host.break_off_after = 20 * [10_000]
    get(host, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_host_that_ignores_ranges_is_asked_for_all_of_it_again(host: Host, tmp_path: Path) -> None:
    host.ranges, host.break_off_after = False, [200_000]
    get(host, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert host.sent == len(CONTENT) + 200_000


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changed_in_between_is_not_glued_together(
    host: Host, tmp_path: Path, honours_if_range: bool
) -> None:
    path, changed = tmp_path / "file.bin", CONTENT[::-1]
    host.break_off_after = [100_000] + 10 * [0]
    with pytest.raises(UserError, match="resumes"):
        get(host, path)
    host.files["/file.bin"], host.etag, host.if_range, host.break_off_after = changed, '"two"', honours_if_range, []
    get(host, path, checksum=digest(changed))
    assert path.read_bytes() == changed


def test_without_etag_and_length(host: Host, tmp_path: Path) -> None:
    host.etag, host.length, host.break_off_after = None, False, []
    get(host, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_gone_on_with(host: Host, tmp_path: Path) -> None:
    host.files["/other.bin"] = CONTENT[::-1]
    host.break_off_after = [100_000] + 10 * [0]
    with pytest.raises(UserError, match="resumes"):
        get(host, tmp_path / "file.bin", "other.bin")
    host.break_off_after, host.requests = [], []
    get(host, tmp_path / "file.bin")
    assert host.requests == [(None, None)]


def test_a_part_that_is_already_the_whole(host: Host, tmp_path: Path) -> None:
    """The command was stopped after the last byte, before the digest."""
    path = tmp_path / "file.bin"
    host.break_off_after = [100_000] + 10 * [0]
    with pytest.raises(UserError, match="resumes"):
        get(host, path)
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    host.break_off_after = []
    get(host, path)
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    host.break_off_after = [100_000] + 10 * [0]
    with pytest.raises(UserError, match="resumes"):
        get(host, path)
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    host.break_off_after = []
    get(host, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_is_busy_for_a_moment(host: Host, tmp_path: Path) -> None:
    host.statuses = [503, 429, 500]
    get(host, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_wrong_bytes_are_named_and_deleted(host: Host, tmp_path: Path) -> None:
    host.files["/file.bin"] = b"<html>Please log in to the hotel's network</html>"
    with pytest.raises(UserError, match=r"the download is not the published file \(49 bytes of sha256 .*was deleted"):
        get(host, tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_bytes_cut_off_by_a_host_that_gives_no_length(host: Host, tmp_path: Path) -> None:
    host.length, host.break_off_after = False, [1000]
    with pytest.raises(UserError, match=r"the download is not the published file \(1,000 bytes"):
        get(host, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_another_file_of_that_name_is_left_alone(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match="delete or rename it"):
        get(host, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


def test_addresses_that_do_not_work(host: Host, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answers 404"):
        get(host, tmp_path / "x", "missing.bin")
    assert len(host.requests) == 1  # no second request
    for url in ("file:///etc/hostname", "ftp://127.0.0.1/file.bin", "data:,x", "file.bin"):
        with pytest.raises(UserError, match="no http or https address"):
            fetch(url, tmp_path / "x", digest(b""))
    with pytest.raises(UserError, match=r"refused.*5 times"):
        fetch("http://127.0.0.1:9/file.bin", tmp_path / "x", digest(b""))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1:9/x"])
def test_a_redirect_leads_nowhere_but_to_http(host: Host, tmp_path: Path, target: str) -> None:
    host.redirect = target
    with pytest.raises(UserError):
        get(host, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_no_room(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="1,000 bytes free, too few for the 300,000 bytes still to come"):
        get(host, tmp_path / "file.bin")


# ------------------------------------------------------------------------------------------------------- unpacking


def test_a_disk_that_fills_up_is_named(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        name = str(tmp_path / "archive.part")

        def write(self, block: bytes) -> int:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as raised:
        module._append(Full(), b"x")
    assert raised.value.filename == Full.name


def test_unpacking_shows_everything_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(zipped({"photos/a.jpg": b"a", "photos/b/c.jpg": b"c", "__MACOSX/photos/._a.jpg": b"x"}))
    assert unpack(path, tmp_path, "photos") == 2
    assert (tmp_path / "photos/b/c.jpg").read_bytes() == b"c"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "photos.zip"]


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "photos/../../evil.txt", "..\\evil.txt", "C:evil.txt"])
def test_members_that_would_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "photos.zip").write_bytes(zipped({"photos/a.jpg": b"a", name: b"evil"}))
    with pytest.raises(UserError, match="would be written outside the folder"):
        unpack(folder / "photos.zip", folder, "photos")
    assert [path.name for path in folder.iterdir()] == ["photos.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_link_in_an_archive(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("photos")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="outside the folder"):
        unpack(tmp_path / "photos.zip", tmp_path, "photos")


def test_damaged_archives(tmp_path: Path) -> None:
    whole = zipped({"photos/a.jpg": CONTENT, "photos/b.jpg": CONTENT})
    wrong_byte = bytearray(whole)
    wrong_byte[100_000] ^= 1
    for content in (whole[:-100], bytes(wrong_byte), b"no archive"):
        path = tmp_path / "photos.zip"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged .*was deleted"):
            unpack(path, tmp_path, "photos")
        assert not list(tmp_path.iterdir())


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(zipped({"readme.txt": b""}))
    with pytest.raises(UserError, match="does not hold photos"):
        unpack(tmp_path / "photos.zip", tmp_path, "photos")


# ----------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def flickr(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Flickr8k in miniature: two archives with their digests, at the local host."""
    images = zipped({"Flicker8k_Dataset/a.jpg": b"a", "__MACOSX/._x": b""})
    text = zipped({"Flickr8k.token.txt": b"a.jpg#0\tA dog", "readme.txt": b""})
    host.files = {"/mirror/Flickr8k_Dataset.zip": images, "/mirror/Flickr8k_text.zip": text}
    archives = (
        Archive("http://unused/Flickr8k_Dataset.zip", digest(images, "md5"), "Flicker8k_Dataset"),
        Archive("http://unused/Flickr8k_text.zip", digest(text), "Flickr8k.token.txt"),
    )
    small = Collection("data/flickr8k", "Non-commercial research only.", archives, "next command")
    monkeypatch.setitem(COLLECTIONS, "flickr8k", small)
    return host


def test_the_licence_comes_first(flickr: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--accept_licence=true"):
        download("flickr8k", str(tmp_path / "data"), url=f"{flickr.address}/mirror")  # type: ignore[attr-defined]
    assert "Non-commercial" in capsys.readouterr().out
    assert flickr.requests == [] and not (tmp_path / "data").exists()


def test_the_command(flickr: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = f"{flickr.address}/mirror/"  # type: ignore[attr-defined]
    download("flickr8k", str(tmp_path), accept_licence=True, url=mirror)
    names = ["Flicker8k_Dataset", "Flickr8k.token.txt", "readme.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    out = capsys.readouterr().out
    assert "1 files unpacked to" in out and "digest as published" in out and "Next: next command" in out
    before = len(flickr.requests)
    download("flickr8k", str(tmp_path), accept_licence=True, url=mirror)
    assert len(flickr.requests) == before
    assert capsys.readouterr().out.count("already there") == 2


def test_the_command_again_after_unpacking_was_interrupted(
    flickr: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = f"{flickr.address}/mirror"  # type: ignore[attr-defined]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download("flickr8k", str(tmp_path), accept_licence=True, url=mirror)
    assert [path.name for path in tmp_path.iterdir()] == ["Flickr8k_Dataset.zip"]
    download("flickr8k", str(tmp_path), accept_licence=True, url=mirror, keep_archives=True)
    assert len(flickr.requests) == 2  # the first archive was not fetched again
    assert {"Flicker8k_Dataset", "Flickr8k_Dataset.zip"} <= {path.name for path in tmp_path.iterdir()}


def test_every_archive_has_a_digest_of_the_right_length() -> None:
    for collection in COLLECTIONS.values():
        for archive in collection.archives:
            algorithm, _, value = archive.checksum.partition(":")
            assert re.fullmatch(r"[0-9a-f]+", value)
            assert len(value) == 2 * hashlib.new(algorithm).digest_size
            assert archive.url.startswith(("http://images.cocodataset.org/", "https://github.com/jbrownlee/"))
            assert archive.name.endswith(".zip")
