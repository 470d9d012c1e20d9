"""What a check found, and how sure it is."""

from typing import Any, Literal, NamedTuple, TypeAlias

Verdict: TypeAlias = Literal["certified", "refuted", "undecided"]
Method: TypeAlias = Literal["spectral", "polynomial", "interval", "none"]


class Report(NamedTuple):
    """The verdict on `L'' ≥ 0`.

    Attributes:
        verdict: "certified": proved on the whole interval. "refuted": proved not to be
            convex. "undecided": neither; `reason` says how far it got.
        witness: where `L'' < 0` (refuted only), a float in the interval; of the
            structure of `low` where that is not a scalar. A `Fraction` where no float
            near enough to the true point exists.
        reason: one sentence on how the verdict was reached, or why there is none.
        method: "spectral" (gradient descent on a convex quadratic, recognized on the
            traced programs), "polynomial" (exact rational arithmetic), "interval".
        curvature: at the witness: L'' itself (polynomial) or a proved upper bound of it
            (interval); always negative.
        direction: with several hyperparameters, the direction of negative curvature,
            of the structure of `low`; `curvature` is vᵀHv along it.
        chord: where a kink refutes: the two points whose chord passes below the
            value at the witness, their midpoint. None where L'' < 0 does.
        strict: whether L is strictly convex, where that is known.
        every_steps: the proof holds for every number of steps T, and every interval.
        least: proved lower bound of L'' over the interval (interval method, certified).
        smallest: smallest L'' that the search saw, and where; not proved.
        proved: share of the interval on which L'' ≥ 0 was proved.
        pending: parts of the interval that were left undecided.
        boxes: boxes evaluated.
    """

    verdict: Verdict
    witness: Any
    reason: str
    method: Method
    curvature: float | None = None
    direction: Any = None
    chord: tuple[float, float] | None = None
    strict: bool | None = None
    every_steps: bool = False
    least: float | None = None
    smallest: tuple[float, float] | None = None
    proved: float = 0.0
    pending: tuple[Any, ...] = ()
    boxes: int = 0
