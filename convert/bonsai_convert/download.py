# SPDX-License-Identifier: Apache-2.0
"""Files of a Hugging Face Hub repository over plain HTTP: resumed where they broke off, checked
against the hashes that the Hub gives, never under their name before they are whole.

huggingface_hub starts a file anew after an interruption and compares sizes only; for gigabytes
over a home connection neither will do. What it has in its cache is taken from there.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from . import jsonfile
from .errors import ConvertError
from .jsonfile import brief
from .progress import Progress, size_text

_MAX_LISTING = 1 << 25
_PIECE = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5  # without any progress
_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)
_BROKEN = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class RemoteFile:
    name: str
    size: int
    sha256: str | None  # of files kept outside git
    blob: str | None  # git's SHA-1 of the others


@dataclass(frozen=True)
class Listing:
    """The wanted files of one commit of a repository."""

    repo: str
    commit: str
    files: list[RemoteFile]
    others: list[str]


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _token() -> str | None:
    if os.environ.get("HF_TOKEN"):
        return os.environ["HF_TOKEN"].strip()
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    place = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token")
    try:
        return place.read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """The token is for the Hub alone, not for the host that a file lies on."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            new.remove_header("Authorization")
        return new


def _get(url: str, first: int = 0) -> http.client.HTTPResponse:
    headers = {"User-Agent": "bonsai-convert", "Accept-Encoding": "identity"}
    if first:
        headers["Range"] = f"bytes={first}-"
    token = _token()
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT)


def _refusal(at: str, error: urllib.error.HTTPError) -> ConvertError:
    reason = error.headers.get("X-Error-Code") if error.headers else None
    if reason == "GatedRepo":
        return ConvertError(
            f"{at}: access must be granted first: accept its terms on the Hub's page, then set "
            "HF_TOKEN"
        )
    if reason == "RevisionNotFound":
        return ConvertError(f"{at}: the repository has no such revision")
    if error.code in (401, 403, 404):
        return ConvertError(
            f"{at}: no such repository on the Hub, or a private one: check the name, and set "
            "HF_TOKEN for private repositories"
        )
    return ConvertError(f"{at}: the Hub answered with status {error.code}; try again later")


def _unreachable(at: str, error: Exception) -> ConvertError:
    reason = getattr(error, "reason", None) or error
    return ConvertError(
        f"{at}: the Hub cannot be reached ({brief(str(reason))}); go online and run the same "
        "command again: it goes on where it stopped"
    )


def _remote_file(entry: object) -> RemoteFile | None:
    """None when the entry is no file description that can be trusted to name a place."""
    name = entry.get("rfilename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    if any(part in (".", "..") for part in name.split("/")):
        return None
    lfs = entry.get("lfs")
    sha = lfs.get("sha256") if isinstance(lfs, dict) else None
    size, blob = entry.get("size"), entry.get("blobId")
    if type(size) is not int or size < 0:
        return None
    good = [h if isinstance(h, str) and re.fullmatch(p, h) else None
            for h, p in ((sha, "[0-9a-f]{64}"), (blob, "[0-9a-f]{40}"))]  # fmt: skip
    return RemoteFile(name, size, good[0], None if good[0] else good[1])


def listing(repo: str, revision: str | None, patterns: list[str]) -> Listing:
    """Files of a repository that fit one of the patterns, with their hashes."""
    at = f"{repo}@{revision}" if revision else repo
    url = f"{endpoint()}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}?blobs=true"
    try:
        with _get(url) as answer:
            text = answer.read(_MAX_LISTING + 1)
    except urllib.error.HTTPError as e:
        raise _refusal(at, e) from e
    except _BROKEN as e:
        raise _unreachable(at, e) from e
    try:
        data = jsonfile.parse(text)
    except ValueError as e:
        raise ConvertError(f"{at}: the Hub's answer is not valid JSON ({e})") from e
    commit = data.get("sha") if isinstance(data, dict) else None
    siblings = data.get("siblings") if isinstance(data, dict) else None
    if not (isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit)) or not isinstance(
        siblings, list
    ):
        raise ConvertError(f"{at}: the Hub's answer describes no repository")
    found = [f for f in map(_remote_file, siblings) if f is not None]
    wanted = [f for f in found if any(fnmatch.fnmatchcase(f.name, p) for p in patterns)]
    unchecked = [f.name for f in wanted if f.sha256 is None and f.blob is None]
    if unchecked:
        raise ConvertError(f"{at}: the Hub gives no hash for '{unchecked[0]}'")
    return Listing(repo, commit, wanted, [f.name for f in found if f not in wanted])


class _Hash:
    """SHA-256 of the content, or git's hash of it with its length before."""

    def __init__(self, file: RemoteFile) -> None:
        self._wanted = file.sha256 or file.blob
        self._sha = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)

    def update(self, data: bytes) -> None:
        self._sha.update(data)

    def fits(self) -> bool:
        return self._sha.hexdigest() == self._wanted


def _hash_of(path: Path, file: RemoteFile) -> tuple[_Hash, int]:
    """Hash and length of what is there already."""
    sha, size = _Hash(file), 0
    if path.exists():
        with open(path, "rb") as f:
            while data := f.read(_PIECE):
                sha.update(data)
                size += len(data)
    return sha, size


def _append(url: str, part: Path, sha: _Hash, first: int, progress: Progress, name: str) -> int:
    """Read what is left into the file; returns its length. The connection may break at any time."""
    with _get(url, first) as answer, open(part, "r+b" if part.exists() else "w+b") as out:
        if first and answer.status != 206:
            raise _Whole
        out.seek(first)
        while data := answer.read(_PIECE):
            out.write(data)
            sha.update(data)
            first += len(data)
            progress.advance(len(data), name)
    return first


class _Whole(Exception):
    """The server sends the whole file although a part of it was asked for."""


def _fetch(url: str, target: Path, file: RemoteFile, progress: Progress) -> None:
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    sha, size = _hash_of(part, file)
    progress.advance(size, file.name)
    failures = 0
    while size < file.size or not part.exists():
        before = size
        try:
            size = _append(url, part, sha, size, progress, file.name)
            if size < file.size:
                raise ConnectionError("closed too early")
        except _Whole:
            part.unlink()
            progress.advance(-size, file.name)
            sha, size = _Hash(file), 0
            continue
        except urllib.error.HTTPError as e:
            if e.code != 416 and e.code < 500:
                raise _refusal(url, e) from e
            failures += 1
            reason: Exception = e
        except _BROKEN as e:
            if isinstance(e, OSError) and e.filename is not None:
                raise  # of the disk, not of the network
            sha, size = _hash_of(part, file)
            failures = 0 if size > before else failures + 1
            reason = e
        if failures >= _ATTEMPTS:
            raise _unreachable(f"{file.name}, {size_text(size)} of {size_text(file.size)}", reason)
        if failures:
            time.sleep(min(2.0 ** (failures - 3), 8.0))
    if size != file.size or not sha.fits():
        part.unlink()
        raise ConvertError(
            f"{file.name}: the bytes received are not those of the Hub's hash; run the same "
            "command again to fetch this file anew"
        )
    os.replace(part, target)


def cached_elsewhere(found: Listing, file: RemoteFile) -> Path | None:
    """The file in huggingface_hub's cache, where that library is installed and has it."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    path = try_to_load_from_cache(found.repo, file.name, revision=found.commit)
    return Path(path) if isinstance(path, str) and os.path.getsize(path) == file.size else None


def _linked(local: Path, target: Path, file: RemoteFile) -> bool:
    """A link to a file that has the right bytes; False where that or links do not work."""
    if not _hash_of(local, file)[0].fits():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.symlink(local.resolve(), target)
    except OSError:
        return False
    return True


def missing(found: Listing, folder: Path) -> int:
    """Bytes still to fetch into a folder."""
    total = 0
    for file in found.files:
        target = folder / file.name
        part = target.with_name(target.name + ".part")
        if not target.is_file() and cached_elsewhere(found, file) is None:
            total += max(0, file.size - (part.stat().st_size if part.is_file() else 0))
    return total


def fetch(found: Listing, folder: Path) -> None:
    """All files of a listing into a folder; those already there were checked when they came."""
    with Progress(sum(f.size for f in found.files)) as progress:
        for file in found.files:
            target = folder / file.name
            if target.is_file() and target.stat().st_size == file.size:
                progress.advance(file.size, file.name)
                continue
            local = cached_elsewhere(found, file)
            if local is not None and _linked(local, target, file):
                progress.advance(file.size, file.name)
                continue
            url = f"{endpoint()}/{found.repo}/resolve/{found.commit}/{quote(file.name)}"
            _fetch(url, target, file, progress)
