# SPDX-License-Identifier: Apache-2.0
"""The velocity of any model file, also a full-size one, beside diffusers on the same weights.

    python bench/velocity_model.py model.gguf --probe build/tests/bonsai-probe --on cuda:0

Needs torch and diffusers; the weights are unpacked from the file itself to --torch's memory (16 GB
in fp32 for klein 4B, and as much as half of that in bf16). The transformer alone counts: diffusers
gets the features of the prompt and the noise that the engine's own run had, so the text encoder's
types cost nothing here. `velocity.py` is the comparison from the prompt on, without torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "convert")]

from bonsai_convert import blocks, gguf, ours  # noqa: E402
from support import native  # noqa: E402
from support.cases import FAST_PROMPT, Case  # noqa: E402
from support.configs import Recipe  # noqa: E402
from support.golden_file import relative_error  # noqa: E402
from velocity import PRECISIONS, Row, summary, table  # noqa: E402

PREFIX = "dit."  # of the transformer's tensors; behind it stand diffusers' names
THREADS = 8


def load_transformer(model: Path, device: str):
    """diffusers' transformer in fp32 with the weights of the file."""
    import torch
    from diffusers import Flux2Transformer2DModel

    reader = gguf.Reader(model)
    settings = ours.settings_of(ours.Keys(model, reader.keys))["transformer"]
    with torch.device("meta"):
        net = Flux2Transformer2DModel.from_config(settings)
    net = net.to_empty(device=device).eval().requires_grad_(False)
    raw = np.memmap(model, np.uint8, "r")

    def fill(name: str, parameter) -> None:
        tensor = reader.tensors[PREFIX + name]
        data = blocks.decode(tensor.type, raw[tensor.offset : tensor.offset + tensor.nbytes])
        parameter.copy_(torch.from_numpy(data.reshape(tuple(parameter.shape))))

    with ThreadPoolExecutor(THREADS) as pool, torch.no_grad():
        list(pool.map(lambda item: fill(*item), net.state_dict().items()))
    return net


def positions(rows: int, columns: int, text: int):
    """Positions (t, y, x, l) of the picture's tokens and of the text's."""
    import torch

    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = torch.stack([0 * y, y, x, 0 * y], -1).reshape(1, -1, 4)
    words = torch.zeros(1, text, 4, dtype=image.dtype)
    words[0, :, 3] = torch.arange(text)
    return image, words


def velocity_of(net, noise: np.ndarray, text: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The transformer's answer at the start of the schedule, in its own type of numbers."""
    import torch

    device, dtype = net.device, net.dtype
    image, words = positions(rows, columns, len(text))
    with torch.inference_mode():
        out = net(
            hidden_states=torch.from_numpy(noise)[None].to(device, dtype),
            encoder_hidden_states=torch.from_numpy(text)[None].to(device, dtype),
            timestep=torch.ones(1, device=device, dtype=dtype),
            img_ids=image.to(device),
            txt_ids=words.to(device),
            return_dict=False,
        )[0]
    return out[0].float().cpu().numpy()


def run_engine(options: argparse.Namespace, case: Case, on: str, precision: str) -> dict:
    device, _, level = on.partition(":") if on.startswith("cpu") else (on, "", "")
    environment = {"BONSAI_CPU": level} if level else {}
    with tempfile.TemporaryDirectory(prefix="bonsai-velocity-") as scratch:
        return native.probe(
            options.probe, options.model, case, Path(scratch), precision, options.threads, device,
            **environment,
        )  # fmt: skip


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """The engine everywhere, then the reference in fp32 on each run's inputs, then in bf16."""
    import torch

    places = [(on, precision) for on in options.on for precision in options.precision]
    runs = {place: run_engine(options, case, *place) for place in places}
    net = load_transformer(options.model, options.torch)
    rows, columns = case.height // 16, case.width // 16

    def reference(run: dict) -> np.ndarray:
        return velocity_of(net, run["noise"], run["prompt_embeds"], rows, columns)

    truth = {key: reference(run) for key, run in runs.items()}
    first = next(iter(runs))
    net = net.to(torch.bfloat16)
    bf16 = relative_error(reference(runs[first]), truth[first])
    return [
        Row(f"{options.model.name} {case.width}x{case.height}", *key,
            relative_error(run["velocity_0"].reshape(truth[key].shape), truth[key]), bf16)
        for key, run in runs.items()
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    a = parser.add_argument
    a("model", type=Path)
    a("--probe", type=Path, required=True, help="bonsai-probe")
    a("--on", action="append", metavar="PLACE", help="cpu, cpu:LEVEL, cuda:N; default cpu")
    a("--size", default="512x512")
    a("--precision", action="append", choices=PRECISIONS, help="default both")
    a("--prompt", default=FAST_PROMPT)
    a("--threads", type=int, default=2, help="of the engine on the processor")
    a("--torch", default="cpu", help="device of the reference")
    options = parser.parse_args()
    options.on = options.on or ["cpu"]
    options.precision = options.precision or list(PRECISIONS)
    options.model, options.probe = options.model.resolve(), options.probe.resolve()
    try:
        width, height = map(int, options.size.split("x"))
    except ValueError:
        parser.error(f"--size {options.size}: expected e.g. 512x512")
    any_recipe = Recipe("full")  # the model is there already
    case = Case("model", any_recipe, options.prompt, width, height, 1, 42, noise_dtype="bf16")
    try:
        rows = measure(options, case)
    except native.NativeError as error:
        print(f"velocity_model.py: {error}", file=sys.stderr)
        return 2
    print(table(rows) + "\n\n" + summary(rows))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
