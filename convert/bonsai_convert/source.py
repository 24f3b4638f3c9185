# SPDX-License-Identifier: Apache-2.0
"""Find the checkpoint: a directory, or a Hugging Face Hub id to fetch."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

from . import foreign_gguf, gguf, ours, parts, places
from .errors import ConvertError, UsageError
from .jsonfile import is_plain
from .places import Places

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# Folders of diffusers' layout and of packed releases, which add to the name of a part.
_FOLDERS = (
    "transformer*",
    "text_encoder*",
    "vae",
    "scheduler",
    "tokenizer",
    "text_encoder*/tokenizer",
)
# What a conversion reads; other files of a repository (pictures, kernel timings) stay there.
PATTERNS = [
    "model_index.json", "README.md", "LICENSE*",
    *(f"{f}/*.{e}" for f in _FOLDERS for e in ("json", "safetensors", "jinja", "pt")),
]  # fmt: skip


@dataclass(frozen=True)
class Source:
    root: Path
    name: str  # default for general.name
    origin: str  # for general.source.repo_url
    places: Places


def is_hub_id(source: str) -> bool:
    return not Path(source).exists() and bool(_HUB_ID.match(source))


def open_source(source: str, revision: str | None) -> Source:
    """A local directory, or a snapshot in the hub's cache that is completed first."""
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise UsageError("--revision belongs to Hub ids, but SOURCE is a directory")
        # A name on the disk may hold anything; the file's keys are text of one line.
        name = "".join(c if is_plain(c) else "?" for c in path.resolve().name)
        return Source(path, name, name, places.find(path))
    if path.is_file() and parts.is_gguf(path) and foreign_gguf.is_ours(gguf.Reader(path)):
        about = ours.general(path)
        name = about.get("general.name", path.stem)
        return Source(path, name, about.get("general.source.repo_url", name), ours.find(path))
    if path.exists():
        raise ConvertError(
            f"{path}: a file; SOURCE is the directory of a checkpoint (with model_index.json in "
            "it), a model file of this converter or a Hub id such as owner/name; parts in single "
            "files go behind --transformer, --text-encoder and --vae"
        )
    if is_hub_id(source):
        root = _fetch(source, revision)
        # A snapshot directory is named by its commit.
        origin = f"https://huggingface.co/{source}/tree/{root.name}"
        return Source(root, source.split("/")[1], origin, places.find(root))
    raise ConvertError(f"{source}: no such directory, and not a Hub id (owner/name) either")


def _hub():
    try:
        import huggingface_hub
        from huggingface_hub import errors, utils  # noqa: F401  (submodules, loaded on demand)
    except ImportError as e:
        raise ConvertError(
            "fetching from the Hub needs huggingface_hub: pip install huggingface_hub, or "
            "download the checkpoint yourself and give its directory"
        ) from e
    return huggingface_hub


def _explain(hub, source: str, revision: str | None, error: Exception) -> ConvertError:
    """The hub's exceptions in one sentence each; the most specific first."""
    errors = hub.errors
    at = f"{source} (revision {revision})" if revision else source
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return ConvertError(
            f"{at}: access must be granted first: accept the terms on "
            f"https://huggingface.co/{source}, then set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConvertError(
            f"{at}: no such repository on the Hub, or a private one: check the name, and set "
            "HF_TOKEN for private repositories"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConvertError(f"{at}: the repository has no such revision; check --revision")
    if isinstance(error, errors.LocalEntryNotFoundError) or status is None:
        return ConvertError(
            f"{at}: the Hub cannot be reached and the cache does not hold it; go online and run "
            "the same command again (finished files are not fetched twice), or give a directory "
            f"({_first_line(error)})"
        )
    return ConvertError(f"{at}: the Hub answered with status {status} ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _network_errors(hub) -> tuple:
    """What a failed request may raise: the library's own errors and those of its transport."""
    kinds = [hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError]
    if hasattr(hub.errors, "OfflineModeIsEnabled"):
        kinds.append(hub.errors.OfflineModeIsEnabled)
    for transport in ("httpx2", "httpx"):
        try:
            kinds.append(importlib.import_module(transport).HTTPError)
        except ImportError:
            pass
    return tuple(kinds)


def _fetch(source: str, revision: str | None) -> Path:
    """Download what is missing into the hub's cache (resumable; HF_TOKEN and HF_HOME apply)."""
    hub = _hub()
    try:
        return Path(hub.snapshot_download(source, revision=revision, allow_patterns=PATTERNS))
    except _network_errors(hub) as e:
        raise _explain(hub, source, revision, e) from e


def hub_listing(source: str, revision: str | None) -> list[tuple[str, int]]:
    """(file, bytes) that a conversion of this Hub id would fetch; downloads nothing."""
    hub = _hub()
    try:
        info = hub.HfApi().model_info(source, revision=revision, files_metadata=True)
        wanted = set(
            hub.utils.filter_repo_objects(
                [s.rfilename for s in info.siblings], allow_patterns=PATTERNS
            )
        )
    except _network_errors(hub) as e:
        raise _explain(hub, source, revision, e) from e
    return [(s.rfilename, s.size or 0) for s in info.siblings if s.rfilename in wanted]


def _beginning(path: Path) -> str:
    """Of a text file; empty when it cannot be read."""
    try:
        if path.is_file():
            with open(path, "rb") as f:
                return f.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        pass
    return ""


def licence(root: Path) -> dict[str, str]:
    """general.license, its link and a description where given: from the card's front matter or,
    for the licence, LICENSE."""
    if root.is_file():
        about = ours.general(root) if parts.is_gguf(root) else {}
        wanted = ("general.license", "general.license.link", "general.description")
        return {"general.license": "unknown"} | {k: about[k] for k in wanted if k in about}
    text = _beginning(root / "README.md")
    fields = {}
    front = re.match(r"---[ \t\r]*\n(.*?)\n---", text, re.S)
    for line in front[1].splitlines() if front else ():
        key, colon, value = line.partition(":")
        value = value.strip().strip("'\"")
        known = key in ("license", "license_name", "license_link", "description")
        longest = 1000 if key == "description" else 200
        if colon and known and len(value) <= longest and is_plain(value):
            fields[key] = value
    name = fields.get("license_name") or fields.get("license")
    if not name:
        head = _beginning(root / "LICENSE")[:400]
        name = "apache-2.0" if "Apache License" in head else "unknown"
    keys = {"general.license": name}
    if fields.get("license_link"):
        keys["general.license.link"] = fields["license_link"]
    if fields.get("description"):
        keys["general.description"] = fields["description"]
    return keys
