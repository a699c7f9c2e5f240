"""A swarm on a virtual clock: what is real in it, and what is not.

Real: every node's protocol, scheduling, sync and SQLite ledger, the entries with their
signatures, the verdicts. Not real: sockets, clocks and the running of tests. One heap of
events and one random source; the same seed gives the same history. The tests in
``tests/sim`` and ``bench/swarm.py`` use it.

Two short cuts make a thousand nodes possible, and only those. A gossiped entry's signature is
checked once and the decoded message handed to all who hear it (entries that come by sync are
checked by each node). And a large world keeps ledgers in memory, where a node that dies and
comes back finds its own again; it signs without a journal, whose crashes are tested elsewhere.
"""
