# SPDX-License-Identifier: Apache-2.0
"""hub:owner/name: the cache's file, made by bonsai-convert where it is not there yet. The converter
is a stand-in here; tests/convert/test_cache.py has the real one."""

from __future__ import annotations

import pytest

NAME = "hub:some-owner/some.model"
SLOT = "some-owner--some.model"
SCRIPT = """#!/bin/sh
echo "$@" >> "$BONSAI_CACHE/calls"
echo "a line for standard output"
{rest}
"""


@pytest.fixture
def cache(cli):
    """Function: arguments -> result, with a cache folder of its own and a PATH with only `bin`."""
    root = cli.folder / "cache"
    root.mkdir()
    (cli.folder / "bin").mkdir()

    def call(*arguments):
        path = f"{cli.folder / 'bin'}:/usr/bin:/bin"
        return cli(*arguments, env={"BONSAI_CACHE": str(root), "PATH": path})

    call.root = root
    call.bin = cli.folder / "bin"
    return call


def converter(cache, rest):
    script = cache.bin / "bonsai-convert"
    script.write_text(SCRIPT.format(rest=rest))
    script.chmod(0o755)


def place(cache, cli, slot=SLOT):
    model = cache.root / "hub" / slot / "model.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(cli.model.read_bytes())


@pytest.mark.parametrize("name, slot", [
    (NAME, SLOT),
    (NAME + "@v1.0", SLOT + "@v1.0"),
    (NAME + "@refs/pr_1", SLOT + "@refs--pr_1"),
])  # fmt: skip
def test_what_the_cache_has(cache, cli, name, slot):
    place(cache, cli, slot)
    assert cache("info", name).out.splitlines()[0].endswith("model.gguf")
    assert cache("verify", name).code == 0


@pytest.mark.posix
def test_xdg(cache, cli):
    place(cache, cli)
    (cache.root / "bonsai").mkdir()
    (cache.root / "hub").rename(cache.root / "bonsai" / "hub")
    env = {"XDG_CACHE_HOME": str(cache.root), "BONSAI_MODEL": NAME}
    assert cli("info", env=env).code == 0


@pytest.mark.posix
def test_made_by_the_converter(cache, cli):
    slot = f'"$BONSAI_CACHE/hub/{SLOT}"'
    converter(cache, f"mkdir -p {slot} && cp '{cli.model}' {slot}/model.gguf")
    first = cache("info", NAME, "--json")
    assert first.code == 0 and first.out.startswith("{"), "its standard output is not ours"
    assert "a line for standard output" in first.err
    assert cache("info", NAME).code == 0
    assert (cache.root / "calls").read_text() == f"{NAME}\n", "asked once"


@pytest.mark.posix
@pytest.mark.parametrize("rest", ["exit 1", "exit 0"])
def test_a_converter_that_fails(cache, rest):
    converter(cache, rest)
    result = cache("info", NAME)
    assert result.code == 3 and "did not make the model" in result.err


@pytest.mark.posix
def test_without_a_converter(cache):
    result = cache("info", NAME)
    assert result.code == 3
    assert f"`bonsai-convert {NAME}`;" in result.err and "not installed" in result.err


@pytest.mark.parametrize("name", [
    "hub:", "hub:a", "hub:a/", "hub:/b", "hub:a/b/c", "hub:../b", "hub:a/..", "hub:a/b@",
    "hub:a/b@../c", "hub:a/b@c/", "hub:a/b c", "hub:a@b/c", "hub:a/\\b",
])  # fmt: skip
def test_wrong_names(cache, name):
    result = cache("info", name)
    assert result.code == 2 and "expected hub:owner/name" in result.err
