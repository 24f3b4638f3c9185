# SPDX-License-Identifier: Apache-2.0
"""Where the parts of a checkpoint directory are.

In diffusers layout folder names say it. Packed releases call their folders otherwise
('transformer-packed-mflux', 'text_encoder-hqq-4bit'): there the weights are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import config, parts
from .errors import ConvertError
from .safetensors import Entry
from .torchfile import TorchFile

_FOLDERS = (*parts.KINDS, "scheduler", "tokenizer")


@dataclass(frozen=True)
class Places:
    """Folders or files of the parts, and a file or a dict for each of the settings."""

    parts: dict[str, Path]  # 'transformer', 'text_encoder', 'vae'
    tokenizer: Path
    settings: dict[str, Path | dict]  # config.diffusers_settings has the names
    notes: tuple[str, ...] = ()


def _has_weights(folder: Path) -> bool:
    names = (".safetensors", ".pt")
    return any(
        p.name.endswith(names) and not p.name.startswith(".") for p in folder.iterdir()
    )  # fmt: skip


def _names(content: dict[str, Entry] | TorchFile) -> list[str]:
    return list(content.entries if isinstance(content, TorchFile) else content)


def _kind(folder: Path) -> str | None:
    """Which part a folder holds, by the names of its tensors."""
    if not _has_weights(folder):
        return None
    return parts.kind_of(_names(parts.open_container("transformer", folder)))


def _scan(root: Path, wanted: list[str]) -> dict[str, Path]:
    """Folders of the wanted parts, found by their tensors."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if folder.name in _FOLDERS:
            continue
        kind = _kind(folder)
        if kind in wanted:
            found.setdefault(kind, []).append(folder)
    for kind, folders in found.items():
        if len(folders) > 1:
            names = ", ".join(f.name for f in folders)
            raise ConvertError(
                f"{root}: {len(folders)} folders hold a {kind.replace('_', ' ')}: {names}; give "
                "the transformer's folder as SOURCE, or move the others away"
            )
    return {kind: folders[0] for kind, folders in found.items()}


def _tokenizer(root: Path, text_encoder: Path | None) -> Path | None:
    if (root / "tokenizer").is_dir():
        return root / "tokenizer"
    if text_encoder is None:
        return None
    for folder in (text_encoder / "tokenizer", text_encoder):
        if (folder / "tokenizer.json").is_file():
            return folder
    return None


def find(root: Path) -> Places:
    """The places of a directory in diffusers layout, or of a packed release."""
    chosen: dict[str, Path] = {k: root / k for k in parts.KINDS if (root / k).is_dir()}
    index = root / "model_index.json"
    if not index.is_file() and not chosen and _kind(root) == "transformer":
        # A transformer's own folder: the rest lies beside it.
        chosen["transformer"] = root
        root = root.resolve().parent
        index = root / "model_index.json"
        beside = {k: root / k for k in parts.KINDS if (root / k).is_dir()}
        chosen = beside | chosen
    absent = [k for k in parts.KINDS if k not in chosen]
    packed = _scan(root, absent) if absent else {}
    chosen |= packed
    foreign = bool(packed) or chosen.get("transformer") != root / "transformer"
    tokenizer = _tokenizer(root, chosen.get("text_encoder"))
    scheduler = root / "scheduler"
    lacking = [] if index.is_file() else ["model_index.json"]
    lacking += [k for k in parts.KINDS if k not in chosen]
    lacking += [] if foreign or scheduler.is_dir() else ["scheduler"]
    lacking += [] if tokenizer is not None else ["tokenizer"]
    if lacking:
        raise ConvertError(
            f"{root}: not a complete checkpoint, {', '.join(lacking)} missing; expected "
            f"model_index.json and the directories {', '.join(_FOLDERS)}, or those of a packed "
            "release"
        )
    notes = []
    settings: dict[str, Path | dict] = config.diffusers_settings(root)
    settings |= {k: chosen[k] / "config.json" for k in parts.KINDS}
    if not scheduler.is_dir():
        settings["scheduler"] = config.KLEIN_SCHEDULER
        notes.append("no scheduler/ in the source: klein's own schedule is stored")
    return Places(chosen, tokenizer, settings, tuple(notes))
