"""Watching: every change of a scope once, in order, over lost connections and restarts."""
