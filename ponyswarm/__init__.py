"""PonySwarm: volunteers run Python projects' test suites, peer to peer."""

__version__ = "0.1.0"
