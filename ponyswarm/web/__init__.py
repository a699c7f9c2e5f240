"""The web pages: a read-only local site over one ledger.

A request goes host check → route → `pages` (one question to the ledger, answered as a
frozen value) → a template, or the same value as JSON. Everything a page says is worked out
for the reader who asks, under their policy; nothing is kept but the ledger itself. No page
asks anything of the outside, runs an inline script or sets a cookie. `site` holds what the
pages read, `tail` follows the ledger while others write it, `app` joins the routes, and
`server` listens. The commands ``ponyswarm web`` and ``ponyswarm node --web`` call `server`.
"""
