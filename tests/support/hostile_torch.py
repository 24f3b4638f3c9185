# SPDX-License-Identifier: Apache-2.0
"""Files of packed layouts that lie: .pt archives and their pickles, gemlite, HQQ and MLX modules.

A .pt file takes the place of all weights of its folder (tests/convert/test_hostile.py).
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from . import pack_layouts
from .torch_io import Global, Raw, Tensor, encode, pickled

STATE_DICT = "transformer/state_dict.pt"
QMODEL = "text_encoder/qmodel.pt"
_MLX = "transformer/diffusion_pytorch_model.safetensors"


def archive(pickle: bytes, entries: dict[str, bytes] | None = None, compress: int = 0) -> bytes:
    """A .pt file, the same bytes on every machine."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, data in {"data.pkl": pickle, **(entries or {})}.items():
            info = zipfile.ZipInfo(f"x/{name}")
            info.create_system, info.compress_type = 3, compress
            z.writestr(info, data)
    return out.getvalue()


_TENSOR = Tensor("0", "F32", (2, 3), 6)
_DATA = {"data/0": bytes(24)}


def _state(value: object, entries: dict[str, bytes] | None = None) -> bytes:
    return archive(pickled({"a": value}), _DATA if entries is None else entries)


def _patched(good: bytes, *changes: tuple[int, str, int]) -> bytes:
    """Numbers of a form put at places of the file."""
    data = bytearray(good)
    for at, form, value in changes:
        struct.pack_into(form, data, at, value)
    return bytes(data)


def _archives() -> Iterator[tuple[str, str, bytes]]:
    good = _state(_TENSOR)
    end = good.rindex(b"PK\5\6")
    first = good.index(b"PK\1\2")
    second = good.index(b"PK\1\2", first + 4)
    yield "old-pickle", "no ZIP archive", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M"
    yield "cut", "no readable ZIP archive", good[: len(good) // 2]
    yield "only-magic", "no readable ZIP archive", b"PK\3\4"
    yield "no-end", "no readable ZIP archive", good[:end]
    wrong = _patched(good, (end + 12, "<I", 0x7FFFFFFF))
    yield "directory-huge", "no readable ZIP archive", wrong
    wrong = _patched(good, (end + 16, "<I", 0xFFFFFFF0))
    yield "directory-beyond-end", "download the file again", wrong
    yield "header-moved", "not where the directory says", _patched(good, (first + 42, "<I", 7))
    yield (
        "size-beyond-end",
        "the file has",
        _patched(good, (second + 20, "<I", 1 << 30), (second + 24, "<I", 1 << 30)),
    )
    yield "sizes-differ", "the file has", _patched(good, (second + 24, "<I", 8))
    yield "encrypted", "is compressed or encrypted", _patched(good, (second + 8, "<H", 1))
    yield "entries-overlap", "overlap", _patched(good, (second + 42, "<I", 0))
    zeros = archive(pickled({}), {"data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    yield "bomb", "is compressed or encrypted", zeros
    yield "no-pickle", "0 entries named data.pkl", good.replace(b"data.pkl", b"data.pkx")
    yield "two-pickles", "2 entries named data.pkl", archive(b"", {"y/data.pkl": b"", **_DATA})
    yield (
        "entry-twice",
        "there twice",
        archive(b"", {"byteorder": b"", "byteordes": b""}).replace(b"byteordes", b"byteorder"),
    )
    yield "entry-escape", "no name", archive(b"", {"\x1b[2J": b""})
    yield "big-endian", "big-endian", archive(pickled({}), {"byteorder": b"big"})


def _pickles() -> Iterator[tuple[str, str, bytes]]:
    def raw(name: str, words: str, code: bytes):
        return f"pickle-{name}", words, archive(code, _DATA)

    def value(name: str, words: str, item: object):
        return f"pickle-{name}", words, _state(item)

    call = b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R."
    yield raw("system", "it refers to 'posix system'", call)
    yield raw("eval", "it refers to 'builtins eval'", b"\x80\x02cbuiltins\neval\nX\1\0\0\0x\x85R.")
    yield raw("import", "it refers to 'torch load'", b"\x80\x02ctorch\nload\n)R.")
    yield raw("dtype-called", "no constructor of tensors", b"\x80\x02ctorch\nuint8\n)R.")
    yield raw("stack-global", "the opcode", b"\x80\x04\x8c\x05posix\x8c\x06system\x93.")
    yield raw("instance", "the opcode INST", b"(iposix\nsystem\n.")
    yield raw("extension", "the opcode EXT1", b"\x80\x02\x82\x01.")
    yield raw("new-object", "the opcode NEWOBJ", b"\x80\x02ctorch\nSize\n)\x81.")
    yield raw("long", "the opcode LONG4", b"\x80\x02\x8b\x04\0\0\0\xff\xff\xff\x7f.")
    yield raw("long-beyond-end", "not readable", b"\x80\x02\x8b\xff\xff\xff\x7f.")
    yield raw("text-beyond-end", "not readable", b"\x80\x02X\xff\xff\xff\x7fa.")
    yield raw("text-no-utf8", "not readable", b"\x80\x02X\x01\0\0\0\xff.")
    yield raw("empty", "not readable", b"")
    yield raw("no-stop", "not readable", b"\x80\x02}")
    yield raw("underflow", "its stack is empty", b"\x80\x02R.")
    yield raw("no-mark", "a mark is missing", b"\x80\x02}u.")
    yield raw("mark-as-value", "its stack is empty", b"\x80\x02(R.")
    yield raw("odd-items", "items for something that is no dict", b"\x80\x02}(K\1u.")
    yield raw("items-of-tuple", "items for something that is no dict", b"\x80\x02)(u.")
    yield raw("memo-empty", "recalls what it has not stored", b"\x80\x02h\7.")
    yield raw("behind-result", "values behind its result", b"\x80\x02}}.")
    yield raw("key-number", "a dict with the key 1", b"\x80\x02}K\1K\1s.")
    key = b"X\1\0\0\0a"
    yield raw("key-twice", "a dict with the key 'a'", b"\x80\x02}" + 2 * (key + b"K\1s") + b".")
    yield raw("state-of-number", "a state for something", b"\x80\x02K\1}b.")
    yield raw("list", "holds no dict of tensors", b"\x80\x02].")
    # Well-formed, and cheap here: one slot of the memo far away, a dict in itself, deep tuples.
    yield raw("memo-far", "tensors missing", b"\x80\x02}r\xff\xff\xff\x7f.")
    yield raw("in-itself", "tensors missing", b"\x80\x02}q\0" + key + b"h\0s.")
    deep = b"\x80\x02}" + key + b")" + b"\x85" * 30000 + b"s."
    yield raw("deep", "tensors missing", deep)
    yield value("no-storage", "a reference that is no storage", Raw(encode(("module", 1)) + b"Q"))
    name = Raw(
        b"(" + encode("storage") + b"ctorch\nSize\n" + encode("0") + encode("cpu") + b"K\6tQ"
    )
    yield value("storage-of-names", "a reference that is no storage", name)
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    yield value("tensor-of-text", "shape, stride or offset", Raw(rebuild + encode(("x",)) + b"R"))
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + encode((1, False, 2)) + b"R"
    yield value("parameter-of-number", "a parameter that is no tensor", Raw(parameter))
    size = Raw(b"ctorch\nSize\n" + encode(((-1,),)) + b"R")
    yield value("size-negative", "a torch.Size of something", size)
    ordered = Raw(b"ccollections\nOrderedDict\n" + encode((1,)) + b"R")
    yield value("dict-of-arguments", "an OrderedDict with arguments", ordered)


def _tensors() -> Iterator[tuple[str, str, bytes]]:
    def tensor(name: str, words: str, *args, **kwargs):
        return f"tensor-{name}", words, _state(Tensor(*args, **kwargs))

    yield tensor("storage-missing", "is missing", "7", "F32", (2, 3), 6)
    yield tensor("storage-short", "is 24 bytes long", "0", "F32", (2, 3), 7)
    yield tensor("storage-path", "is missing", "../data.pkl", "F32", (2, 3), 6)
    yield tensor("shape-beyond", "but its storage has 6", "0", "F32", (3, 3), 6)
    yield tensor("offset-beyond", "but its storage has 6", "0", "F32", (2, 3), 6, offset=1)
    yield tensor("shape-negative", "shape, stride or offset", "0", "F32", (2, -3), 6)
    yield tensor("shape-huge", "shape, stride or offset", "0", "F32", (1 << 60, 3), 6)
    product = (1 << 40, 1 << 40)
    yield tensor("product-wraps", "but its storage has 6", "0", "F32", product, 6)
    yield tensor("stride-zero", "a strided view", "0", "F32", (1 << 40, 3), 6, stride=(0, 1))
    yield tensor("transposed", "a strided view", "0", "F32", (3, 2), 6, stride=(1, 3))
    yield "tensor-name-escape", "has the name", archive(pickled({"\x1b[2J": _TENSOR}), _DATA)


def _module(arrays: dict) -> bytes:
    """A .pt file of one module's arrays and plain values."""
    tree, data = {}, {}
    for name, value in arrays.items():
        if isinstance(value, tuple) and isinstance(value[0], str):
            dtype, shape, array = value
            key = str(len(data))
            data[f"data/{key}"] = np.ascontiguousarray(array).tobytes()
            value = Tensor(key, dtype, tuple(shape), int(np.prod(shape, dtype=np.int64)))
        tree[name] = value
    return archive(pickled(tree if "W_q" not in tree else {"m": tree}), data)


def _gemlite() -> Iterator[tuple[str, str, bytes]]:
    codes = np.zeros((8, 256), np.int8)
    good = pack_layouts.gemlite_arrays("m", codes, np.ones((8, 2), np.float32), 2)

    def change(name: str, words: str, **leaves):
        arrays = {n: v for n, v in good.items() if leaves.get(n[2:], v) is not None}
        arrays |= {f"m.{k}": v for k, v in leaves.items() if v is not None}
        return f"gemlite-{name}", words, _module(arrays)

    def integers(*values: int):
        return "I32", (len(values),), np.array(values, np.int32)

    def metadata(**at: int):
        values = good["m.metadata"][2].copy()
        for index, value in at.items():
            values[int(index[1:])] = value
        return integers(*values)

    yield change("scales-missing", "'m.scales' is missing beside it", scales=None)
    yield change("metadata-short", "expected 12 whole numbers", metadata=integers(1, 2, 3))
    yield change("shape-floats", "expected 2 whole numbers", orig_shape=good["m.scales"])
    mode = "gemlite scale mode"
    yield change("mode-unknown", mode, metadata=metadata(_10=2))
    yield change("mode-pair", mode, metadata=metadata(_9=1))
    yield change("bits-three", "codes of 3 bits", metadata=metadata(_1=3))
    yield change("bits-negative", "codes of -2 bits", metadata=metadata(_1=-2))
    fit = "does not hold"
    yield change("group-zero", fit, metadata=metadata(_2=0))
    yield change("item-zero", fit, metadata=metadata(_4=0))
    yield change("shape-swapped", fit, orig_shape=integers(256, 8))
    yield change("shape-zero", fit, orig_shape=integers(0, 256))
    yield change("shape-huge", fit, orig_shape=integers(2**31 - 1, 2**31 - 1))
    yield change("scales-transposed", "expected floats [2, 8]", scales=good["m.scales"][:1] + (
        (8, 2), good["m.scales"][2]))  # fmt: skip
    codes_of_text = ("F32", (64, 2), np.zeros((64, 2), np.float32))
    yield change("codes-floats", "codes of 2 bits in F32", W_q=codes_of_text)


def _hqq() -> Iterator[tuple[str, str, bytes]]:
    zeros = np.zeros((4, 2), np.float16)
    good = pack_layouts.hqq_module(np.zeros((4, 128), np.uint8), zeros, zeros)

    def change(name: str, words: str, **leaves):
        return f"hqq-{name}", words, _module(good | leaves)

    yield change("three-bits", "HQQ 'nbits' is 3", nbits=3)
    yield change("bits-bool", "HQQ 'nbits' is True", nbits=True)
    yield change("axis", "HQQ 'axis' is 0", axis=0)
    yield change("packing", "HQQ 'packing' is 'x'", packing="x")
    yield change("quantised-scale", "HQQ 'quant_scale' is True", quant_scale=True)
    apart = "do not belong together"
    yield change("shape-text", apart, shape="4")
    yield change("shape-negative", apart, shape=(-4, 128))
    yield change("shape-swapped", apart, shape=(128, 4))
    yield change("shape-huge", apart, shape=(1 << 31, 1 << 31))
    yield change("group-zero", apart, group_size=0)
    yield change("scale-is-a-name", apart, scale=Global("torch", "uint8"))


def _mlx() -> Iterator[tuple[str, str, bytes]]:
    module = "transformer_blocks.0.attn.to_q"
    codes = np.zeros((128, 128), np.int8)
    good = pack_layouts.mlx_arrays(module, codes, np.ones((128, 1), np.float32), 2)

    def change(name: str, words: str, **leaves):
        arrays = {n: leaves.get(n.rsplit(".", 1)[1], v) for n, v in good.items()}
        header, data = {}, b""
        for n, v in arrays.items():
            if v is not None:
                raw = np.ascontiguousarray(v[2]).tobytes()
                span = [len(data), len(data) + len(raw)]
                header[n] = {"dtype": v[0], "shape": list(v[1]), "data_offsets": span}
                data += raw
        text = json.dumps(header).encode()
        return f"mlx-{name}", words, struct.pack("<Q", len(text)) + text + data

    floats = np.zeros((128, 2), np.float16)
    yield change("no-biases", "biases' is not beside it", biases=None)
    yield change("biases-other", "one pair a group", biases=("F16", (128, 2), floats))
    yield change("scales-rows", "one pair a group", scales=("F16", (64, 4), floats))
    yield change("scales-integers", "one pair a group", scales=("I16", (128, 1), floats[:, :1]))
    none = ("F16", (128, 0), floats[:, :0])
    yield change("no-groups", "fit no known bits and group", scales=none, biases=none)
    words = np.zeros((128, 7), np.uint32)
    yield change("words-seven", "fit no known bits and group", weight=("U32", (128, 7), words))
    yield change("one-row", "one pair a group", weight=("U32", (8,), words[0, :1].repeat(8)))
    yield change("alone", "tensors missing")


def cases() -> Iterator[tuple[str, str, str, bytes]]:
    """(file, place, words, bytes)"""
    for made in (_archives, _pickles, _tensors, _gemlite):
        for name, words, data in made():
            yield f"torch/{name}.pt", STATE_DICT, words, data
    for name, words, data in _hqq():
        yield f"torch/{name}.pt", QMODEL, words, data
    for name, words, data in _mlx():
        yield f"safetensors/{name}.safetensors", _MLX, words, data
