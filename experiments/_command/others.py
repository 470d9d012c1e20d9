"""How much of the machine other work took while a run lasted."""

import os
import time

import psutil


class Others:
    """Seconds of processors that others used since this was made, a second.

    What the machine did, less what this process and its ended children did: a
    neighbour that starts later counts, one that ended before does not. Time that a
    hypervisor gave to other machines counts too.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._before = _seconds()

    def cores(self) -> float:
        """Their mean number of busy cores up to now."""
        wall = time.perf_counter() - self._since
        return max(0.0, _seconds() - self._before) / max(wall, 1e-9)


def _seconds() -> float:
    times = psutil.cpu_times()._asdict()
    idle = ("idle", "iowait", "guest", "guest_nice")  # guests are in user already
    busy = sum(spent for kind, spent in times.items() if kind not in idle)
    return busy - sum(os.times()[:4])
