"""Access for tests of routes: whoever comes holds just these grants."""

from __future__ import annotations

from typing import Any


def only(*grants: tuple[str, str]) -> Any:
    """Return an access where everybody has these rights: pairs of pattern and verbs."""
    from llmspell_dist.sidecar.auth.access import Access
    from llmspell_dist.sidecar.auth.grants import Grant, Principal, Verb

    held = [
        Grant(pattern, frozenset(Verb(verb) for verb in verbs.split())) for pattern, verbs in grants
    ]

    class Only(Access):
        """Knows one caller."""

        anybody = Principal("anybody", "anonymous", held)

        def cached(self, *_: object) -> Principal:
            """Return the one caller."""
            return self.anybody

    return Only.open_on_loopback()
