# SPDX-License-Identifier: Apache-2.0
"""The declarations that Python uses against those a C compiler sees, and loading of the library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bonsai import _cdef, _lib

HEADER = Path(__file__).resolve().parents[2] / "engine" / "include" / "bonsai.h"
STRUCTS = sorted(
    name
    for name in re.findall(r"^\} (bonsai_\w+);", HEADER.read_text(), re.M)
    if _lib.ffi.typeof(name).kind == "struct"
)


def run_c(folder: Path, body: str) -> str:
    """What a C99 program prints."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source = folder / "main.c"
    includes = '#include <stddef.h>\n#include <stdio.h>\n#include "bonsai.h"\n'
    source.write_text(f"{includes}int main(void) {{\n{body}\nreturn 0;\n}}\n")
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *strict, f"-I{HEADER.parent}", str(source), "-o", str(folder / "main")]
    subprocess.run(command, check=True)
    return subprocess.run([folder / "main"], check=True, capture_output=True, text=True).stdout


def test_every_struct_has_the_offsets_of_c(tmp_path):
    assert len(STRUCTS) >= 8
    expected, body = [], []
    for name in STRUCTS:
        kind = _lib.ffi.typeof(name)
        expected.append(f"{name} {_lib.ffi.sizeof(kind)}")
        body.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for member, field in kind.fields:
            size = _lib.ffi.sizeof(field.type)
            expected.append(f"{name}.{member} {field.offset} {size}")
            body.append(
                f'printf("{name}.{member} %zu %zu\\n", offsetof({name}, {member}), '
                f"sizeof((({name}*)0)->{member}));"
            )
    assert run_c(tmp_path, "\n".join(body)).splitlines() == expected


def test_enums_and_versions_are_those_of_c(tmp_path):
    names = sorted(set(re.findall(r"^    (BONSAI_[A-Z0-9_]+) = ", HEADER.read_text(), re.M)))
    assert "BONSAI_ERR_CANCELLED" in names
    body = "\n".join(f'printf("%d ", (int){name});' for name in names)
    body += 'printf("%d", BONSAI_ABI_VERSION);'
    values = [int(value) for value in run_c(tmp_path, body).split()]
    assert values == [getattr(_lib.lib, name) for name in names] + [_cdef.ABI_VERSION]


def test_declarations_are_those_of_the_header():
    text = HEADER.read_text()
    part = text[text.index("/* cdef begin") : text.index("/* cdef end")]
    assert _cdef.CDEF.strip() == part.replace("BONSAI_API ", "").strip()


def test_library_holds_every_function():
    functions = re.findall(r"^BONSAI_API [\w *]+[ *](bonsai_\w+)\(", HEADER.read_text(), re.M)
    assert len(functions) >= 24
    for name in functions:
        assert getattr(_lib.lib, name)


def import_bonsai(**env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "import bonsai; print(bonsai.__version__)"]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True)


def test_import_names_a_missing_library(tmp_path):
    done = import_bonsai(BONSAI_LIBRARY=str(tmp_path / "none.so"))
    assert done.returncode != 0
    assert "ImportError" in done.stderr and "BONSAI_LIBRARY" in done.stderr


def test_import_refuses_another_abi(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "other.c"
    source.write_text("unsigned bonsai_abi_version(void) { return 999; }\n")
    library = tmp_path / "other.so"
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    done = import_bonsai(BONSAI_LIBRARY=str(library))
    assert done.returncode != 0 and "ABI version 999" in done.stderr
