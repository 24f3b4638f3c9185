# SPDX-License-Identifier: Apache-2.0
"""GGUF files that lie: fields of the container, then keys, tokenizer and weights of a model.

Written by hand from the format's description, not with the converter's writer, which cannot lie.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
MAX = (1 << 64) - 1
_FORMS = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B",
    U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def scalar(kind: int, value) -> bytes:
    return string(value) if kind == STRING else struct.pack(_FORMS[kind], value)


def array(kind: int, values, count: int | None = None) -> bytes:
    head = struct.pack("<IQ", kind, len(values) if count is None else count)
    return head + b"".join(scalar(kind, v) for v in values)


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def record(name: str | bytes, dims, kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(keys=(), records=(), data: bytes = b"", *, counts=None, version=3, pad=True) -> bytes:
    tensors, many = counts or (len(records), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, many) + b"".join([*keys, *records])
    return head + (bytes(-len(head) % 32) if pad else b"") + data


def one(dims=(8,), kind=0, offset=0, data=bytes(32), name: str | bytes = "t", keys=()) -> bytes:
    """A file with one tensor."""
    return gguf(keys, [record(name, dims, kind, offset)], data)


def _starts() -> Iterator[tuple[str, str, bytes]]:
    page = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"
    yield "empty", "the file is empty", b""
    yield "magic-only", "not a GGUF file", b"GGUF"
    yield "counts-cut", "not a GGUF file", gguf(pad=False)[:23]
    yield "web-page", "not a GGUF file but a web page", page
    yield "web-page-indented", "not a GGUF file but a web page", b"\r\n\t  " + page
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\n"
    yield "git-lfs-pointer", "not a GGUF file but a git-lfs pointer", pointer
    yield "zip", "not a GGUF file", b"PK\3\4" + bytes(60)
    yield "version-1", "GGUF version 1, expected 3", gguf(version=1)
    yield "version-4", "GGUF version 4, expected 3", gguf(version=4)
    yield "version-big-endian", "a big-endian file", gguf(version=0x03000000)
    yield "tensor-count-huge", "claims 9223372036854775808 tensors", gguf(counts=(1 << 63, 0))
    yield "key-count-huge", "and 18446744073709551615 keys", gguf(counts=(0, MAX))
    yield "tensor-count-beyond-end", "ends inside its header", gguf(counts=(60000, 0), pad=False)
    yield "key-count-beyond-end", "ends inside its header", gguf(counts=(0, 60000), pad=False)


def _keys() -> Iterator[tuple[str, str, bytes]]:
    number = struct.pack("<I", 1)

    def raw(name: str, words: str, data: bytes):
        return name, words, gguf([data])

    cut, control = "ends inside its header", "contains a control character or is not UTF-8"
    yield raw("key-length-wraps", cut, string("k", MAX) + bytes(40))
    yield raw("key-length-beyond-end", cut, string("k", 1000) + bytes(40))
    yield raw("key-empty", "a key has a length of 0", key("", U32, number))
    yield raw("key-too-long", "a key has a length of 65536", key("k" * 65536, U32, number))
    yield raw("key-escape", control, key("a\x1b[31m", U32, number))
    yield raw("key-zero-byte", control, key("a\0b", U32, number))
    yield raw("key-overlong-utf8", control, key(b"a\xc0\xaf", U32, number))
    yield raw("key-surrogate", control, key(b"a\xed\xa0\x80", U32, number))
    yield "key-twice", "key k stands twice", gguf([key("k", U32, number)] * 2)
    yield raw("value-type-unknown", "has value type 13", key("k", 13, number))
    yield raw("value-type-huge", "has value type 4294967295", key("k", 0xFFFFFFFF, number))
    yield "value-cut", cut, gguf([key("k", U64, bytes(7))], pad=False)
    yield raw("string-length-wraps", cut, key("k", STRING, string("x", MAX)))
    yield raw("string-length-wraps-to-start", cut, key("k", STRING, string("x", MAX - 40)))
    yield raw("string-beyond-end", cut, key("k", STRING, string("x", 5000)))
    for kind, name in ((U32, "u32"), (F64, "f64")):
        count = (1 << 64) // struct.calcsize(_FORMS[kind]) + 1  # count x size wraps to one element
        value = array(kind, [1], count)
        yield raw(f"array-count-wraps-{name}", "claims", key("k", ARRAY, value) + bytes(64))
    yield raw("array-count-max", "claims", key("k", ARRAY, array(U8, [1], MAX)))
    yield raw("array-beyond-end", cut, key("k", ARRAY, array(U8, [1], 5000)))
    yield raw("array-strings-beyond-end", cut, key("k", ARRAY, array(STRING, ["a"], 1 << 40)))
    yield raw("array-type-unknown", "has value type 99", key("k", ARRAY, array(99, [], 1)))
    inner = struct.pack("<IQ", ARRAY, 1) + array(U8, [1])
    yield raw("array-nested", "is an array of arrays", key("k", ARRAY, inner))
    deep = struct.pack("<IQ", ARRAY, 1) * 500
    yield raw("array-nested-deep", "is an array of arrays", key("k", ARRAY, deep))


def _tensors() -> Iterator[tuple[str, str, bytes]]:
    control = "contains a control character or is not UTF-8"
    yield "tensor-name-empty", "a tensor name has a length of 0", one(name="")
    yield "tensor-name-escape", control, one(name="t\x1b]0;x\7")
    yield "tensor-name-not-utf8", control, one(name=b"t\xff")
    twice = [record("t", [8], 0, 0), record("t", [8], 0, 32)]
    yield "tensor-twice", "tensor t stands twice", gguf((), twice, bytes(64))
    yield "dims-none", "has 0 dimensions", one(dims=())
    yield "dims-five", "has 5 dimensions", one(dims=(1, 1, 1, 1, 8))
    head = string("t") + struct.pack("<I", 0xFFFFFFFF)
    yield "dims-count-huge", "has 4294967295 dimensions", gguf((), [head], bytes(64))
    impossible = "the size is not possible"
    yield "dim-zero", impossible, one(dims=(8, 0))
    yield "dim-minus-one", impossible, one(dims=(MAX,))
    yield "dims-product-wraps", impossible, one(dims=(1 << 33, 1 << 33))
    yield "dims-product-wraps-to-zero", impossible, one(dims=(1 << 16,) * 4)
    yield "dims-times-type-size-wraps", impossible, one(dims=((1 << 61) + 1,), kind=28)
    yield "dims-beyond-data", "it is cut off", one(dims=(1000, 1000))
    yield "row-not-whole-blocks", "blocks of 32", one(dims=(40,), kind=8, data=bytes(64))
    yield "offset-plus-size-wraps", "it is cut off", one(offset=MAX - 31)
    yield "offset-beyond-end", "it is cut off", one(offset=1 << 40)
    yield "offset-unaligned", "not a multiple of 32", one(offset=4, data=bytes(64))
    yield "data-cut", "it is cut off", one(data=bytes(31))
    close = gguf((), [record("t", [8], 0, 0)], pad=False)
    yield "padding-beyond-end", "it is cut off", close
    same = [record("a", [8], 0, 0), record("b", [8], 0, 0)]
    yield "tensors-at-one-place", "overlaps the one before it", gguf((), same, bytes(64))
    over = [record("a", [16], 0, 0), record("b", [8], 0, 32)]
    yield "tensors-overlap", "overlaps the one before it", gguf((), over, bytes(64))
    swapped = [record("a", [8], 0, 32), record("b", [8], 0, 0)]
    yield "tensors-out-of-order", "overlaps the one before it", gguf((), swapped, bytes(64))
    for name, kind, value in (
        ("zero", U32, 0), ("24", U32, 24), ("131072", U32, 1 << 17), ("2-to-32", U64, 1 << 32),
        ("negative", I32, -32),
    ):  # fmt: skip
        keys = [key("general.alignment", kind, scalar(kind, value))]
        yield f"alignment-{name}", "expected a power of two", one(keys=keys)
    keys = [key("general.alignment", U64, scalar(U64, MAX))]
    yield "alignment-wraps", "general.alignment is above 2^63 - 1", one(keys=keys)
    keys = [key("general.alignment", STRING, string("32"))]
    yield "alignment-text", "should be an integer, but is string", one(keys=keys)


# ---- models: the container is good ---------------------------------------------------------------


def _alphabet() -> list[str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


_TOKENS = [*_alphabet(), "ab", "abc", "<pad>", "<u>", "</u>"]
_TYPES = [1] * 258 + [3] * 3


def model_keys() -> dict[str, tuple[int, bytes]]:
    """All keys of a model as small as can be; its tensors are not there."""
    found: dict[str, tuple[int, bytes]] = {}

    def put(kind: int, **values) -> None:
        for name, value in values.items():
            found["bonsai." + name.replace("__", ".")] = (kind, scalar(kind, value))

    found["general.architecture"] = (STRING, string("bonsai"))
    put(STRING, variant="dense", prompt__prefix="<u>", prompt__suffix="</u>")
    put(STRING, schedule__type="exponential")
    put(BOOL, distilled=1, te__final_norm=0, vae__mid_attention=1, schedule__dynamic=1)
    put(U32, format_version=1, default__width=32, default__height=32, default__steps=2)
    put(U32, te__vocab_size=261, te__width=8, te__layers=2, te__heads=1, te__kv_heads=1)
    put(U32, te__head_dim=8, te__ffn_width=8, te__max_tokens=24)
    put(U32, dit__double_blocks=1, dit__single_blocks=1, dit__heads=1, dit__head_dim=8)
    put(U32, dit__in_channels=16, dit__context_width=16, dit__mlp_width=24, dit__time_channels=8)
    put(U32, vae__latent_channels=4, vae__layers_per_block=1, vae__norm_groups=4)
    put(U32, schedule__train_steps=1000)
    put(F32, default__guidance=1, te__norm_eps=1e-6, dit__norm_eps=1e-6, vae__norm_eps=1e-6)
    put(F32, vae__bn_eps=1e-4, te__rope_theta=1e6, dit__rope_theta=2000, schedule__shift=3)
    found["bonsai.te.out_layers"] = (ARRAY, array(U32, [1, 2]))
    found["bonsai.dit.rope_axes"] = (ARRAY, array(U32, [2, 2, 2, 2]))
    found["bonsai.vae.decoder_widths"] = (ARRAY, array(U32, [4, 4, 4, 4]))
    found["tokenizer.ggml.tokens"] = (ARRAY, array(STRING, _TOKENS))
    found["tokenizer.ggml.token_type"] = (ARRAY, array(I32, _TYPES))
    found["tokenizer.ggml.merges"] = (ARRAY, array(STRING, ["a b", "ab c"]))
    found["tokenizer.ggml.padding_token_id"] = (U32, scalar(U32, 258))
    return found


def model(changes: dict, tensors=()) -> bytes:
    """The smallest model with keys changed (None: left out) and tensors (name, ne, type, data)."""
    keys = model_keys() | changes
    records, data = [], b""
    for name, dims, kind, payload in tensors:
        records.append(record(name, dims, kind, len(data)))
        data += payload + bytes(-len(payload) % 32)
    return gguf([key(k, *v) for k, v in keys.items() if v is not None], records, data)


def _configs() -> Iterator[tuple[str, str, bytes]]:
    def change(name: str, words: str, key_name: str, kind: int | None, value=None):
        full = key_name if key_name.startswith("general.") else "bonsai." + key_name
        new = None if kind is None else (kind, value if kind == ARRAY else scalar(kind, value))
        return name, words, model({full: new})

    yield change("architecture-missing", "the key general.architecture is missing",
                 "general.architecture", None)  # fmt: skip
    yield change("architecture-number", "should be a string, but is u32",
                 "general.architecture", U32, 7)  # fmt: skip
    yield change("architecture-llama", "architecture llama, expected bonsai",
                 "general.architecture", STRING, "llama")  # fmt: skip
    yield change("architecture-escape", "architecture ?[2J?[31m, expected bonsai",
                 "general.architecture", STRING, "\x1b[2J\x1b[31m")  # fmt: skip
    yield change("name-two-lines", "general.name contains a control character",
                 "general.name", STRING, "a\nb")  # fmt: skip
    yield change("name-not-utf8", "general.name contains a zero byte or is not UTF-8",
                 "general.name", STRING, b"a\xff")  # fmt: skip
    yield change("version-of-the-future", "format version 2", "format_version", U32, 2)
    yield change("key-missing", "the key bonsai.te.layers is missing", "te.layers", None)
    layers = "key bonsai.te.layers should be an integer, but is "
    yield change("integer-is-text", layers + "string", "te.layers", STRING, "2")
    yield change("integer-is-float", layers + "f32", "te.layers", F32, 2)
    yield change("integer-is-bool", layers + "bool", "te.layers", BOOL, 1)
    yield change(
        "integer-is-array", layers + "an array of u32", "te.layers", ARRAY, array(U32, [2])
    )
    yield change("integer-negative", "bonsai.te.layers is -1, expected 1", "te.layers", I32, -1)
    yield change("integer-above-int64", "bonsai.te.layers is above 2^63 - 1", "te.layers", U64, MAX)
    yield change("integer-above-range", "is 1000000, expected 1 to", "te.layers", U32, 1000000)
    yield change("bool-is-integer", "bonsai.distilled should be a bool, but is u32",
                 "distilled", U32, 1)  # fmt: skip
    yield change("divisor-zero", "bonsai.te.kv_heads is 0, expected 1", "te.kv_heads", U32, 0)
    yield change("float-nan", "bonsai.te.rope_theta is not a finite number",
                 "te.rope_theta", F32, math.nan)  # fmt: skip
    yield change("float-infinite", "bonsai.schedule.shift is not a finite number",
                 "schedule.shift", F32, math.inf)  # fmt: skip
    yield change("float-is-integer", "should be a float, but is u32", "te.norm_eps", U32, 0)
    yield change("array-empty", "out_layers has 0 entries", "te.out_layers", ARRAY, array(U32, []))
    yield change("array-too-long", "has 4000 entries, expected at most 16",
                 "te.out_layers", ARRAY, array(U8, [1] * 4000))  # fmt: skip
    yield change("array-of-floats", "should be an array of integers, but is an array of f32",
                 "te.out_layers", ARRAY, array(F32, [1, 2]))  # fmt: skip
    yield change("array-descends", "out_layers do not ascend",
                 "te.out_layers", ARRAY, array(U32, [2, 1]))  # fmt: skip
    yield change("array-out-of-range", "out_layers is 3, expected 1 to 2",
                 "te.out_layers", ARRAY, array(U32, [1, 3]))  # fmt: skip
    yield change("axes-short", "rope_axes has 3 entries",
                 "dit.rope_axes", ARRAY, array(U32, [4, 2, 2]))  # fmt: skip
    yield change("axes-odd", "rope_axes holds an odd number",
                 "dit.rope_axes", ARRAY, array(U32, [1, 3, 2, 2]))  # fmt: skip
    yield change("contradiction", "contradict each other", "dit.context_width", U32, 24)
    yield change("schedule-unknown", "neither exponential nor linear",
                 "schedule.type", STRING, "cubic")  # fmt: skip
    yield change("prefix-not-utf8", "bonsai.prompt.prefix contains a zero byte or is not UTF-8",
                 "prompt.prefix", STRING, b"\xe2\x82")  # fmt: skip
    yield change("prefix-too-long", "has 70000 bytes, expected at most 65536",
                 "prompt.prefix", STRING, "x" * 70000)  # fmt: skip


def _tokenizers() -> Iterator[tuple[str, str, bytes]]:
    def change(name: str, words: str, key_name: str, kind: int | None, value: bytes = b""):
        new = None if kind is None else (kind, value)
        return name, words, model({"tokenizer.ggml." + key_name: new})

    def tokens(name: str, words: str, changes: dict[int, str | bytes]):
        changed = [changes.get(i, t) for i, t in enumerate(_TOKENS)]
        return change(name, words, "tokens", ARRAY, array(STRING, changed))

    def types(name: str, words: str, value: int, kind: int = I64):
        changed = [*_TYPES[:5], value, *_TYPES[6:]]
        return change(name, words, "token_type", ARRAY, array(kind, changed))

    def merges(name: str, words: str, *rules: str):
        return change(name, words, "merges", ARRAY, array(STRING, ["a b", *rules]))

    yield change("tokens-missing", "the key tokenizer.ggml.tokens is missing", "tokens", None)
    yield change("tokens-numbers", "should be an array of strings, but is an array of u32",
                 "tokens", ARRAY, array(U32, [1, 2]))  # fmt: skip
    yield change("tokens-none", "but there are 0 tokens", "tokens", ARRAY, array(STRING, []))
    yield change("types-too-few", "2 token types for 261 tokens",
                 "token_type", ARRAY, array(I32, [1, 1]))  # fmt: skip
    yield types("type-unknown", "is of type 77; expected 1, 3, 4 or 5", 77)
    yield types("type-minus-one", "is of type -1; expected 1, 3, 4 or 5", -1)
    yield types("type-wraps-to-1", "is of type -1; expected 1, 3, 4 or 5", (1 << 32) + 1)
    pad = "tokenizer.ggml.padding_token_id is "
    yield change("padding-minus-one", pad + "-1, but there are 261 tokens",
                 "padding_token_id", I32, scalar(I32, -1))  # fmt: skip
    yield change("padding-beyond-end", pad + "261, but there are 261 tokens",
                 "padding_token_id", U32, scalar(U32, 261))  # fmt: skip
    yield change("padding-wraps", pad + "4294967296, but there are 261 tokens",
                 "padding_token_id", U64, scalar(U64, 1 << 32))  # fmt: skip
    yield tokens("token-twice", 'are both "ab"; expected distinct tokens', {257: "ab"})
    yield tokens("token-byte-missing", "none for the byte 0x21", {0x21: "xyz"})
    yield tokens("token-added-empty", "is an added token without text", {259: ""})
    yield tokens("token-added-not-utf8", "is not valid UTF-8", {259: b"<\xff>"})
    yield tokens("token-added-long", "has 300 bytes; expected at most 256", {259: "u" * 300})
    pair = "expected two tokens and one space between"
    yield merges("merge-loops-left", pair, " ab")  # the empty token and "ab" give "ab" again
    yield merges("merge-loops-right", pair, "ab ")
    yield merges("merge-empty", pair, "")
    yield merges("merge-one-part", pair, "ab")
    yield merges("merge-three-parts", pair, "a b c")
    yield merges("merge-part-unknown", '"zz" is not in the vocabulary', "zz a")
    yield merges("merge-result-unknown", '"ba" is not in the vocabulary', "b a")
    yield merges("merge-of-added-token", "is not in the vocabulary", "<u> a")
    yield ("vocabulary-above-embedding", "261 tokens, but an embedding of 260 rows",
           model({"bonsai.te.vocab_size": (U32, scalar(U32, 260))}))  # fmt: skip


def _weights() -> Iterator[tuple[str, str, bytes]]:
    embedding = ("te.token_embd.weight", [8, 261], 1, bytes(2 * 8 * 261))
    norm = "te.blk.0.attn_norm.weight"

    def vector(name: str, words: str, *values: float):
        data = struct.pack(f"<{len(values)}f", *values)
        return name, words, model({}, [embedding, (norm, [len(values)], 0, data)])

    missing = "tensor te.token_embd.weight is missing"
    yield "tensors-none", missing, model({})
    yield "tensor-missing", f"tensor {norm} is missing", model({}, [embedding])
    other = ("te.token_embd.weight", [261, 8], 1, bytes(2 * 8 * 261))
    yield "tensor-transposed", "is 8 x 261, expected 261 x 8", model({}, [other])
    small = ("te.token_embd.weight", [8, 100], 1, bytes(2 * 8 * 100))
    yield "tensor-small", "is 100 x 8, expected 261 x 8", model({}, [small])
    foreign = ("te.token_embd.weight", [256, 1], 12, bytes(144))
    yield (
        "tensor-type-foreign",
        "type 12 (Q4_K), which this engine does not run",
        model({}, [foreign]),
    )
    unknown = ("te.token_embd.weight", [8, 261], 200, b"")
    yield "tensor-type-unknown", "type 200 (unknown)", model({}, [unknown])
    yield vector(
        "vector-nan", f"tensor {norm}: entry 3 is not a number", *[1] * 3, math.nan, *[1] * 4
    )
    yield vector("vector-infinite", f"tensor {norm}: entry 0 is not a number", math.inf, *[1] * 7)
    yield vector("vector-short", "is 7, expected 1 x 8", *[1] * 7)
    packed = (norm, [32], 8, bytes(34))
    big = {
        "bonsai.te.width": (U32, scalar(U32, 32)),
        "bonsai.dit.context_width": (U32, scalar(U32, 64)),
    }
    wide = ("te.token_embd.weight", [32, 261], 1, bytes(2 * 32 * 261))
    yield "vector-packed", "vectors are F32, F16 or BF16", model(big, [wide, packed])


def _hashes() -> Iterator[tuple[str, str, bytes]]:
    def hashed(name: str, words: str, *hashes: str):
        keys = [key("bonsai.tensor_sha256", ARRAY, array(STRING, hashes))] if hashes else []
        return name, words, one(keys=keys)

    yield hashed("hashes-missing", "it holds no hashes")
    yield hashed("hashes-too-many", "2 hashes for 1 tensors", "0" * 64, "0" * 64)
    yield hashed("hash-wrong", "tensor t is damaged", "0" * 64)
    yield hashed("hash-escape", "the file was made with ?[2J; download", "\x1b[2J")


def cases() -> Iterator[tuple[str, str, str, bytes]]:
    """(file, reader, words, bytes)"""
    for part in (_starts, _keys, _tensors):
        for name, words, data in part():
            yield f"gguf/{name}.gguf", "gguf", words, data
    for part in (_configs, _tokenizers, _weights):
        for name, words, data in part():
            yield f"model/{name}.gguf", "model", words, data
    for name, words, data in _hashes():
        yield f"verify/{name}.gguf", "verify", words, data
