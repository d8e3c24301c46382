"""``python -m llmspell_dist``: the command line."""

from __future__ import annotations

import sys

from llmspell_dist.cli.main import main

sys.exit(main())
