"""``docs/ponyswarm-toml.md`` tells every key of [tool.ponyswarm], and its example holds."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from ponyswarm.errors import LocalError
from ponyswarm.messages import RESULTS_VARIABLE, FileTemplate, Install, Spec
from ponyswarm.spec import from_pyproject

PAGE = (Path(__file__).parent.parent.parent / "docs" / "ponyswarm-toml.md").read_text("utf-8")


def test_every_key_is_on_the_page_and_no_other():
    rows = set(re.findall(r"(?m)^\| `(\w+)` \|", PAGE))
    keys = {field.name for kind in (Spec, Install) for field in fields(kind)} | {"report"}
    assert rows == keys
    for field in fields(FileTemplate):
        assert f"`{field.name}`" in PAGE


def test_the_example_of_the_page_is_sound():
    (example,) = re.findall(r"(?s)```toml\n(.*?)```", PAGE)
    spec = from_pyproject(example)
    assert spec.files[0].path == "ci_settings.py"
    assert spec.install.extras == ("test",)


def test_a_report_is_what_the_command_finds_in_its_environment():
    text = '[tool.ponyswarm]\npython = "3.12"\nrunner = "command"\ncommand = "make check"\n'
    spec = from_pyproject(text + 'report = "out/*.xml"\n')
    assert spec.report == spec.env[RESULTS_VARIABLE] == "out/*.xml"
    assert from_pyproject(text).report == ""


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('report = "a.xml"', "only runner = 'command' reads a report"),
        ('runner = "command"\ncommand = "x"\nreport = "../a.xml"', "leaves the source tree"),
        ('runner = "command"\ncommand = "x"\nreport = 1', "expected str, got int"),
        ('runner = "command"', "needs a command"),
        ('repotr = "a"', "did you mean 'report'"),
    ],
)
def test_a_wrong_report_is_refused_with_a_remedy(lines, said):
    with pytest.raises(LocalError, match=said):
        from_pyproject(f'[tool.ponyswarm]\npython = "3.12"\n{lines}\n')
