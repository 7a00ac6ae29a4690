"""How a console command ends: exit status and at most one line on stderr, never a traceback.

Owns the meaning of the exit statuses shared by the commands. Knows nothing of what they do. Called
by the `main` of send, tail and verify.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from keyfold.export.errors import Crash, Reject

FAILED = 2  # a Crash, and argparse's own status for wrong arguments
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run(name: str, body: Callable[[], int]) -> int:
    """Run a command's body and return its exit status."""
    try:
        return body()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough. Python would complain once more while it flushes
        # stdout at exit: give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Crash, Reject) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return FAILED
