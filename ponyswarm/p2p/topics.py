"""The names of gossip topics: one of project records, and one for each project."""

from __future__ import annotations

from functools import lru_cache

DIRECTORY = "/ponyswarm/1/directory"
_PROJECT_TOPIC = "/ponyswarm/1/p/"


def project_topic(project: bytes) -> str:
    return _PROJECT_TOPIC + project.hex()


@lru_cache(maxsize=1024)
def topic_project(topic: str) -> bytes | None:
    """The project of a project topic; None for the directory and foreign topics."""
    if not topic.startswith(_PROJECT_TOPIC):
        return None
    try:
        project = bytes.fromhex(topic[len(_PROJECT_TOPIC) :])
    except ValueError:
        return None
    return project if len(project) == 32 else None
