"""Open files: each connection is one, and a process begins with as few as 256 of them."""

import contextlib
import resource

WANTED = 16384


def allow_many_files() -> None:
    """The process may have as many open files as are wanted, or as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit that it does not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
