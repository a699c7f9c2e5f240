"""PonySwarm's start-up hook, run by a ``.pth`` line of the job's environment.

It puts the project, as built and installed, before the environment's other packages,
and watches for `unittest.suite` to be imported, to report what a suite runs. Standard
library only, Python 2.7 to 3.14 and PyPy; must never fail or print.
"""

import os
import sys

SITE = "/project/site"


def place_project():
    """Where an installed project stands: after the standard library, before its neighbours."""
    if SITE in sys.path or not os.path.isdir(SITE):
        return
    for index, entry in enumerate(sys.path):
        if entry.endswith(("site-packages", "dist-packages")):
            sys.path.insert(index, SITE)
            break
    else:
        sys.path.append(SITE)


class SuiteFinder(object):
    """Lets the usual finders find `unittest.suite`, and instruments it once it has run."""

    def find_spec(self, name, path=None, target=None):
        if name != "unittest.suite":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            instrument(module)

        try:
            spec.loader.exec_module = exec_module
        except AttributeError:
            pass
        return spec


def instrument(module):
    import _ponyswarm_unittest

    _ponyswarm_unittest.instrument(module)


def watch_unittest():
    if not (os.environ.get("PONYSWARM_REPORT") or os.environ.get("PONYSWARM_REPORT_WORKERS")):
        return
    if "unittest.suite" in sys.modules:
        instrument(sys.modules["unittest.suite"])
    elif sys.version_info[0] >= 3:
        sys.meta_path.insert(0, SuiteFinder())
    else:
        # Python 2 has no specs; its unittest imports in a few milliseconds.
        import unittest.suite

        instrument(unittest.suite)


try:
    place_project()
    watch_unittest()
except Exception:
    # At the start of every Python of the job: an error here would be taken for its own.
    pass
