# SPDX-License-Identifier: Apache-2.0
"""--to diffusers: the unpacked directory that `Flux2KleinPipeline.from_pretrained` opens.

Low-bit weights become scale times code, exactly; the text encoder has as many layers as are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import gguf, ours, tokenizer
from .export import Out, Written, idle_layer, new_folder, plain, write_json, write_safetensors
from .layout import Expected, Found
from .progress import Progress
from .safetensors import Files

_CLASSES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}
PARTS = {"te.": "text_encoder", "dit.": "transformer", "vae.": "vae"}
FILES = {
    "text_encoder": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


def by_part(tensors: list[Found]) -> dict[str, list[Found]]:
    found: dict[str, list[Found]] = {part: [] for part in PARTS.values()}
    for f in tensors:
        found[PARTS[f.expected.target.split(".")[0] + "."]].append(f)
    return found


def source_name(expected: Expected) -> str:
    """Under the 'model.' of transformers, which some sources leave out."""
    name = expected.source
    return name if not expected.target.startswith("te.") else "model." + name.removeprefix("model.")


def write_settings(
    folder: Path, keys: dict[str, gguf.Value], places: dict[str, str] | None = None
) -> None:
    """All JSON files of diffusers' layout, from the keys that the model file would have. `places`:
    folders of the parts where they are called otherwise."""
    settings = ours.settings_of(ours.Keys(folder, {n: v.value for n, v in keys.items()}))
    settings["text_encoder"] |= {
        "bos_token_id": keys["tokenizer.ggml.padding_token_id"].value,
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"].value,
        "max_position_embeddings": 40960,
        "dtype": "bfloat16",
    }
    write_json(folder / "model_index.json", settings["model_index"] | _CLASSES)
    for part in PARTS.values():
        write_json(folder / (places or {}).get(part, part) / "config.json", settings[part])
    write_json(folder / "scheduler" / "scheduler_config.json", settings["scheduler"])
    for name, content in tokenizer.files_of({n: v.value for n, v in keys.items()}).items():
        place = folder / "tokenizer" / name
        if isinstance(content, str):
            place.write_text(content, "utf-8")
        else:
            write_json(place, content)


def write_card(folder: Path, keys: dict[str, gguf.Value]) -> None:
    """Name, licence and origin go with the weights."""
    lines = ["---", f"license: {keys['general.license'].value}"]
    if "general.license.link" in keys:
        lines.append(f"license_link: {keys['general.license.link'].value}")
    lines += ["---", "", f"# {keys['general.name'].value}", "",
              f"Source: {keys['general.source.repo_url'].value}", ""]  # fmt: skip
    (folder / "README.md").write_text("\n".join(lines), "utf-8")


def vae_outs(files: Files, found: list[Found], written: Written) -> list[Out]:
    steps = Out("bn.num_batches_tracked", "I64", (), 1, lambda *_: np.zeros(1, np.int64), 1)
    if not any(f.expected.source.startswith("encoder.") for f in found):
        written.lines.append(
            "the VAE's encoder is not in SOURCE: diffusers will make one up, which only matters "
            "where pictures are read"
        )
    return [*(plain(files, f, f.expected.source, written) for f in found), steps]


def write(files: Files, checkpoint, keys: dict[str, gguf.Value], folder: Path, written: Written):
    found = by_part(checkpoint.tensors)
    text = found["text_encoder"] + idle_layer(checkpoint.pipeline)
    outs = {
        "text_encoder": [plain(files, f, source_name(f.expected), written) for f in text],
        "transformer": [plain(files, f, f.expected.source, written) for f in found["transformer"]],
        "vae": vae_outs(files, found["vae"], written),
    }
    total = sum(o.nbytes for part in outs.values() for o in part)
    with new_folder(folder, total) as temporary:
        with Progress(total) as progress:
            for part, tensors in outs.items():
                write_safetensors(temporary / part / FILES[part], tensors, progress)
        write_settings(temporary, keys)
        write_card(temporary, keys)
