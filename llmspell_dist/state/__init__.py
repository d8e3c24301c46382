"""Shared state: single values, batches, transactions, the past; over the commit script."""
