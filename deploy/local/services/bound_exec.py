"""Become a command that cannot outlive the interpreter which asked for it.

Run as `python -I -S bound_exec.py PARENT_PID COMMAND...` by child.py, never imported. The
kernel's parent-death signal is armed here and not in a `preexec_fn`, because code run between
fork and exec in a threaded parent can deadlock; it survives the exec, so the pid stays the same.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Arm the parent-death signal and exec the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the signal was armed
        os._exit(1)
    # Python ignores SIGPIPE, and ignored signals are inherited by what it execs.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


main()
