"""What does not fit into this machine's memory is refused before it is asked for."""

import os

from scotopia.graph.errors import InputError

#: Bytes that a worker takes, at least: one of a sweep has torch in it and 180 MB of its own, one of
#: a proof runs compilers.
BYTES_PER_WORKER = 10**8


def installed() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(what: str, size: int, remedy: str) -> None:
    """Raise InputError if `what` needs more bytes than the machine has: the system would kill."""
    if size > installed():
        raise InputError(
            f"{what}: that needs {size / 1e9:,.1f} GB of memory, and this machine has "
            f"{installed() / 1e9:,.1f}: {remedy}"
        )


def check_worker_count(count: int | None) -> None:
    """Raise InputError if so many processes do not fit; None is as many as cores."""
    if count is not None:
        check_memory(f"workers {count}", count * BYTES_PER_WORKER, "give fewer")
