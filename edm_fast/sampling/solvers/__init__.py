"""Solvers, a family in each file: functions of noise levels that make the steps of `edm_fast.sampling.loop`.

To add one, write a file here and its test; nothing else changes. The file has

    def midpoint(levels: Sequence[float], *, some_option: float = 1) -> loop.Solver: ...

    SOLVERS = {"midpoint": midpoint}

levels (N + 1,) fall strictly from the first to the last, which may be 0; the solver's steps end at each of them. A
keyword `order` is the order that `edm_fast.sample` is called with, other keywords are its options by name. Coefficients
are Python floats (or NumPy's float64), computed there and then. Compose steps of `loop.slope`, `loop.data` and
`loop.move`; name only the coefficients that the method has, since their names are the step's structure. Refuse bad
options with UserError. What several families share stands in files that begin with an underscore.

`tests/sampling/test_golden_solvers.py` finds golden runs by the names in SOLVERS.
"""

from edm_fast.sampling.solvers._registry import registry

__all__ = ["registry"]
