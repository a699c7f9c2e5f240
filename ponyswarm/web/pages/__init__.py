"""The pages, a module each: one question to the ledger, answered as a frozen value.

The value holds only text, numbers and lists of such, so that a template can show it and
`msgspec` can print it as JSON: a page and its ``.json`` cannot say different things.
"""
