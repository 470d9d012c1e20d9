"""The resident memory of a process and its peak, as Linux counts them. Needs no JAX."""

import re
from pathlib import Path


def reset_peak() -> int:
    """Set this process's peak to its present size in bytes, and return that."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident()


def peak() -> int:
    """Most bytes that this process had resident since `reset_peak` (VmHWM)."""
    return _status("self", "VmHWM")


def resident(pid: int | str = "self") -> int:
    """Bytes that a process has resident (VmRSS); 0 where it has just ended."""
    return _status(pid, "VmRSS")


def _status(pid: int | str, key: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(rf"{key}:\s+(\d+) kB", text)  # a zombie has none
    return 1024 * int(found[1]) if found else 0
