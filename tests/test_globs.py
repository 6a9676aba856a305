from __future__ import annotations

import glob

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.globs import OUR_NAMES, keep_apart, matches, split_pattern

FILES = (
    "a.parquet",
    "b.parquet",
    "a.csv",
    ".hidden.parquet",
    "dt=1/a.parquet",
    "dt=1/b.txt",
    "dt=1/.hidden.parquet",
    "dt=2/deep/a.parquet",
    "dt=2/deep/deeper/a.parquet",
    ".git/a.parquet",
    "dt=1/.git/a.parquet",
    "a.b/c.d",
    "ab/[x].parquet",
    "ab/-.parquet",
    "ab/new\nline.parquet",
)
PATTERNS = (
    "*",
    "*.parquet",
    "?.parquet",
    "[ab].parquet",
    "[!a].parquet",
    "[.*].parquet",
    ".*.parquet",
    "[.]hidden.parquet",
    "**",
    "**/*",
    "**/*.parquet",
    "**/a.parquet",
    "dt=*/*.parquet",
    "dt=*/**",
    "dt=*/**/*.parquet",
    "**/deep/**/a.parquet",
    "dt=2/**/deep/**",
    "a**b/*",
    "a.*/c.d",
    "ab/[[]x].parquet",
    "ab/[*?-].parquet",
    "ab/new*.parquet",
    "dt=1/a.parquet",
    ".git/*",
    "**/.git/*",
    "nothing/*",
    "a.parquet/*",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("globs")
    for file in FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_the_standard_library_finds(folder, pattern):
    """The same files as `glob`, without looking at a folder."""
    found = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - Path.glob matches hidden files
    assert {file for file in FILES if matches(pattern, file)} == {
        file.rstrip("/") for file in found if (folder / file).is_file()
    }


@given(st.text("ab./", max_size=8), st.text("ab./*?", max_size=8))
def test_a_pattern_matches_whole_paths_only(path, pattern):
    """A path matches itself, and no pattern without `**` matches across folders."""
    if "**" not in pattern and matches(pattern, path):
        assert pattern.count("/") == path.count("/")
    assert matches(path, path)


@pytest.mark.parametrize(
    ("pattern", "folder", "rest"),
    [
        ("/data/iris/dt=*/*.parquet", "/data/iris", "dt=*/*.parquet"),
        ("/data/iris/a.parquet", "/data/iris", "a.parquet"),
        ("/data/**/*.parquet", "/data", "**/*.parquet"),
        ("/*.parquet", "/", "*.parquet"),
        ("/a.parquet", "/", "a.parquet"),
        ("data/?.parquet", "data", "?.parquet"),
        ("s3://bucket/in/[ab]/x.parquet", "s3://bucket/in", "[ab]/x.parquet"),
        ("s3://bucket/*.parquet", "s3://bucket", "*.parquet"),
    ],
)
def test_row_identities_hang_on_what_is_below_the_fixed_folder(pattern, folder, rest):
    """The fixed prefix ends before the first wildcard, or before the file's name."""
    assert split_pattern(pattern) == (folder, rest)


@pytest.mark.parametrize(
    ("pattern", "output"),
    [
        ("/data/**/*.parquet", "/data/out"),
        ("/data/**/*.parquet", "/data/out/"),
        ("/data/**", "/data"),
        ("/data/*/results/*", "/data/out"),
        ("/data/out/*", "/data/out"),
        ("/data/*/*", "/data/out"),
        ("/*/*/_SUCCESS", "/data/out"),
        ("/**/*.html", "/data/out"),
        ("file:///data/**", "/data/out"),
        ("/data/**", "file:///data/out"),
        ("s3://bucket/**/*.json", "s3://bucket/out"),
    ],
)
def test_an_output_whose_objects_would_be_read_as_input_is_refused(pattern, output):
    """The message names the output, the object and the pattern."""
    with pytest.raises(
        JobError, match=r"output\.path: .* is inside the input: its .* would match .*; move one of them"
    ):
        keep_apart(pattern, output)


@pytest.mark.parametrize(
    ("pattern", "output"),
    [
        ("{folder}/per cent%/**", "{uri}/per%20cent%25/out"),
        ("{uri}/per%20cent%25/**", "{folder}/per cent%/out"),
        ("{uri}/per%20cent%25/**", "{uri}/per%20cent%25/out"),
        ("{folder}/per cent%/**", "{folder}/link/out"),
        ("{uri}/link/*/*/*.json", "{folder}/per cent%/a/out"),
        ("{folder}/link/**", "{uri}/link/deep/../out"),
    ],
)
def test_an_output_is_inside_its_input_however_both_are_written(tmp_path, pattern, output):
    """As paths or URIs, with percent signs where these have them, and through links."""
    (tmp_path / "per cent%").mkdir()
    (tmp_path / "link").symlink_to("per cent%")
    places = {"folder": tmp_path, "uri": tmp_path.as_uri()}
    with pytest.raises(JobError, match="is inside the input"):
        keep_apart(pattern.format(**places), output.format(**places))


def test_an_output_may_lie_where_a_link_of_its_name_does_not_lead(tmp_path):
    """Names say nothing of where things are; a percent sign in a path or in a bucket is one."""
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "out").symlink_to("../elsewhere")
    keep_apart(f"{tmp_path}/in/**", f"{tmp_path}/in/out")
    keep_apart(f"{tmp_path}/a b/**", f"{tmp_path}/a%20b/out")
    keep_apart("s3://bucket/a b/**", "s3://bucket/a%20b/out")


@pytest.mark.parametrize(
    ("pattern", "output"),
    [
        ("/data/*.parquet", "/data/out"),
        ("/data/iris.parquet", "/data"),
        ("/data/in/**/*.parquet", "/data/out"),
        ("/data/in/**", "/data/in-out"),
        ("/data/**/*.csv", "/data/out"),
        ("/data/dt=*/*.parquet", "/data/out"),
        ("s3://bucket/in/**", "s3://other/in/out"),
    ],
)
def test_an_output_may_lie_beside_its_input(pattern, output):
    """Only an object that would really match is a reason to refuse."""
    keep_apart(pattern, output)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("name", OUR_NAMES)
def test_each_kind_of_object_is_looked_for(name, form):
    """An input pattern that finds just this one is refused too, whatever the results' form."""
    with pytest.raises(JobError):
        keep_apart(f"/data/*/{name.format(form=form)}", "/data/out", form)
