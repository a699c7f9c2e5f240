"""docs/howto-services.md: its examples are read by the program, and it leaves nothing out."""

from __future__ import annotations

import re
from pathlib import Path

from ponyswarm import config, spec
from ponyswarm.exec import provisioning
from ponyswarm.exec.services import SERVICES

PAGE = (Path(__file__).parents[2] / "docs" / "howto-services.md").read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_its_settings_can_be_used() -> None:
    offered = [name for text in blocks("ini") for name in config.parse(text).services]
    assert set(offered) <= set(SERVICES)
    assert len(blocks("ini")) == 3


def test_its_pyproject_can_be_used() -> None:
    (text,) = blocks("toml")
    read = spec.from_pyproject(text)
    provisioning.check_placeholders(read)
    assert len(read.services) == 3


def test_every_service_and_every_placeholder_is_in_it() -> None:
    for name in SERVICES:
        assert f"`{name}`" in PAGE
    for field in provisioning.FIELDS:
        assert f"{{NAME.{field}}}" in PAGE
