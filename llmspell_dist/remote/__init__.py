"""The same surface as the library, over HTTP: `llmspell_dist.connect("http://…")` returns it.

`transport` carries requests to a sidecar, `client` is what `connect` returns, and each service has
a module of its own. Needs the extra ``remote``.
"""
