"""Runnable examples; each asserts what it claims."""
