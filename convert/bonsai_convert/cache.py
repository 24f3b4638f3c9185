# SPDX-License-Identifier: Apache-2.0
"""Models named 'hub:owner/name[@revision]': fetched from the Hub and converted once, then a file in
the user's cache, which is all that later uses need.

    CACHE/hub/owner--name[@revision]/model.gguf   the model; CACHE is $BONSAI_CACHE, or
                                    /source/      what has been fetched of it until it is converted
                                    /lock         held by the process that fetches and converts

$XDG_CACHE_HOME/bonsai, ~/.cache/bonsai, on Windows %LOCALAPPDATA%/bonsai. The program finds the
same places (engine/cli/hub_model.cpp).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import download, places
from .errors import ConvertError
from .progress import size_text
from .source import PATTERNS, Source

PREFIX = "hub:"
_SPEC = re.compile(
    r"hub:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?$", re.A
)


def folder() -> Path:
    if os.environ.get("BONSAI_CACHE"):
        return Path(os.environ["BONSAI_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "bonsai"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "bonsai"
    return Path.home() / ".cache" / "bonsai"


@dataclass(frozen=True)
class HubModel:
    """One model of the Hub and its place in the cache."""

    owner: str
    name: str
    revision: str | None

    @property
    def repo(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def slot(self) -> Path:
        revision = "" if self.revision is None else "@" + self.revision.replace("/", "--")
        return folder() / "hub" / f"{self.owner}--{self.name}{revision}"

    @property
    def path(self) -> Path:
        return self.slot / "model.gguf"


def is_spec(text: object) -> bool:
    return isinstance(text, str) and text.startswith(PREFIX)


def parse(spec: str) -> HubModel:
    m = _SPEC.match(spec)
    if m is None:
        raise ConvertError(f"{spec!r}: expected hub:owner/name or hub:owner/name@revision")
    return HubModel(m[1], m[2], m[3])


@contextmanager
def locked(model: HubModel) -> Iterator[None]:
    """One process at a time works on a model; others wait for it and find the file then."""
    try:
        import filelock
    except ImportError as e:
        raise ConvertError("models from the Hub need filelock: pip install filelock") from e
    model.slot.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(model.slot / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{model.repo}: another process fetches it, waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_disk(place: Path, need: int, repo: str) -> None:
    free = shutil.disk_usage(place).free
    if free < need:
        raise ConvertError(
            f"{place}: {size_text(free)} free, but {size_text(need)} of {repo} are to be fetched; "
            "free some space or set BONSAI_CACHE to a folder on another disk"
        )


def _check_content(found: download.Listing) -> None:
    if any(f.name == "model_index.json" for f in found.files):
        return
    ggufs = [n for n in found.others if n.endswith(".gguf")]
    hint = "give a repository in the layout of diffusers or a packed release"
    if ggufs:
        hint = (
            f"it has GGUF files ({', '.join(ggufs[:3])}): download them and use bonsai-convert "
            "--transformer, --text-encoder and --vae"
        )
    raise ConvertError(f"{found.repo}: no model_index.json in it; {hint}")


def fetch(model: HubModel) -> Source:
    """The checkpoint, complete and checked, in the model's slot. Call it with the lock held."""
    found = download.listing(model.repo, model.revision, PATTERNS)
    _check_content(found)
    root = model.slot / "source" / found.commit
    root.mkdir(parents=True, exist_ok=True)
    for old in root.parent.iterdir():  # of another commit
        if old != root:
            shutil.rmtree(old, ignore_errors=True)
    for old in model.slot.glob(".model.gguf.*.part"):  # of a conversion that was killed
        old.unlink(missing_ok=True)
    need = download.missing(found, root)
    _check_disk(root, need, model.repo)
    print(f"{model.repo}: {size_text(need)} to fetch, then converted once", file=sys.stderr)
    download.fetch(found, root)
    origin = f"https://huggingface.co/{model.repo}/tree/{found.commit}"
    return Source(root, model.name, origin, places.find(root))


def forget_source(model: HubModel) -> None:
    """What was fetched takes more room than the model made of it."""
    shutil.rmtree(model.slot / "source", ignore_errors=True)


def listing(spec: str) -> list[tuple[str, int]]:
    """(file, bytes) that the model is made of."""
    model = parse(spec)
    found = download.listing(model.repo, model.revision, PATTERNS)
    return [(f.name, f.size) for f in found.files]


def ensure(spec: str) -> Path:
    """The model's file, fetched and converted first if it is not there; for Engine("hub:...")."""
    model = parse(spec)
    if not model.path.is_file():
        from . import cli  # which uses this module

        cli.make_hub_model(spec)
    return model.path
