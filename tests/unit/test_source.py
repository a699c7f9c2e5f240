"""Archives of strangers: sound ones unpack, all others are refused before they cost much."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from told import told

from ponyswarm.errors import LocalError, PeerError
from ponyswarm.exec import source


def tarred(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = to
    return info


def test_an_sdist_gives_its_one_top_folder(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar.gz", ("x-1/a.py", b"a"), ("x-1/b/c.py", b"c"))
    tree = source.unpack(archive, tmp_path / "out")
    assert tree == tmp_path / "out" / "x-1"
    assert (tree / "b" / "c.py").read_bytes() == b"c"


def test_a_zip_unpacks_like_a_tar(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zip_:
        zip_.writestr("x-1/a.py", "a")
        zip_.writestr("x-1/b/c.py", "c")
    tree = source.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tree / "b" / "c.py").read_text() == "c"


def test_links_within_the_tree_are_kept(tmp_path: Path) -> None:
    archive = tarred(
        tmp_path / "a.tar.gz",
        ("x/a", b"a"),
        special("x/b", tarfile.SYMTYPE, "a"),
        special("x/c", tarfile.LNKTYPE, "x/a"),
    )
    tree = source.unpack(archive, tmp_path / "out")
    assert os.readlink(tree / "b") == "a"
    assert (tree / "c").read_bytes() == b"a"


@pytest.mark.parametrize(
    "members",
    [
        [("../a", b"")],
        [("/etc/a", b"")],
        [("x/../../a", b"")],
        [special("x", tarfile.SYMTYPE, "/etc/passwd")],
        [special("x/l", tarfile.SYMTYPE, "../../a")],
        [special("x", tarfile.SYMTYPE, "y"), ("y/a", b""), ("x/b", b"")],
        [special("x", tarfile.LNKTYPE, "../../etc/passwd")],
        [special("x", tarfile.LNKTYPE, "nothing")],
        [special("x", tarfile.SYMTYPE, "y"), special("z", tarfile.LNKTYPE, "x")],
        [special("x", tarfile.CHRTYPE)],
        [special("x", tarfile.FIFOTYPE)],
        [("a", b"1"), ("a", b"2")],
        [("a", b"1"), ("a/b", b"2")],
        [("/".join("a" * 100), b"")],
        [("a" * 1001, b"")],
        [],
    ],
)
def test_what_leaves_the_folder_or_makes_no_sense_is_refused(
    tmp_path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]]
) -> None:
    archive = tarred(tmp_path / "a.tar.gz", *members)
    with pytest.raises(PeerError, match=r"^source"):
        source.unpack(archive, tmp_path / "deep" / "er" / "out")
    assert not (tmp_path / "deep" / "a").exists()


def test_each_refusal_names_what_it_is_about(tmp_path: Path) -> None:
    def unpack(*members: tarfile.TarInfo | tuple[str, bytes]) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        source.unpack(tarred(folder / "a.tar.gz", *members), folder / "out")

    with told("source: a name that leaves the folder: '../a'"):
        unpack(("../a", b""))
    with told("source: a name too long or too deep: 'a/a/…"):
        unpack(("a/" * source.MAX_DEPTH + "a", b""))
    with told("source: a link that leaves the folder: 'a'"):
        unpack(special("a", tarfile.SYMTYPE, "../../b"))
    with told("source: a file below a link: 'c'"):
        unpack(("d/x", b""), special("b", tarfile.SYMTYPE, "d"), ("b/c", b""))
    with told("source: a hard link to nothing: 'none'"):
        unpack(special("a", tarfile.LNKTYPE, "none"))
    with told("source: neither file, folder nor link: 'pipe'"):
        unpack(special("pipe", tarfile.FIFOTYPE))
    with told("source: the archive is empty"):
        unpack()


def test_a_zip_of_what_is_no_file_or_is_packed_strangely(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as zip_:
        pipe = zipfile.ZipInfo("pipe")
        pipe.external_attr = stat.S_IFIFO << 16
        zip_.writestr(pipe, b"")
    with told("source: neither file nor folder: 'pipe'"):
        source.unpack(path, tmp_path / "one")
    with zipfile.ZipFile(path, "w") as zip_:
        zip_.writestr("a", b"a")
    packed = bytearray(path.read_bytes())
    packed[8] = packed[packed.index(b"PK\x01\x02") + 10] = 99  # No method that anybody knows.
    path.write_bytes(packed)
    with told("source: an archive of an unknown kind: …"):
        source.unpack(path, tmp_path / "two")


def test_more_files_than_any_project_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_MEMBERS", 2)
    archive = tarred(tmp_path / "a.tar.gz", ("a", b""), ("b", b""), ("c", b""))
    with told("source: more than 2 files"):
        source.unpack(archive, tmp_path / "out")


def test_bombs_are_refused(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar.gz", ("a", bytes(3 << 20)))
    with told("source: larger than allowed once unpacked"):
        source.unpack(archive, tmp_path / "one", max_bytes=1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as zip_:
        zip_.writestr("a", bytes(3 << 20))
    with told("source: larger than allowed once unpacked"):
        source.unpack(tmp_path / "a.zip", tmp_path / "two", max_bytes=1 << 20)


def test_a_header_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    long_name = special("././@LongLink", b"L")
    long_name.size = 50 << 20
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(long_name, io.BytesIO(bytes(50 << 20)))
    with pytest.raises(PeerError, match="absurd"):
        source.unpack(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x1f\x8b" + b"x" * 50, b"PK\x03\x04" + b"x"])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(PeerError, match=r"^source"):
        source.unpack(tmp_path / "a", tmp_path / "out")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar.gz", ("a", os.urandom(100_000)))
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(PeerError, match=r"^source"):
        source.unpack(archive, tmp_path / "out")


def repository(folder: Path) -> Path:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
        )

    folder.mkdir()
    git("init", "-q")
    (folder / "b.py").write_text("b")
    (folder / "tests").mkdir()
    (folder / "tests" / "a.sh").write_text("a")
    (folder / "tests" / "a.sh").chmod(0o755)
    (folder / "link").symlink_to("b.py")
    (folder / ".gitattributes").write_text("tests export-ignore\n")
    git("add", ".")
    git("commit", "-qm", "one")
    (folder / "untracked").write_text("secret")
    return folder


def test_a_commit_packs_to_the_same_bytes_with_all_that_git_tracks(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r")
    data, commit = source.pack(folder)
    assert len(commit) == 40
    assert source.pack(folder, commit)[0] == data
    (tmp_path / "a.tar.gz").write_bytes(data)
    tree = source.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert sorted(str(p.relative_to(tree)) for p in tree.rglob("*")) == [
        ".gitattributes",
        "b.py",
        "link",
        "tests",
        "tests/a.sh",
    ]
    assert os.access(tree / "tests" / "a.sh", os.X_OK)


def test_an_unknown_commit_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="there is no commit"):
        source.pack(repository(tmp_path / "r"), "no-such-commit")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"PKG-INFO": "Name: a\nVersion: 1\n", "setup.py": "setup(name='b')"}, ("a", "1")),
        ({"pyproject.toml": '[project]\nname = "a"\nversion = "2"\n'}, ("a", "2")),
        ({"pyproject.toml": '[tool.poetry]\nname = "a"\nversion = "3"\n'}, ("a", "3")),
        ({"setup.cfg": "[metadata]\nname = a\nversion = attr: x\n"}, ("a", "")),
        ({"setup.py": "setup(name='a', version=\"4\")"}, ("a", "4")),
        ({"README": ""}, ("", "")),
    ],
)
def test_a_tree_is_named_by_what_is_written_in_it(
    tmp_path: Path, files: dict[str, str], expected: tuple[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    named = source.named(tmp_path)
    assert (named.name, named.version) == expected
