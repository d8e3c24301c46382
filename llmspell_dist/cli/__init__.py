"""The command line, ``llmspell-dist``; the only part that knows the terminal libraries."""
