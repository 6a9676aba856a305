"""A listing as a table: the same files, paths and versions as the listing file by file, sorted, each once."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError, StorageFailed
from pipeline.globs import matches, shared_folder, split_pattern
from pipeline.listing import LISTING, Listed, listing_table, may_hold

FILES = (
    "a.txt",
    ".hidden.txt",
    "dt=1/a.txt",
    "dt=1/b.bin",
    "dt=1/.hidden/a.txt",
    "dt=2/deep/a.txt",
    "dt=2/deep/deeper/a.txt",
    "deep/a.txt",
    "odd/é b%20#?.txt",
    "odd/new\nline.txt",
)
PATTERNS = (
    "*",
    "*.txt",
    "*/*.txt",
    "dt=1/*",
    "dt=*/a.txt",
    "dt=?/deep/*.txt",
    "**",
    "**/*.txt",
    "dt=2/**",
    "dt=2/**/a.txt",
    "**/deep/*",
    "**/.hidden/*",
    "*/deep/**/*.txt",
    "odd/*",
    "a.txt",
    "dt=2/deep/a.txt",
)
PARTS = st.sampled_from(["a", "b", "*", "?", "**", "[ab]", ".a"])
NAMES = st.sampled_from(["a", "b", "ab", ".a"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in put")
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / "dangling.txt").symlink_to("nowhere")
    return folder


def table_of(*patterns, **keys):
    return listing_table(patterns, shared_folder(patterns), **keys)


def looked_up(pattern):
    """List files the slow way: look at each file there is."""
    folder, rest = split_pattern(pattern)
    found = []
    for path in Path(folder).rglob("*"):
        below = str(path.relative_to(folder))
        if path.is_file() and matches(rest, below):
            stat = path.stat()
            found.append(Listed(path.as_uri(), below, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}"))
    return sorted(found)


def rows(table):
    return [Listed(**row) for row in table.to_pylist()]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_listing_is_what_a_look_at_each_file_finds(tree, pattern):
    """URI, path, size and version are the same, and so is the order."""
    assert rows(table_of(f"{tree}/{pattern}")) == looked_up(f"{tree}/{pattern}") != []


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_local_folder_can_be_given_as_a_uri(tree, pattern):
    """It is the same folder."""
    uri = f"{tree.as_uri()}/{pattern}"
    assert rows(table_of(uri)) == rows(table_of(f"{tree}/{pattern}"))


def test_several_patterns_share_a_folder_and_each_file_is_there_once(tree):
    """The path of a file is what lies below the folder that all patterns are in."""
    found = table_of(f"{tree}/dt=2/deep/a.txt", f"{tree}/dt=2/**/*.txt", f"{tree}/dt=1/*.bin")
    assert found.schema == LISTING
    assert found["path"].to_pylist() == ["dt=1/b.bin", "dt=2/deep/a.txt", "dt=2/deep/deeper/a.txt"]
    assert found["uri"].to_pylist() == [(tree / path).as_uri() for path in found["path"].to_pylist()]


@given(st.lists(PARTS, min_size=1, max_size=4), st.lists(NAMES, min_size=1, max_size=4), NAMES)
def test_no_folder_is_passed_over_that_holds_a_match(pattern, folder, name):
    """A file matches only if every folder above it may hold one."""
    if matches("/".join(pattern), "/".join([*folder, name])):
        for depth in range(1, len(folder) + 1):
            assert may_hold("/".join(pattern), "/".join(folder[:depth]))


def test_folders_that_cannot_hold_a_match_are_passed_over():
    """Too deep, or of another name."""
    assert not may_hold("*.txt", "a")
    assert not may_hold("dt=1/*.txt", "dt=2")
    assert not may_hold("dt=1/**", "dt=2/a")
    assert not may_hold("*/a.txt", "a/b")
    assert may_hold("dt=1/**", "dt=1/a")


def test_a_pattern_that_matches_nothing_is_named(tree):
    """Unless files may be gone, because they were planned before."""
    with pytest.raises(JobError, match=r"none\*.txt matches no file"):
        table_of(f"{tree}/none*.txt")
    with pytest.raises(JobError, match="is a folder; name the files in it"):
        table_of(f"{tree}/deep")
    with pytest.raises(JobError, match="does not exist"):
        table_of(f"{tree}/dt=1/gone.txt")
    assert table_of(f"{tree}/none*.txt", may_be_gone=True).equals(pa.Table.from_batches([], LISTING))


def test_a_name_that_is_not_utf8_is_an_error_only_where_it_matches(tmp_path):
    """Arrow has no other text; other files beside it may have any names."""
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / os.fsdecode(b"caf\xe9.bin")).write_text("x")
    assert table_of(f"{tmp_path}/*.txt").num_rows == 1
    with pytest.raises(JobError, match=r"is not UTF-8: b'caf\\xe9\.bin'; rename it"):
        table_of(f"{tmp_path}/*")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(JobError, match=r"is not UTF-8: b'caf\\xe9'; rename it"):
        table_of(f"{tmp_path}/*/*.txt")


def test_storage_that_cannot_be_listed_is_named():
    """The line says what could not be listed, and why."""
    with pytest.raises(StorageFailed, match=r"cannot list nosuch://bucket/\*"):
        table_of("nosuch://bucket/*")


def test_the_fixed_part_of_a_pattern_is_not_in_the_path(tree):
    """Moving the input as a whole keeps the names of its rows."""
    pattern = f"{tree}/dt=2/*/a.txt"
    assert split_pattern(pattern)[0] == f"{tree}/dt=2"
    assert table_of(pattern)["path"].to_pylist() == ["deep/a.txt"]


def test_a_link_that_turns_back_is_not_followed(tmp_path):
    """To its own folder, or one above it: their files are there already. Links to elsewhere are followed."""
    for name in ("in/a/x", "in/b/x", "elsewhere/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name, target in {
        "in/a/here": ".",
        "in/a/up": "..",
        "in/root": str(tmp_path),
        "in/beside": "b",
        "in/out": "../elsewhere",
    }.items():
        (tmp_path / name).symlink_to(target)
    assert table_of(f"{tmp_path}/in/**/x")["path"].to_pylist() == ["a/x", "b/x", "beside/x", "out/x"]
    assert table_of(f"{tmp_path}/in/*/x")["path"].to_pylist() == ["a/x", "b/x", "beside/x", "out/x"]


def test_a_pattern_may_begin_at_a_link(tmp_path):
    """What the job names is what is meant, wherever it leads."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "x").write_text("x")
    (tmp_path / "in" / "deep" / "up").symlink_to("..")
    assert table_of(f"{tmp_path}/in/deep/up/**/x")["path"].to_pylist() == ["deep/x"]
