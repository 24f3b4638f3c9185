# SPDX-License-Identifier: Apache-2.0
"""Embedding the C library: the example of the header, find_package and pkg-config."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "engine" / "include" / "bonsai.h"


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(build_dir: Path, tmp_path_factory) -> Path:
    """The built library, installed and then moved: nothing in it may know its first place."""
    first = tmp_path_factory.mktemp("install") / "first"
    run("cmake", "--install", build_dir, "--prefix", first)
    return first.rename(first.with_name("moved"))


@pytest.fixture
def model(converted) -> Path:
    return converted("tiny", weights="ternary")


def library_folder(prefix: Path) -> Path:
    return next(prefix.rglob("libbonsai.*")).parent


def pkg_config_flags(prefix: Path) -> list[str]:
    """As pkg-config prints them; read by hand where it is not installed."""
    folder = library_folder(prefix) / "pkgconfig"
    if shutil.which("pkg-config"):
        env = os.environ | {"PKG_CONFIG_PATH": str(folder)}
        return run("pkg-config", "--cflags", "--libs", "bonsai", env=env).split()
    values = {"pcfiledir": str(folder)}
    for line in (folder / "bonsai.pc").read_text().splitlines():
        match = re.match(r"(\w+)(=|: )(.*)", line)
        if match:
            values[match[1]] = re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], match[3])
    return f"{values['Cflags']} {values['Libs']}".split()


def compile_c(source: Path, prefix: Path, program: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    rpath = f"-Wl,-rpath,{library_folder(prefix)}"
    run(compiler, *strict, source, *pkg_config_flags(prefix), rpath, "-o", program)


def header_example() -> str:
    """The indented code in the opening comment."""
    comment = HEADER.read_text().split("*/")[0]
    lines = re.findall(r"^ \*(?:     (.*))?$", comment, re.M)
    return "\n".join(lines).strip()


def test_header_example_runs(installed, model, tmp_path):
    example = header_example()
    assert "bonsai_open" in example and "bonsai_close" in example
    # A small picture; otherwise the text is taken as it stands.
    example = example.replace(
        "params.seed = 42;", "params.seed = 42;\nparams.width = params.height = 64;"
    )
    source = tmp_path / "example.c"
    source.write_text(
        f'#include <stdio.h>\n#include "bonsai.h"\nint main(void) {{\n{example}\nreturn 0;\n}}\n'
    )
    compile_c(source, installed, tmp_path / "example")
    missing = subprocess.run(tmp_path / "example", cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 1 and "model.gguf" in missing.stderr
    shutil.copy(model, tmp_path / "model.gguf")
    run(tmp_path / "example", cwd=tmp_path)
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (64, 64)
        assert "seed: 42\n" in image.info["bonsai"]


def test_find_package(installed, tmp_path):
    build = tmp_path / "build"
    run("cmake", "-S", ROOT / "examples", "-B", build, f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", build)
    done = subprocess.run([build / "generate", "none.gguf", "x", "y.png"], capture_output=True)
    assert done.returncode == 1 and b"none.gguf" in done.stderr


def test_add_subdirectory(tmp_path):
    """The target has the name of find_package and brings the header; only configured, not built."""
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.20)
project(embedder LANGUAGES C CXX)
add_subdirectory({ROOT.as_posix()} bonsai EXCLUDE_FROM_ALL)
add_executable(generate {(ROOT / "examples" / "generate.c").as_posix()})
target_link_libraries(generate PRIVATE bonsai::bonsai)
"""
    )
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, "-G", "Ninja")
    commands = run("ninja", "-C", build, "-t", "commands", "generate")
    assert f"-I{HEADER.parent}" in commands


def test_header_is_cplusplus_too(tmp_path):
    source = tmp_path / "main.cpp"
    source.write_text('#include "bonsai.h"\nint main() { return bonsai_generate == nullptr; }\n')
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    run(compiler, "-std=c++17", "-Wall", "-Wextra", f"-I{HEADER.parent}", "-fsyntax-only", source)


def test_installed_program_finds_an_installed_model(installed, model, tmp_path):
    share = installed / "share" / "bonsai"
    shutil.copy(model, share / "model.gguf")
    env = {k: v for k, v in os.environ.items() if k != "BONSAI_MODEL"}
    program = installed / "bin" / "bonsai-cli"
    try:
        out = run(program, "info", env=env)
    finally:
        (share / "model.gguf").unlink()
    assert "model.gguf" in out.splitlines()[0]  # goes before the demo model
    assert "seedling-ternary.gguf" in run(program, "info", env=env).splitlines()[0]


def test_library_shows_only_its_functions(installed):
    if shutil.which("nm") is None or not (library_folder(installed) / "libbonsai.so").exists():
        pytest.skip("no nm or no ELF library")
    symbols = run("nm", "-D", "--defined-only", library_folder(installed) / "libbonsai.so")
    names = [line.split()[-1].split("@")[0] for line in symbols.splitlines()]
    foreign = [name for name in names if not name.startswith("bonsai_")]
    assert len(names) >= 24 and not foreign
