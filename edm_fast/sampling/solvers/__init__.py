"""Solvers, a family in each file: functions of noise levels that make the steps of `edm_fast.sampling.loop`.

To add one, write a file here and its test; nothing else changes. The file has

    def midpoint(levels: Sequence[float], *, some_option: float = 1) -> loop.Solver: ...

    SOLVERS = {"midpoint": midpoint}

levels (N + 1,) fall strictly from the first to the last, which may be 0; the solver's steps end at each of them. A
keyword `order` is the order that `edm_fast.sample` is called with, other keywords are its options by name. Coefficients
are Python floats (or NumPy's float64), computed there and then. Compose steps of `loop.slope`, `loop.data` and
`loop.move`; name only the coefficients that the method has, since their names are the step's structure. Refuse bad
options with UserError. What several families share stands in files that begin with an underscore.

Any other solver, such as a learned one, is a JSON file: `sample(net, latents, solver="my.json")`. With m_k = d_k, the
slopes (x - D)/sigma, or m_k = D_k, its short form says x' = a x + h sum_k w_k m_{i-k} of each step i:

    {"levels": [80, 9.7, 1.2, 0.002], "keeps": "slope", "weights": [[-70.3], [-12.75, 4.25], [-2, 1.1, -0.3]]}

levels (N + 1,) fall; "keeps" is "slope" or "data"; "weights" has a list for each step, the newest entry of the history
first, at most as many as there are by then. "a" and "h", lists of N numbers, are ones if left out. The full form has
"steps" in their place, each a list of stages as in `edm_fast.sampling.loop`:

    {"levels": [80, 0.002], "steps": [[{"keeps": "slope", "h": -79.998},
                                       {"keeps": "slope", "sigma": 0.002, "h": -79.998, "weights": [0.5, 0.5]}]]}

A stage has "keeps" (or null for `move`), its coefficients by name, "weights", and "draw" or "rebase" where these count.
The first evaluation of a step is at its level if it has no "sigma", and a slope is (x - D)/sigma if it has none of "p",
"q" and "t". Both forms may have "start", x_0 over the latents, and a "comment". `edm_fast.sampling.save_solver` writes
the steps of any run in the full form.

`tests/sampling/test_golden_solvers.py` finds golden runs by the names in SOLVERS.
"""

from edm_fast.sampling.solvers._registry import registry

__all__ = ["registry"]
