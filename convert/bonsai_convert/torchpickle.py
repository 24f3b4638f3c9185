# SPDX-License-Identifier: Apache-2.0
"""The pickle inside a .pt file, read by an interpreter that can build nothing but tensors.

It knows the opcodes that torch.save writes (pickle protocol 2), no others, and a handful of names;
nothing is imported and nothing is called but the constructors below. Python's own unpickler, even
with a filter for names, can be made to allocate gigabytes by one opcode.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass

from .jsonfile import brief

MAX_OPCODES = 1 << 21
_DTYPES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "ByteStorage": "U8",
    "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32", "LongStorage": "I64",
    "DoubleStorage": "F64", "BoolStorage": "BOOL",
}  # fmt: skip
# dtypes as values: HQQ stores them beside its tensors.
_PLAIN = {
    "float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool",
}  # fmt: skip
_CALLS = {
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "collections OrderedDict", "torch Size",
}  # fmt: skip


class Refused(ValueError):
    """The pickle is damaged, or asks for something that is no tensor."""


@dataclass(frozen=True)
class Storage:
    """Raw bytes in the archive: its entry's name, type and number of elements."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class TorchTensor:
    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A global that the pickle refers to."""

    text: str


_MARK = object()


def _natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _naturals(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= 8 and all(map(_natural, value))


def _global(text: str) -> Name:
    module, _, name = text.partition(" ")
    if text in _CALLS or (module == "torch" and (name in _DTYPES or name in _PLAIN)):
        return Name(text)
    raise Refused(f"it refers to {brief(text)}, which no file of weights needs")


def _storage(pid: object) -> Storage:
    good = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
    good = good and isinstance(pid[1], Name) and isinstance(pid[2], str) and _natural(pid[4])
    kind = pid[1].text.removeprefix("torch ") if good else None
    if kind not in _DTYPES:
        raise Refused("a reference that is no storage")
    return Storage(pid[2], _DTYPES[kind], pid[4])


def _tensor(args: tuple) -> TorchTensor:
    good = len(args) == 6 and isinstance(args[0], Storage) and _natural(args[1])
    if not good or not _naturals(args[2]) or not _naturals(args[3]) or len(args[2]) != len(args[3]):
        raise Refused("a tensor with a shape, stride or offset that is none")
    return TorchTensor(*args[:4])


def _call(function: object, args: object) -> object:
    if not isinstance(function, Name) or function.text not in _CALLS or not isinstance(args, tuple):
        raise Refused("a call of something that is no constructor of tensors")
    what = function.text.split(" ")[1]
    if what == "OrderedDict":
        if args:
            raise Refused("an OrderedDict with arguments")
        return {}
    if what == "Size":
        if len(args) != 1 or not _naturals(args[0]):
            raise Refused("a torch.Size of something that is no shape")
        return args[0]
    if what == "_rebuild_parameter":
        if len(args) != 3 or not isinstance(args[0], TorchTensor):
            raise Refused("a parameter that is no tensor")
        return args[0]
    return _tensor(args)


class _Machine:
    """The stack and the memo of the pickle."""

    def __init__(self) -> None:
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def pop(self) -> object:
        if not self.stack or self.stack[-1] is _MARK:
            raise Refused("its stack is empty")
        return self.stack.pop()

    def to_mark(self) -> list:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise Refused("a mark is missing")

    def set_items(self, items: list) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, str) or key in target:
                raise Refused(f"a dict with the key {brief(key)}, no text or there twice")
            target[key] = value

    def append(self, items: list) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            raise Refused("items for something that is no list")
        target.extend(items)

    def remember(self, index: int) -> None:
        top = self.pop()
        self.memo[index] = top
        self.stack.append(top)

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Refused("it recalls what it has not stored")
        self.stack.append(self.memo[index])

    def build(self) -> None:
        """The state of an object: torch notes versions of modules on its dicts."""
        self.pop()
        if not self.stack or not isinstance(self.stack[-1], dict):
            raise Refused("a state for something that has none")

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))


_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _step(m: _Machine, op: str, arg: object) -> None:
    """One opcode; text of any length is bounded by the pickle's own."""
    if op in _VALUES:
        m.stack.append(arg)
    elif op in _CONSTANTS:
        m.stack.append(_CONSTANTS[op])
    elif op in ("BINPUT", "LONG_BINPUT"):
        m.remember(arg)
    elif op in ("BINGET", "LONG_BINGET"):
        m.recall(arg)
    elif op == "MARK":
        m.stack.append(_MARK)
    elif op == "EMPTY_DICT":
        m.stack.append({})
    elif op == "EMPTY_LIST":
        m.stack.append([])
    elif op == "EMPTY_TUPLE":
        m.stack.append(())
    elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
        m.tuple_of(int(op[-1]))
    elif op == "TUPLE":
        m.stack.append(tuple(m.to_mark()))
    elif op == "SETITEMS":
        m.set_items(m.to_mark())
    elif op == "SETITEM":
        value, key = m.pop(), m.pop()
        m.set_items([key, value])
    elif op == "APPENDS":
        m.append(m.to_mark())
    elif op == "APPEND":
        m.append([m.pop()])
    elif op == "GLOBAL":
        m.stack.append(_global(arg))
    elif op == "REDUCE":
        args, function = m.pop(), m.pop()
        m.stack.append(_call(function, args))
    elif op == "BINPERSID":
        m.stack.append(_storage(m.pop()))
    elif op == "BUILD":
        m.build()
    elif op != "PROTO":
        raise Refused(f"the opcode {op}, which torch.save does not write")


def load(data: bytes) -> object:
    """The value of a pickle: dicts, lists, tuples, numbers, texts, Names and tensors."""
    machine = _Machine()
    try:
        for count, (op, arg, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise Refused(f"more than {MAX_OPCODES} opcodes")
            if op.name == "STOP":
                result = machine.pop()
                if machine.stack:
                    raise Refused("values behind its result")
                return result
            _step(machine, op.name, arg)
    except Refused:
        raise
    except (ValueError, OverflowError, IndexError, UnicodeError) as e:
        raise Refused(f"not readable as a pickle ({str(e)[:80]!r})") from e
    raise Refused("it has no end")
