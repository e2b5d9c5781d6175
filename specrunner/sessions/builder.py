"""The process that builds a recipe's checkpoint for a run, guarded as a worker is: it does not outlive its caller.

`python -m specrunner.sessions.builder NAME` does what `python -m specrunner.models.recipes NAME` does.
"""

from __future__ import annotations

import sys

from specrunner.models.recipes import main
from specrunner.sessions.guardian import dismiss_guardian
from specrunner.sessions.worker import open_guarded_channel

if __name__ == "__main__":
    channel, guardian = open_guarded_channel()
    try:
        status = main(sys.argv[1:])
    finally:
        dismiss_guardian(guardian)
    sys.exit(status)
