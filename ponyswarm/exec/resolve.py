"""Resolving: from what a project says it needs to hash-pinned locks, running nothing of it.

A maintainer resolves once per interpreter and platform and announces the locks; a
volunteer whose platform has none resolves as of the announcement's own time limit and
gets the same. Only static metadata counts. Dependencies that only running a build
would tell must be listed by the maintainer, who also names the ones that exist only as
sdists (`sdists`). Called by `executor` and by who announces.
"""

from __future__ import annotations

import ast
import configparser
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ponyswarm import matrix
from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.exec import index, legacy, sdists, source
from ponyswarm.exec.environment import Environments, format_lock, parse_lock
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.sdists import Sdist
from ponyswarm.exec.together import together
from ponyswarm.messages import Cell, Install, Lock, Spec

if TYPE_CHECKING:
    from email.message import Message

RESOLVE_SECONDS = 300.0
MOST_NAMED = 5
DEFAULT_BUILD = ("setuptools>=40.8.0", "wheel")
_PLATFORMS = {
    "linux": "{machine}-unknown-linux-gnu",
    "darwin": "{machine}-apple-darwin",
    "windows": "{machine}-pc-windows-msvc",
}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_NO_WHEEL = re.compile(
    r"Wheels are required for `([^`]+)` because building from source is disabled"
)
# Since this version an sdist's metadata says what is not static in it (PEP 643).
_TELLS_DYNAMIC = Version("2.2")


async def resolve(
    environments: Environments,
    *,
    tree: Path,
    spec: Spec,
    cell: Cell,
    interpreter: Installed,
    resolve_before: int,
    system: str | None = None,
    machine: str | None = None,
) -> Lock:
    """The lock of a cell for this interpreter, on this platform unless another is named.

    ``resolve_before`` is in milliseconds since the epoch. Raises `LocalError` when the
    dependencies cannot be known or do not fit together, `InfraError` without an index.
    """
    system = (system or platform.system()).lower()
    machine = machine or platform.machine()
    wanted = [*matrix.requirements(spec, cell), *project_requirements(tree, spec)]
    name = source.named(tree).name
    builds = build_requirements(tree) if spec.install.project else ()
    with environments.workplace() as folder:
        found: list[Sdist] = []
        for each, version in matrix.source_pins(spec).items():
            sdist = await sdists.fetch(each, version, None, folder / each)
            needs, its_builds = _needs(sdist, spec)
            sdists.write_stand_in(sdist, needs, folder)
            builds = tuple(dict.fromkeys((*builds, *its_builds)))
            found.append(sdist)
            # A stranger may name many large ones: never two on the disk at once.
            await trio.to_thread.run_sync(source.remove, folder / each)
        if builds and legacy.needed(interpreter):
            builds = (*builds, *legacy.BUILD_TOOLS)

        async def pinned(
            requirements: Sequence[str],
            leave_out: str = "",
            stand_ins: Sequence[Sdist] | None = None,
        ) -> str:
            if not requirements:
                return ""
            return await _compile(
                environments,
                requirements,
                leave_out,
                interpreter,
                resolve_before,
                system,
                machine,
                stand_ins,
                folder,
            )

        requirements, build = await together(
            [partial(pinned, wanted, name, found), partial(pinned, builds)]
        )
    return Lock(
        implementation=interpreter.implementation,
        python=interpreter.minor,
        system=system,
        machine=machine,
        factors=cell.factors,
        requirements=requirements,
        build=build,
    )


async def _compile(
    environments: Environments,
    requirements: Sequence[str],
    leave_out: str,
    interpreter: Installed,
    resolve_before: int,
    system: str,
    machine: str,
    stand_ins: Sequence[Sdist] | None,
    stand_ins_folder: Path,
) -> str:
    for text in requirements:
        _checked(text)
    before = datetime.fromtimestamp(resolve_before / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    arguments = [
        *("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-build"),
        *("--generate-hashes", "--no-config", "--exclude-newer", before),
        *_target(interpreter),
    ]
    form = _PLATFORMS.get(system)
    if form is not None:
        target = form.format(machine=_MACHINES.get(machine.lower(), machine.lower()))
        arguments += ["--python-platform", target]
    if leave_out:
        # The project under test must win over a released version of itself.
        arguments += ["--no-emit-package", leave_out]
    with environments.workplace() as folder:
        listing = folder / "requirements.in"
        listing.write_text("".join(f"{text}\n" for text in requirements))
        if stand_ins:
            exact = folder / "exact.txt"
            exact.write_text("".join(f"{each.name}=={each.version}\n" for each in stand_ins))
            arguments += ["--find-links", str(stand_ins_folder), "--constraints", str(exact)]
        result = folder / "lock.txt"
        ended = await environments.uv_run(
            [*arguments, str(listing), "-o", str(result)], RESOLVE_SECONDS
        )
        if not ended.good:
            why = " ".join(ended.output.decode("utf-8", "replace").split())[-1500:]
            if "error sending request" in why or "Failed to fetch" in why:
                raise InfraError(
                    f"the package index does not answer ({why}): check the network, then try again"
                )
            remedy = "" if stand_ins is None else await _without_wheels(why)
            raise LocalError(
                f"{remedy}the dependencies for Python {interpreter.version} do not resolve: {why}"
            )
        text = result.read_text()
    hashes = {each.name: (each.sha256,) for each in stand_ins or ()}
    pins = parse_lock(text)
    return format_lock(tuple(replace(p, hashes=hashes.get(p.name, p.hashes)) for p in pins))


async def _without_wheels(why: str) -> str:
    """What to do about packages without a wheel, where uv's words say that it is this."""
    named: list[str] = []
    for name in sorted(set(_NO_WHEEL.findall(why)))[:MOST_NAMED]:
        match = re.search(rf"\b{re.escape(name)}==(\S+) has no usable wheels", why)
        version = match[1] if match else ""
        if not version:
            with suppress(InfraError, LocalError):
                version = await trio.to_thread.run_sync(  # type: ignore[call-arg]
                    index.latest_sdist, name, abandon_on_cancel=True
                )
        named.append(f'"{name}=={version or "VERSION"}"')
    if not named:
        return ""
    return (
        "nothing is built while resolving: what exists only as an sdist is built in the sandbox "
        f"if [tool.ponyswarm.install] says from_source = [{', '.join(named)}]; "
    )


def _target(interpreter: Installed) -> list[str]:
    if legacy.needed(interpreter):
        return legacy.target(interpreter)
    return ["--python", interpreter.path, "--python-version", interpreter.version]


def project_requirements(tree: Path, spec: Spec) -> tuple[str, ...]:
    """What the project itself needs: static dependencies, chosen extras and groups."""
    project = source.table(source.pyproject(tree), "project")
    groups = [
        requirement
        for group in spec.install.groups
        for requirement in _group(source.table(source.pyproject(tree), "dependency-groups"), group)
    ]
    if not spec.install.project:
        return tuple(groups)
    if project and "dependencies" not in _list(project.get("dynamic")):
        found = [str(text) for text in _list(project.get("dependencies"))]
        found += _static_extras(project, spec.install.extras)
    else:
        found = _elsewhere(tree, spec)
    return (*found, *groups)


def _needs(sdist: Sdist, spec: Spec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What an sdist needs when it runs, and what building it needs."""
    try:
        requires = sdist_requirements(sdist.tree, spec)
        for text in requires:
            _checked(text)
        return requires, build_requirements(sdist.tree)
    except (LocalError, PeerError) as fault:
        raise LocalError(f"the sdist of {sdist.name} {sdist.version}: {fault}") from fault


def sdist_requirements(tree: Path, spec: Spec) -> tuple[str, ...]:
    """What an sdist says a dependency needs; only what was written to be read counts."""
    project = source.table(source.pyproject(tree), "project")
    if project and "dependencies" not in _list(project.get("dynamic")):
        return tuple(str(text) for text in _list(project.get("dependencies")))
    metadata = source.metadata(tree)
    if metadata is not None and _is_static(metadata):
        return tuple(str(line) for line in metadata.get_all("Requires-Dist", []))
    written = _from_setup_cfg(tree, replace(spec, install=Install()))
    if written is None:
        written = _from_setup_py(tree)
    if written is None and not spec.install.requirements:
        raise LocalError(
            "what it needs is computed by its build, which is never run while resolving: list "
            "that under [tool.ponyswarm] as install.requirements"
        )
    return tuple(written or ())


def _is_static(metadata: Message) -> bool:
    try:
        tells = Version(metadata.get("Metadata-Version", "1.0")) >= _TELLS_DYNAMIC
    except InvalidVersion:
        return False
    return tells and "requires-dist" not in {
        text.lower() for text in metadata.get_all("Dynamic", [])
    }


def build_requirements(tree: Path) -> tuple[str, ...]:
    """What building the wheel needs, as pyproject.toml says or by default."""
    system = source.table(source.pyproject(tree), "build-system")
    # An empty list is an answer: a back end within the tree may need nothing.
    stated = system.get("requires", list(DEFAULT_BUILD))
    requires = [str(text) for text in _list(stated)]
    names = {canonicalize_name(_checked(text).name) for text in requires}
    if "setuptools" in names and "wheel" not in names:
        # Before 70.1 setuptools asks for it only while it runs.
        requires.append("wheel")
    return tuple(requires)


def _static_extras(project: dict[str, object], extras: tuple[str, ...]) -> list[str]:
    optional = source.table(project, "optional-dependencies")
    by_name: dict[str, object] = {canonicalize_name(name): v for name, v in optional.items()}
    found: list[str] = []
    for extra in extras:
        if canonicalize_name(extra) not in by_name:
            raise LocalError(f"the project has no extra {extra!r}: correct install.extras")
        found += [str(text) for text in _list(by_name[canonicalize_name(extra)])]
    return _without_self(found, str(project.get("name", "")), by_name)


def _without_self(
    found: list[str], name: str, optional: dict[str, object], depth: int = 0
) -> list[str]:
    """Extras may name the project's other extras: ``all = ["this[a,b]"]``."""
    flat: list[str] = []
    for text in found:
        requirement = _checked(text)
        if canonicalize_name(requirement.name) == canonicalize_name(name) and depth < 10:
            for extra in sorted(requirement.extras):
                more = [str(item) for item in _list(optional.get(canonicalize_name(extra)))]
                flat += _without_self(more, name, optional, depth + 1)
        else:
            flat.append(text)
    return flat


def _group(groups: dict[str, object], name: str, depth: int = 0) -> Iterator[str]:
    by_name = {canonicalize_name(key): value for key, value in groups.items()}
    if canonicalize_name(name) not in by_name or depth > 10:
        raise LocalError(f"pyproject.toml has no dependency group {name!r}: correct install.groups")
    for item in _list(by_name[canonicalize_name(name)]):
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("include-group"), str):
            yield from _group(groups, item["include-group"], depth + 1)


def _elsewhere(tree: Path, spec: Spec) -> list[str]:
    """Dependencies from an sdist's metadata, setup.cfg, or a setup.py that can be read."""
    metadata = source.metadata(tree)
    if metadata is not None:
        dynamic = {text.lower() for text in metadata.get_all("Dynamic", [])}
        if "requires-dist" not in dynamic or spec.install.requirements:
            return _from_metadata(metadata.get_all("Requires-Dist", []), spec.install.extras)
    written = _from_setup_cfg(tree, spec)
    if written is None:
        written = _from_setup_py(tree)
    if written is not None:
        return written
    if spec.install.requirements:
        return []
    raise LocalError(
        "the project's dependencies are not written down but computed by its build, which is "
        "never run while resolving: list them under [tool.ponyswarm] as install.requirements"
    )


def _from_metadata(lines: list[str], extras: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for line in lines:
        requirement = _checked(line)
        marker = requirement.marker
        if marker is None or not re.search(r"\bextra\b", str(marker)):
            found.append(line)
            continue
        for extra in extras:
            # Other variables in the marker stay for uv to judge for the target.
            pattern = rf"extra == ['\"]{re.escape(extra)}['\"]"
            if re.search(pattern, str(marker), re.IGNORECASE):
                rest = re.sub(rf"(\s+and\s+)?{pattern}(\s+and\s+)?", "", str(marker), flags=re.I)
                requirement.marker = None
                found.append(f"{requirement} ; {rest}" if rest.strip("() ") else str(requirement))
                break
    return found


def _from_setup_cfg(tree: Path, spec: Spec) -> list[str] | None:
    text = source.read_text(tree, "setup.cfg")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text or "")
    except configparser.Error:
        return None
    value = parser.get("options", "install_requires", fallback=None)
    if value is None or value.strip().startswith("file:"):
        return None
    found = [line.strip() for line in value.splitlines() if line.strip()]
    for extra in spec.install.extras:
        more = parser.get("options.extras_require", extra, fallback="")
        found += [line.strip() for line in more.splitlines() if line.strip()]
    return found


def _from_setup_py(tree: Path) -> list[str] | None:
    """``install_requires`` of a setup.py when it is a literal, or plainly not there."""
    text = source.read_text(tree, "setup.py")
    if text is None:
        return []
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "setup":
            for keyword in node.keywords:
                if keyword.arg is None:
                    return None
                if keyword.arg == "install_requires":
                    try:
                        return [str(item) for item in ast.literal_eval(keyword.value)]
                    except (ValueError, TypeError):
                        return None
            return []
    return None


def _checked(text: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as fault:
        raise LocalError(
            f"{text!r} is not a requirement ({fault}): write one such as 'django>=4.2'"
        ) from fault
    if requirement.url:
        raise LocalError(
            f"{text!r} is a requirement by address, and only what the package index has can be "
            "locked: name a version instead"
        )
    return requirement


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
