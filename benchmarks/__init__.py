"""Side-by-side benchmarks: this library and its peers in one run, against the targets.

``python -m benchmarks`` measures every row of ``targets.toml`` in interleaved rounds, prints a
table and writes ``build/bench.json``, the raw samples beside it and a header with all versions.
"""
