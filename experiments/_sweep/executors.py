"""Where the points of a sweep are computed: here, or by Dask's workers.

    executor:
      kind: serial          # in this process; with a time_limit in one beside it
      kind: dask            # workers on this machine, one a GPU if there are several
      workers: 4            # of them
      address: tls://HOST:8786   # or those of a scheduler that is running
      time_limit: 60        # seconds for a point, which is then killed
      retries: 1            # of a point that raises, or whose process dies
      memory_limit: 1GiB    # for the points that run as one program
      batch: 64             # points in one program, at most
    store: NAME.sqlite      # in the folder of results

Exit code 1: points failed; the same command again tries them again.

A scheduler and workers by hand, the same metalr installed everywhere. A certificate and
key for all of them (`openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=metalr -keyout
key.pem -out cert.pem`), readable by you alone, keep everybody else out:

    K="--tls-ca-file cert.pem --tls-cert cert.pem --tls-key key.pem"
    dask scheduler $K --protocol tls --port 8786 --no-dashboard
    dask worker tls://HOST:8786 $K --nthreads 1 --memory-limit 0 --no-dashboard
    export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=cert.pem
    export DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT=cert.pem
    export DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY=key.pem

An open scheduler (tcp://, without keys) runs, as you, whatever code anybody sends who
can connect to its port: start one only where nobody else can, other users of the
machine included.
"""

# An executor takes jobs from a queue; its caller may add to it while taking outcomes.

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    ByteSize,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
    field_validator,
    model_validator,
)

from experiments._command.config import Model
from experiments._sweep.jobs import Job, Outcome, compute
from experiments._sweep.supervised import Supervised

Queue: TypeAlias = deque[Job]


def _bytes(limit: int | str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(limit)
    except (ValueError, OverflowError):
        return 0


class _Options(Model):
    time_limit: Annotated[float, Field(gt=0)] | None = None  # seconds for a point
    retries: NonNegativeInt = 1  # of a point that raises, or whose worker dies
    memory_limit: PositiveInt | str = "1GiB"  # for the points that run as one program
    batch: PositiveInt = 64  # points in one program, at most

    @field_validator("memory_limit")
    @classmethod
    def _is_a_size(cls, limit: int | str) -> int | str:
        if _bytes(limit) < 1:
            msg = "must be bytes, or such as '2GiB' or '500MB'"
            raise ValueError(msg)
        return limit

    @property
    def memory(self) -> int:
        """The limit in bytes."""
        return _bytes(self.memory_limit)


class Serial(_Options):
    """One point (or batch) after the other.

    In this process; with a time limit in one process beside it, which is killed and
    replaced where a point exceeds the limit.
    """

    kind: Literal["serial"] = "serial"


class Dask(_Options):
    """Dask's workers: a cluster made for the sweep, or the one at `address`.

    Each worker computes in a process beside it. The cluster made here speaks TLS with
    keys of its own; one started by hand does if it is told to.
    """

    kind: Literal["dask"]
    address: str | None = None  # of a running scheduler, e.g. tls://10.0.0.1:8786
    workers: PositiveInt | None = (
        None  # default: one a GPU if there are several, or a core
    )

    @model_validator(mode="after")
    def _is_one_cluster(self) -> "Dask":
        if self.address is not None and self.workers is not None:
            msg = "address and workers exclude each other: start workers there instead"
            raise ValueError(msg)
        return self


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "serial")
    return getattr(value, "kind", None)


Executor = Annotated[
    Annotated[Serial, Tag("serial")] | Annotated[Dask, Tag("dask")],
    Discriminator(
        _kind,
        custom_error_type="executor",
        custom_error_message="must be a mapping with kind: serial or kind: dask",
    ),
]
"""`executor:` of a config; `kind` says which, serial by default."""


def execute(executor: Serial | Dask, jobs: Queue) -> Iterator[Outcome]:
    """Compute all jobs, yielding outcomes as they arrive.

    The queue is looked at again after each outcome: put jobs in to have them (again).

    Raises:
        ConfigError: if the scheduler cannot be reached or is lost, or a worker has
            other sources.
    """
    if isinstance(executor, Serial):
        return _serial(executor, jobs)
    from experiments._sweep import cluster  # Dask takes a second to import

    return cluster.execute(
        executor.address, executor.workers, executor.time_limit, jobs
    )


def _serial(executor: Serial, jobs: Queue) -> Iterator[Outcome]:
    with ExitStack() as stack:
        run: Callable[[Job], Iterator[Outcome]] = compute
        if executor.time_limit is not None:
            run = stack.enter_context(closing(Supervised(executor.time_limit))).compute
        while jobs:
            yield from run(jobs.popleft())
