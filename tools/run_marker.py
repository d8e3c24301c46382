"""Run the tests of one category, and be honest when there are none.

pytest ends with 5 when a marker selects nothing. A category of the plan that has no tests yet is no
failure, but it is no success either: this says so in plain words and ends with 0. Whatever else
pytest ends with stays as it is.
"""

from __future__ import annotations

import subprocess
import sys

NO_TESTS_COLLECTED = 5


def main() -> int:
    """Run pytest with ``-m MARKER`` and the other arguments."""
    if len(sys.argv) < 2:
        print("usage: run_marker.py MARKER [pytest arguments]", file=sys.stderr)
        return 2
    marker, *rest = sys.argv[1:]
    # The console script, not `python -m`: that would put the checkout before the installed wheel.
    code = subprocess.run(["pytest", "-m", marker, *rest], check=False).returncode
    if code == NO_TESTS_COLLECTED:
        print(f"\nno tests carry marker {marker} yet: nothing was tested")
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
