"""Benchmarks, each against a named peer or limit; see `docs/benchmarks.md`."""
