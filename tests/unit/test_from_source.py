"""What is taken as an sdist is said exactly, read without being run, and put nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from told import told

from ponyswarm import codec
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.exec.resolve import sdist_requirements
from ponyswarm.exec.sdists import place
from ponyswarm.matrix import source_pins
from ponyswarm.messages import Install, Spec
from ponyswarm.spec import from_pyproject

TABLE = '[tool.ponyswarm]\npython = "3.12"\n[tool.ponyswarm.install]\n'


def test_a_spec_names_them_with_their_versions() -> None:
    spec = from_pyproject(TABLE + 'from_source = ["Doc_Opt == 0.6.2", "b==1.0"]\n')
    assert source_pins(spec) == {"doc-opt": "0.6.2", "b": "1.0"}
    assert source_pins(from_pyproject(TABLE + 'from_source = "b==1"\n')) == {"b": "1"}
    assert source_pins(from_pyproject(TABLE)) == {}


@pytest.mark.parametrize(
    "text", ["docopt", "docopt>=1", "docopt==1.*", "a[b]==1", "a==1 ; x", "=="]
)
def test_anything_but_one_exact_version_is_refused_with_key_and_remedy(text: str) -> None:
    with pytest.raises(LocalError, match=r"install\] from_source: .*'docopt==0.6.2'"):
        from_pyproject(TABLE + f'from_source = ["{text}"]\n')


def test_two_versions_of_one_are_refused() -> None:
    with pytest.raises(LocalError, match="from_source: a is there twice"):
        from_pyproject(TABLE + 'from_source = ["a==1", "A==2"]\n')


def test_a_spec_without_any_is_written_as_before_there_were_any() -> None:
    assert list(codec.unpack(codec.pack(Install()))) == [  # type: ignore[call-overload]
        "requirements",
        "extras",
        "groups",
        "project",
    ]
    install = Install(from_source=("a==1",))
    assert codec.convert(codec.unpack(codec.pack(install)), Install, "bad") == install


SETUP = "from setuptools import setup\nsetup(install_requires={needs})\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pyproject.toml": '[project]\nname = "x"\ndependencies = ["a"]\n'}, ("a",)),
        ({"PKG-INFO": "Metadata-Version: 2.2\nRequires-Dist: a>1\n"}, ("a>1",)),
        # Before 2.2 metadata did not hold what setup.py says.
        ({"PKG-INFO": "Metadata-Version: 1.1\n", "setup.py": SETUP.format(needs=["a"])}, ("a",)),
        ({"PKG-INFO": "Metadata-Version: ?\n", "setup.py": SETUP.format(needs=["a"])}, ("a",)),
        ({"setup.cfg": "[options]\ninstall_requires = a\n"}, ("a",)),
    ],
)
def test_what_an_sdist_needs_is_read(
    tmp_path: Path, files: dict[str, str], expected: tuple[str, ...]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert sdist_requirements(tmp_path, Spec(python=("3.12",))) == expected


def test_needs_that_are_computed_are_the_maintainers_to_list(tmp_path: Path) -> None:
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.2\nDynamic: Requires-Dist\n")
    (tmp_path / "setup.py").write_text(SETUP.format(needs="compute()"))
    with told(
        "what it needs is computed by its build, which is never run while resolving: list that "
        "under [tool.ponyswarm] as install.requirements"
    ):
        sdist_requirements(tmp_path, Spec(python=("3.12",)))
    listed = Spec(python=("3.12",), install=Install(requirements=("a",)))
    assert sdist_requirements(tmp_path, listed) == ()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    folder = tmp_path / "environment"
    (folder / "lib" / "python3.12" / "site-packages" / "shared").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to("/bin/false")
    return folder


def built(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / "built" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "built" / name).write_text("#!/opt/python\nnew\n")
    return folder / "built"


def test_what_was_built_joins_what_is_there(tmp_path: Path, environment: Path) -> None:
    packages = environment / "lib" / "python3.12" / "site-packages"
    (packages / "shared" / "old.py").write_text("")
    place(built(tmp_path, "shared/new.py", "shared/__pycache__/new.pyc", "bin/run"), environment)
    assert sorted(path.name for path in (packages / "shared").iterdir()) == ["new.py", "old.py"]
    assert (environment / "bin" / "run").read_text() == "#!/env/bin/python\nnew\n"


@pytest.mark.parametrize("name", ["bin/python", "_ponyswarm.pth", "_ponyswarm_site/x", "shared"])
def test_what_would_take_another_place_is_refused(
    tmp_path: Path, environment: Path, name: str
) -> None:
    with pytest.raises(PeerError, match="its place is taken"):
        place(built(tmp_path, name), environment)


def test_a_link_is_never_followed_nor_placed(tmp_path: Path, environment: Path) -> None:
    folder = built(tmp_path, "fine.py")
    (folder / "secret.py").symlink_to("/etc/hostname")
    with pytest.raises(PeerError, match="neither file nor folder"):
        place(folder, environment)
