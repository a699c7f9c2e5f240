"""Hints from a noxfile, read as a syntax tree and never executed. Pure."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping

from ponyswarm.errors import LocalError
from ponyswarm.proposing.hints import Factors, Hints, Needs, Read, command_of, pythons_of


def from_noxfile(text: str, read: Read, origin: str = "noxfile.py") -> Hints | None:
    """The first session of a noxfile that runs tests. The file is parsed, never executed."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as fault:
        where = f"{fault.msg}, line {fault.lineno}" if isinstance(fault, SyntaxError) else fault
        raise LocalError(f"{origin} is not valid Python ({where}): mend that line") from fault
    names: dict[str, object] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name):
                names[target.id] = _value(node.value, names)
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            hints = _session(node, names, read, origin)
            if hints is not None and hints.command:
                return hints
    return None


_UNKNOWN = object()


def _value(node: ast.expr | None, names: Mapping[str, object]) -> object:
    """The value of a literal, or of a name that stands for one."""
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNKNOWN)
    if isinstance(node, ast.List | ast.Tuple):
        values: list[object] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                inner = _value(item.value, names)
                values += inner if isinstance(inner, list) else [_UNKNOWN]
            else:
                values.append(_value(item, names))
        return values
    if isinstance(node, ast.JoinedStr):
        parts = [
            str(part.value)
            if isinstance(part, ast.Constant)
            else _value(part.value, names)
            if isinstance(part, ast.FormattedValue)
            else _UNKNOWN
            for part in node.values
        ]
        return "".join(map(str, parts)) if _UNKNOWN not in parts else _UNKNOWN
    if node is not None:
        try:
            value: object = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError):
            return _UNKNOWN
        return value
    return _UNKNOWN


def _strings(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _session(
    node: ast.FunctionDef, names: dict[str, object], read: Read, origin: str
) -> Hints | None:
    pythons: list[str] = []
    parameters: dict[str, list[str]] = {}
    is_session = False
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        called = ast.unparse(call.func if call else decorator).rpartition(".")[2]
        keywords = {k.arg: k.value for k in call.keywords} if call else {}
        if called == "session":
            is_session = True
            pythons = _strings(_value(keywords.get("python"), names))
        elif called == "parametrize" and call and len(call.args) > 1:
            name = _value(call.args[0], names)
            if isinstance(name, str) and "," not in name:
                parameters[name] = _parameter_values(call.args[1], names)
    if not is_session:
        return None
    needs = Needs(read, f"{origin}, session {node.name}")
    factors: Factors = {
        name: dict.fromkeys(values, ()) for name, values in parameters.items() if values
    }
    commands: list[str] = []
    env: dict[str, str] = {}
    for call in (one for one in ast.walk(node) if isinstance(one, ast.Call)):
        method = ast.unparse(call.func)
        if not method.startswith("session."):
            continue
        if method == "session.run":
            words = _strings([_value(argument, names) for argument in call.args])
            commands.append(shlex.join(words))
            given = next((k.value for k in call.keywords if k.arg == "env"), None)
            value = _value(given, names)
            if isinstance(value, dict):
                env |= {str(k): str(v) for k, v in value.items() if isinstance(v, str)}
        elif method == "session.install":
            _installed(call, names, factors, needs)
    return Hints(
        origin=needs.origin,
        pythons=pythons_of(pythons),
        command=command_of(commands),
        requirements=tuple(needs.requirements),
        extras=tuple(needs.extras),
        groups=tuple(needs.groups),
        factors=factors,
        env=env,
        notes=tuple(needs.notes),
    )


def _parameter_values(node: ast.expr, names: Mapping[str, object]) -> list[str]:
    """The values of a parametrize, ``nox.param("4.2", id=…)`` too."""
    if not isinstance(node, ast.List | ast.Tuple):
        return _strings(_value(node, names))
    plain = [
        item.args[0] if isinstance(item, ast.Call) and item.args else item for item in node.elts
    ]
    return [value for item in plain for value in _strings(_value(item, names))]


def _installed(call: ast.Call, names: Mapping[str, object], factors: Factors, needs: Needs) -> None:
    words: list[str] = []
    for argument in call.args:
        inner = argument.value if isinstance(argument, ast.Starred) else argument
        found = _strings(_value(inner, names))
        if found:
            words += found
            continue
        used = {n.id for n in ast.walk(argument) if isinstance(n, ast.Name)} & set(factors)
        for name in used:
            for value in factors[name]:
                text = _value(inner, {**names, name: value})
                if isinstance(text, str):
                    factors[name][value] = (*factors[name][value], text)
        if not used and ast.unparse(inner) != "session.posargs":
            needs.notes.append(f"{needs.origin}: {ast.unparse(argument)!r} is computed: left out")
    needs.arguments(words)
