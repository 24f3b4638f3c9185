# SPDX-License-Identifier: Apache-2.0
"""The command: SOURCE -o model.gguf.

Exit codes: 0 done (or verified), 1 failed with a message on stderr, 2 the command line is wrong,
130 interrupted. Nothing is left behind unless the code is 0.
"""

from __future__ import annotations

import argparse
import errno
import re
import shutil
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

from . import (
    cache,
    config,
    export_diffusers,
    export_mlx,
    export_sdcpp,
    gguf,
    layout,
    singles,
    stream,
    tokenizer,
)
from .errors import ConvertError, UsageError
from .export import Written
from .jsonfile import brief, is_plain
from .parser import Parser
from .parts import KINDS, open_part
from .plan import Choices, Plan, make_plan
from .progress import Progress, size_text, time_text
from .report import Report, plan_lines, refuse_inexact
from .safetensors import Files
from .source import Source, hub_listing, is_hub_id, licence
from .verify import verify

FORMAT_VERSION = 1
_COMPACT = {"text_encoder": "q4", "aux": "q8", "vae": "f16"}
_EXPORTS = {"diffusers": export_diffusers, "mlx": export_mlx, "sdcpp": export_sdcpp}
_TYPES = {"text_encoder": ("keep", "bf16", "f16", "q8", "q4"), "vae": ("keep", "f16")}


def version() -> str:
    """The project's version: of the checkout this file is in, else of the installed package."""
    header = Path(__file__).resolve().parents[2] / "engine" / "include" / "bonsai.h"
    if header.is_file():
        m = re.search(r'#define BONSAI_VERSION "([\d.]+)"', header.read_text("utf-8"))
        if m:
            return m[1]
    from importlib import metadata

    try:
        return metadata.version("bonsai-image")
    except metadata.PackageNotFoundError:
        return "unknown"


def make_parser() -> argparse.ArgumentParser:
    p = Parser(
        description="Make one model file from a FLUX.2-klein-style checkpoint, unpacked or in the "
        "packing of another runtime. Without options nothing is lost: low-bit weights are packed "
        "and proved equal, everything else keeps its type.",
        epilog="Exit codes: 0 done, 1 failed (the message says why), 2 wrong command line, "
        "130 interrupted.",
    )
    a = p.add_argument
    a(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="checkpoint directory, a Hugging Face Hub id owner/name, or hub:owner/name[@revision] "
        "to keep the model in the cache for bonsai-cli -m hub:owner/name; may be left out when the "
        "three parts are given",
    )
    a("-o", "--output", metavar="FILE", type=Path, help="model file to write (*.gguf)")
    a(
        "--weights",
        choices=("keep", "f16", "q8", "ternary", "binary"),
        default="keep",
        help="block linears; ternary and binary quantise a dense source (default: keep)",
    )
    a(
        "--packing",
        choices=("ptq1_0", "pq2_0"),
        default="ptq1_0",
        help="ternary codes in 1.75 or 2.125 bits a weight (default: ptq1_0)",
    )
    a(
        "--transformer",
        metavar="PART",
        type=Path,
        help="transformer to take: a file (safetensors of diffusers, BFL or ComfyUI, .pt of "
        "gemlite, GGUF) or a directory",
    )
    a(
        "--text-encoder",
        metavar="TYPE|PART",
        action="append",
        default=[],
        help=f"matrices of the text encoder as TYPE: {', '.join(_TYPES['text_encoder'])} (default: "
        "keep); or the encoder to take: a file (safetensors, GGUF of llama.cpp) or a directory; "
        "may be given twice",
    )
    a(
        "--aux",
        choices=("keep", "f16", "q8"),
        default=None,
        help="other matrices of the transformer: embedders, modulations (default: keep)",
    )
    a(
        "--vae",
        metavar="TYPE|PART",
        action="append",
        default=[],
        help="VAE weights as TYPE: keep, f16 (default: keep); or the VAE to take: a file or a "
        "directory; may be given twice",
    )
    a(
        "--tokenizer",
        metavar="PLACE",
        type=Path,
        help="directory of tokenizer.json, or a GGUF file (default: in or beside the text encoder)",
    )
    a("--base", action="store_true", help="the single-file transformer is FLUX.2 klein base")
    a("--no-encoder", action="store_true", help="leave out the VAE's encoder (text to image only)")
    a(
        "--compact",
        action="store_true",
        help="same as --text-encoder q4 --aux q8 --vae f16; these three override it",
    )
    a("--report", metavar="FILE", type=Path, help="write what became of each tensor as JSON")
    a("--strict", action="store_true", help="fail rather than store a number that differs")
    a("--again", action="store_true", help="convert hub:owner/name although the cache has it")
    a(
        "--to",
        choices=tuple(_EXPORTS),
        help="write SOURCE (a model file, or any other source) as a folder in the layout of "
        "diffusers, MLX or stable-diffusion.cpp; -o names the folder",
    )
    a("--dry-run", action="store_true", help="show types, sizes and disk space; write nothing")
    a(
        "--verify",
        metavar="MODEL",
        type=Path,
        help="compare an existing model file with SOURCE, number by number; write nothing",
    )
    a("--revision", help="branch, tag or commit of a Hub id")
    a("--name", help="name of the model in the file (default: from SOURCE)")
    a("--version", action="version", version=f"%(prog)s {version()}")
    p.set_defaults(table=sys.stdout)  # where the report goes
    return p  # fmt: skip


def split_parts(args: argparse.Namespace) -> dict[str, Path]:
    """Options that name a type or a part: types stay in `args`, the parts are returned."""
    given = {} if args.transformer is None else {"transformer": args.transformer}
    for kind, types in _TYPES.items():
        values = getattr(args, kind)
        places = [Path(v) for v in values if v not in types]
        option = "--" + kind.replace("_", "-")
        if len(places) > 1 or len(values) - len(places) > 1:
            raise UsageError(f"{option}: one type and one part at most")
        for place in places:
            if not place.exists():
                raise UsageError(
                    f"{option} {place}: no such file or directory, and no type ({', '.join(types)})"
                )
            given[kind] = place
        setattr(args, kind, next((v for v in values if v in types), None))
    if args.source is None and len(given) < 3:
        raise UsageError("SOURCE is required, or --transformer, --text-encoder and --vae with "
                         "the parts")  # fmt: skip
    return given


def choices_of(args: argparse.Namespace) -> Choices:
    base = _COMPACT if args.compact else {}
    return Choices(
        weights=args.weights,
        packing=args.packing,
        **{k: getattr(args, k) or base.get(k, "keep") for k in _COMPACT},
    )


class Checkpoint:
    """An opened source: settings checked, headers read, every tensor accounted for."""

    def __init__(self, source: Source, with_encoder: bool | None) -> None:
        """`with_encoder` None: take the VAE's encoder if the source has one."""
        self.source = source
        places = source.places
        self.pipeline = config.read_pipeline(source.root, places.settings)
        parts = {k: open_part(k, places.parts[k]) for k in KINDS}
        self.notes = [*places.notes, *(n for p in parts.values() for n in p.notes)]
        self.with_encoder = with_encoder
        if with_encoder is None:
            self.with_encoder = layout.has_encoder(parts["vae"].tensors)
        self.tensors = layout.all_tensors(self.pipeline, parts, self.with_encoder)
        self.tokenizer = tokenizer.gguf_keys(places.tokenizer, self.pipeline.text.vocab_size)

    def content_keys(self, variant: str) -> dict[str, gguf.Value]:
        """Keys that follow from the source alone."""
        keys = config.gguf_keys(self.pipeline, variant, self.with_encoder)
        return keys | self.tokenizer

    def all_keys(self, variant: str, name: str | None) -> dict[str, gguf.Value]:
        general = {
            "general.architecture": "bonsai",
            "general.name": name or self.source.name,
            **licence(self.source.root),
            "general.source.repo_url": self.source.origin,
        }
        return {
            **{k: gguf.string(v) for k, v in general.items()},
            "general.quantization_version": gguf.u32(2),
            "general.alignment": gguf.u32(gguf.ALIGNMENT),
            "bonsai.format_version": gguf.u32(FORMAT_VERSION),
            "bonsai.converter": gguf.string(f"convert.py {version()}"),
            **self.content_keys(variant),
        }


def check_disk(output: Path, total: int) -> str:
    """A line about free space; an error when the file does not fit."""
    folder = output.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as e:
        raise ConvertError(
            f"{folder}: cannot write there: {e.strerror}; create the directory first"
        ) from e
    if free < total:
        raise ConvertError(
            f"{folder}: {size_text(free)} free, the model file needs {size_text(total)}; free some "
            "space, write elsewhere, or choose --compact"
        )
    return f"{folder}: {size_text(free)} free, the file fits"


def write_model(
    files: Files, keys: dict[str, gguf.Value], args: argparse.Namespace, report: Report
) -> None:
    plan, output = report.plan, args.output
    total = sum(i.found.entry.nbytes for i in plan.items)
    infos = [i.info for i in plan.items]

    def work(piece: stream.Piece):
        return stream.read_and_encode(files, piece)

    with gguf.Writer(output, keys, infos) as writer, Progress(total) as progress:
        writer.start()
        with closing(stream.in_order(work, stream.pieces(plan.items))) as results:
            for piece, encoded in results:
                writer.write(encoded.data)
                report.piece(piece.item, encoded, piece.last)
                progress.advance(piece.source_bytes, piece.item.info.name)
                if piece.last:
                    writer.end_tensor()
        if args.report:
            about = {"converter": f"convert.py {version()}", "model": str(output)}
            report.write(args.report, about | {"source": str(args.source)})
        writer.commit()


def file_size(plan: Plan, keys: dict[str, gguf.Value]) -> int:
    infos = [i.info for i in plan.items]
    head, _ = gguf.encode_header(keys, infos)
    return len(head) + sum(gguf.padded(i.nbytes) for i in infos)


def run_convert(args: argparse.Namespace, checkpoint: Checkpoint, files: Files) -> int:
    output: Path = args.output or Path("model.gguf")
    if output.is_dir():
        raise ConvertError(f"{output}: a directory; give a file name, such as {output}/model.gguf")
    if output.exists() and not output.is_file():
        raise ConvertError(f"{output}: not a regular file, and a model file is one")  # a device
    if output.exists() and any(output.samefile(t.entry.path) for t in checkpoint.tensors):
        raise ConvertError(f"{output}: belongs to the source; write to another place")
    for whole in (False, True):
        plan = make_plan(files, checkpoint.tensors, choices_of(args), whole)
        keys = checkpoint.all_keys(plan.variant, args.name)
        total = file_size(plan, keys)
        notes = checkpoint.notes + plan.notes
        if args.strict:
            refuse_inexact(plan)
        if args.dry_run:
            print("\n".join(plan_lines(plan, notes, total)))
            print(check_disk(output, total))
            return 0
        check_disk(output, total)
        start = time.monotonic()
        report = Report(plan, notes, args.strict)
        try:
            write_model(files, keys, args, report)
            break
        except stream.Contradiction:
            # A sample of rows gave a wrong kind: look at all groups of all tensors and start over.
            if whole:
                raise
    lines = report.lines(total)
    proved = sum(i.how == "groups" for i in plan.items)
    if proved:
        lines.append(f"{proved} low-bit tensors decoded again and found equal to the source")
    lines.append(f"{output}: written in {time_text(time.monotonic() - start)}")
    print("\n".join(lines), file=args.table)
    return 0


def run_export(args: argparse.Namespace, checkpoint: Checkpoint, files: Files) -> int:
    start = time.monotonic()
    plan = make_plan(files, checkpoint.tensors, Choices())
    keys = checkpoint.all_keys(plan.variant, args.name)
    written = Written(strict=args.strict)
    _EXPORTS[args.to].write(files, checkpoint, keys, args.output, written)
    lines = written.lines + checkpoint.notes
    for (source, target), count in sorted(written.rounded.items()):
        lines.append(f"{count} tensors of {source} are rounded to {target}")
    if not written.rounded:
        lines.append("no number was changed")
    lines.append(f"{args.output}: written in {time_text(time.monotonic() - start)}")
    print("\n".join(lines), file=args.table)
    return 0


def run_verify(args: argparse.Namespace, source: Source, files: Files) -> int:
    model = gguf.Reader(args.verify)
    if model.keys.get("general.architecture") != "bonsai":
        raise ConvertError(
            f"{args.verify}: architecture {brief(model.keys.get('general.architecture'))}, "
            "expected 'bonsai'; files of this converter can be verified, no others"
        )
    checkpoint = Checkpoint(source, "vae.encoder.conv_in.weight" in model.tensors)
    keys = checkpoint.content_keys(str(model.keys.get("bonsai.variant")))
    report = verify(model, files, checkpoint.tensors, keys)
    print("\n".join(report.lines()))
    if report.faults:
        raise ConvertError(
            f"{args.verify}: {len(report.faults)} faults against {args.source}; convert again"
        )
    print(f"{args.verify}: verified against {args.source}")
    return 0


def run(args: argparse.Namespace) -> int:
    if args.verify and (args.output or args.dry_run):
        raise UsageError("--verify writes nothing: leave out -o and --dry-run")
    if args.report and not args.output:
        raise UsageError("--report belongs to a conversion: give -o FILE")
    if args.report and not args.report.parent.is_dir():
        raise UsageError(f"--report: no directory {args.report.parent}")
    if args.report and args.report.is_dir():
        raise UsageError(f"--report {args.report}: a directory; give a file name")
    hub = cache.is_spec(args.source)
    if not (args.verify or args.output or args.dry_run or hub):
        example = "bonsai-convert prism-ml/bonsai-image-ternary-4B-unpacked -o model.gguf"
        raise UsageError(
            "-o FILE is required"
            if args.source or args.transformer
            else f"no SOURCE; for example: {example}"
        )
    if hub and (args.verify or args.revision):
        raise UsageError("hub:owner/name goes without --verify, and takes @revision at its end")
    if args.again and not hub:
        raise UsageError("--again belongs to hub:owner/name")
    if args.name is not None and not is_plain(args.name):
        raise UsageError("--name must be text of one line")
    parts = split_parts(args)
    if args.to:
        used = (args.weights, args.packing, args.aux, args.text_encoder, args.vae, args.compact)
        if args.verify or args.dry_run or args.report or not args.output:
            raise UsageError("--to needs -o FOLDER, and goes without --verify, --dry-run, --report")
        if used != ("keep", "ptq1_0", None, None, None, False):
            raise UsageError("--to writes what SOURCE holds: convert to other types first")
    if args.dry_run and (hub or (args.source and is_hub_id(args.source))):
        listing = cache.listing(args.source) if hub else hub_listing(args.source, args.revision)
        print("\n".join(f"{size_text(n):>10s}  {name}" for name, n in listing))
        print(f"{size_text(sum(n for _, n in listing))} to fetch unless cached; types and sizes "
              "need the weights: repeat with the fetched directory")  # fmt: skip
        return 0
    given = singles.Given(parts, args.tokenizer, args.base)
    if hub:
        return run_hub(args, given)
    source = singles.open_source(args.source, args.revision, given)
    args.source = args.source or source.name  # for messages
    return run_on(args, source)


def run_hub(args: argparse.Namespace, given: singles.Given, announce: bool = True) -> int:
    """Fetch, convert, and print the path of the model in the cache unless -o names another."""
    model = cache.parse(args.source)
    cached = args.output is None
    args.table = sys.stderr if cached else sys.stdout
    args.output = args.output or model.path

    def there() -> bool:
        return cached and not args.again and model.path.is_file()

    if not there():
        with cache.locked(model):
            if not there():  # another process may have made it meanwhile
                run_on(args, singles.with_parts(cache.fetch(model), given))
                cache.forget_source(model)
    if cached and announce:
        print(model.path)
    return 0


def make_hub_model(spec: str) -> None:
    """What the command does for SPEC alone, printing progress and the report to stderr."""
    args = make_parser().parse_args([spec])
    split_parts(args)
    run_hub(args, singles.Given({}, None, False), announce=False)


def run_on(args: argparse.Namespace, source: Source) -> int:
    files = Files()
    try:
        if args.verify:
            return run_verify(args, source, files)
        checkpoint = Checkpoint(source, False if args.no_encoder else None)
        if args.to:
            return run_export(args, checkpoint, files)
        return run_convert(args, checkpoint, files)
    finally:
        files.close()


def _os_error_text(e: OSError, output: Path | None) -> str:
    where = e.filename or output
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{where}: the disk is full ({e.strerror}); nothing was left behind"
    return f"{where}: {e.strerror or e}"


def _terminate(*_) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, _terminate)  # clean up as after Ctrl-C
    try:
        return run(args)
    except UsageError as e:
        parser.error(str(e))
    except ConvertError as e:
        print(f"{parser.prog}: error: {e}", file=sys.stderr)
    except OSError as e:
        print(f"{parser.prog}: error: {_os_error_text(e, args.output)}", file=sys.stderr)
    except MemoryError:
        print(f"{parser.prog}: error: not enough memory; close other programs", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, nothing written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1
