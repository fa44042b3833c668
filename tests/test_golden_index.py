"""No entry of the golden index may be left without a test."""

import pytest

from helpers import golden_cases as g


def test_every_golden_entry_has_a_test(request):
    tests = [item for item in request.session.items if "/test_golden_" in item.nodeid]
    modules = {item.nodeid.split("::")[0] for item in tests}
    if len(modules) == 1:
        pytest.skip("looks at the whole suite; only this file was collected")
    params = [item.callspec.params for item in tests if hasattr(item, "callspec")]
    tested = {param["entry"]["id"] for param in params if "entry" in param}
    assert sorted({*g.index(), *g.index("solvers.json"), *g.index("edm2.json")} - tested) == []
