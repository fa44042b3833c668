"""Solvers as JSON files: what is read and written, and every fault of a file in one line."""

import json
import math
import re

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import (
    Guidance,
    StackedRandomGenerator,
    ablation_sampler,
    edm_sampler,
    load_solver,
    run,
    sample,
    save_solver,
    solvers,
)
from edm_fast.sampling.solvers import registry
from helpers.analytic_denoisers import Gauss
from helpers.convergence import gauss, latents

LEVELS = [80.0, 10.0, 1.0, 0.1]


def written(folder, document):
    path = folder / "solver.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def noise():
    return StackedRandomGenerator("cpu", range(9)).randn_like


@pytest.mark.parametrize("name", [*sorted(registry()), edm_sampler, ablation_sampler])
def test_every_solver_survives_a_file(name, tmp_path):
    if callable(name):
        solver = name.solver(gauss(), None, num_steps=5, S_churn=3, S_min=0.1, S_max=10)
    else:
        solver = sample.solver(gauss(), None, solver=name, num_steps=5)
    save_solver(solver, tmp_path / "a.json")
    again = load_solver(tmp_path / "a.json")
    assert again.levels == [*solver.levels] and again.evaluations == solver.evaluations
    want = run(gauss(), latents(), solver, None, noise())
    assert torch.equal(run(gauss(), latents(), again, None, noise()), want)
    save_solver(again, tmp_path / "b.json")
    assert load_solver(tmp_path / "b.json") == again


def test_short_forms(tmp_path):
    rows = [[-70.0], [-13.5, 4.5], [-1.35, 0.45]]  # Adams-Bashforth of even steps
    slopes = written(tmp_path, {"levels": LEVELS, "keeps": "slope", "weights": rows, "comment": "iPNDM-2"})
    want = sample(gauss(), latents(), solver="ipndm", order=2, levels=LEVELS)
    torch.testing.assert_close(sample(gauss(), latents(), solver=str(slopes)), want, rtol=1e-14, atol=1e-14)
    euler = {"levels": LEVELS, "keeps": "data", "weights": [[1], [1], [1]], "a": [1 / 8, 0.1, 0.1]}
    euler["h"] = [1 - a for a in euler["a"]]
    found = sample(gauss(), latents(), solver=written(tmp_path, euler))
    torch.testing.assert_close(found, sample(gauss(), latents(), solver="euler", levels=LEVELS), rtol=1e-13, atol=1e-14)


def test_full_form(tmp_path):
    def heun(hi, lo):
        h = lo - hi
        return [{"keeps": "slope", "h": h}, {"keeps": "slope", "sigma": lo, "h": h, "weights": [0.5, 0.5]}]

    path = written(tmp_path, {"levels": LEVELS, "steps": [heun(*pair) for pair in zip(LEVELS, LEVELS[1:])]})
    other = Gauss(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 0.9)
    for guidance in (None, Guidance(2, other, (0.5, 50))):
        found, want = (
            sample(gauss(), latents(), guidance=guidance, **s) for s in ({"solver": path}, {"levels": LEVELS})
        )
        assert torch.equal(found, want)


def test_the_examples_of_the_documentation(tmp_path):
    examples = re.findall(r'\{"levels": .*?\]\}(?=\n)', solvers.__doc__, re.DOTALL)
    found = [load_solver(written(tmp_path, example)) for example in examples]
    assert [solver.evaluations for solver in found] == [3, 2]
    levels = found[1].levels
    heun = sample.solver(gauss(), None, levels=levels)
    assert torch.equal(run(gauss(), latents(), found[1]), run(gauss(), latents(), heun))
    for solver in found:  # where D is constant, x - D is in proportion to sigma
        flat = Gauss(torch.full([1, 1, 1, 1], 0.3, dtype=torch.float64), 0)
        x = run(flat, latents(), solver) - 0.3
        want = (latents() * 80 - 0.3) * solver.levels[-1] / 80
        assert (x - want).abs().max() < 3e-3


def short(**changes):
    return {"levels": LEVELS, "keeps": "slope", "weights": [[-70], [-9], [-0.9]], **changes}


def full(*stages):
    return {"levels": [9.0, 1.0], "steps": [list(stages)]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", r"it is \[\]; expected an object"),
        ('{"levels": [1], "levels": [2]}', 'the key "levels" occurs twice'),
        ({"levels": LEVELS}, "neither weights nor steps"),
        (short(weigths=[]), 'it has the key "weigths" .near names: weights.; expected levels'),
        (short(steps=[]), 'it has the key "steps"'),
        (short(keeps="noise"), 'keeps is "noise"; expected "slope" or "data"'),
        (short(levels=None), "levels is null; expected a list of numbers"),
        (short(levels=[80]), "levels has 1 numbers; expected 2 to"),
        (short(levels=[80, 10, 0.1, 1]), "levels 2 and 3 are 0.1 and 1; expected falling levels"),
        (short(levels=[80, 10, 10, 1]), "levels 1 and 2 are 10 and 10"),
        (short(levels=[80, 10, 0, 0]), "levels 2 and 3 are 0 and 0|at noise level 0"),
        (short(levels=[80, 10, 1, -1]), "levels 2 and 3 are 1 and -1"),
        (short(levels=[80, "10", 1, 0]), r'levels\[1\] is "10"; expected a finite number'),
        (short(levels=[80, math.nan, 1, 0]), r"levels\[1\] is NaN"),
        (short(levels=[10**400, 1, 0.5, 0]), r"levels\[0\] is 1000.*\.\.\.; expected a finite"),
        (short(levels=[80, True, 1, 0]), r"levels\[1\] is true"),
        (short(weights=[[-70], [-9]]), "weights has 2 entries; expected 3 lists, one for each step"),
        (
            short(weights=[[-70], [-9, 1, 2], [-0.9]]),
            r"weights\[1\] has 3 numbers; expected 1 to 2, the history of step 1",
        ),
        (short(weights=[[-70], [], [-0.9]]), r"weights\[1\] has 0 numbers"),
        (short(weights=[[-70], [-9, math.inf], [-0.9]]), r"weights\[1\]\[1\] is Infinity"),
        (short(a=[1, 1]), "a has 2 entries; expected 3 numbers"),
        (short(start="x"), 'start is "x"; expected a finite number'),
        ({"levels": [9, 1], "steps": [[], []]}, "steps has 2 entries; expected 1 lists of stages"),
        (full(), r"steps\[0\] is empty"),
        (full(3), r"steps\[0\]\[0\] is 3; expected an object"),
        (full({}), r'steps\[0\]\[0\].keeps is null; expected "slope", "data", "state" or null'),
        (full({"keeps": []}), r"keeps is \[\]; expected"),
        (full({"keeps": "slope", "b": 2}), r'steps\[0\]\[0\] has the key "b"; expected keeps, weights'),
        (full({"keeps": "data", "t": 2}), 'has the key "t"'),
        (full({"keeps": None, "sigma": 2}), 'has the key "sigma"'),
        (full({"keeps": "slope", "t": 0}), "divides by 0"),
        (full({"keeps": "slope", "sigma": -1}), "at noise level -1.0; expected a positive number"),
        (full({"keeps": "data"}, {"keeps": "data"}), r"steps\[0\]\[1\] has no sigma"),
        (full({"keeps": "data", "weights": [1, 2]}), r"steps\[0\]\[0\] has 2 weights; expected at most 1"),
        (full({"keeps": None, "weights": [1]}), "has 1 weights; expected at most 0"),
        (full({"keeps": "data", "draw": 0}), "draw is 0; expected a number from 0 to 99, and c"),
        (full({"keeps": "data", "c": 1, "draw": 1.0}), "draw is 1.0"),
        (full({"keeps": "data", "rebase": True}), "rebase is true; expected true or false, and true only where"),
    ],
)
def test_faults(document, words, tmp_path):
    path = written(tmp_path, document)
    with pytest.raises(UserError, match=f"^{path} is no solver: .*({words})") as caught:
        sample(gauss(), latents(), solver=path)
    assert "\n" not in str(caught.value)


def test_what_no_file_holds(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        sample(gauss(), latents(), solver=tmp_path / "none.json")
    with pytest.raises(UserError, match="dynamic thresholding"):
        save_solver(sample.solver(gauss(), None, solver="dpmpp", dynamic_thresholding=True), tmp_path / "a.json")
    (tmp_path / "a.json").write_text("my thesis")
    with pytest.raises(UserError, match="expected a new name"):
        save_solver(sample.solver(gauss(), None), tmp_path / "a.json")


def test_levels_that_are_not_the_network_s(tmp_path):
    path, mean = written(tmp_path, short()), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    with pytest.raises(UserError, match="evaluates at noise level 80; the network has 0.1 to 20"):
        sample(Gauss(mean, 0.5, sigma_min=0.1, sigma_max=20), latents(), solver=path)
    table = torch.tensor([80.0, 10.001, 0.99999999, 0.1], dtype=torch.float64)
    with pytest.raises(UserError, match="noise level 10; the nearest of the network's is 10.001"):
        sample(Gauss(mean, 0.5, table=table), latents(), solver=path)
    with pytest.raises(UserError, match="num_steps does not go with a solver that has its levels"):
        sample(gauss(), latents(), solver=path, num_steps=3)
