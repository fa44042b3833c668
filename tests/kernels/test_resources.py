"""Every Triton kernel compiled for sm_80 and sm_90a: no spills, wide loads, matrix products, and what the table says.

Compilation needs no GPU but the compiler in place of the interpreter, so it happens in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from helpers.scripts import load

SCRIPT = Path(__file__).with_name("resources.py")
resources = load(SCRIPT)

RULES = {"matrix_products": True, "wide_loads": True, "float8": False, "fused_multiply_add": False, "early": False}
FINE = {"registers": 40, "shared": 1000, "wide_loads": 2, "matrix_products": 8, "stack": 0, "spills": 0}
FINE |= {"fused_in_ptx": 0, "float8_products": 0, "rules": RULES, "chip": "sm_89", "slots": 9, "special": 0}
FINE["before_wait"] = 1


def measured(*sources):
    """What the script found in ops or files."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *sources]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=resources.ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("op", resources.operations())
def test_every_kernel_keeps_its_rules_and_the_table(op):
    """All variants of ops whose kernel files have changed since the table was written, a sample of the others."""
    table = json.loads(resources.TABLE.read_text())
    found = measured("--sample", op)
    key = resources.nearest(table, found["triton"])
    exact = found["triton"].startswith(f"{key}.")
    rows, names, known = found["ops"][op], set(found["variants"][op]), table[key][op]
    wrong = [f"{name} is in the table alone" for name in known.keys() - names]
    wrong += [f"{name} is not in the table" for name in names - known.keys()]
    for row in rows:
        expected = known.get(row["variant"], {}).get(row["chip"])
        wrong += [f"{row['variant']} {row['chip']}: {fault}" for fault in resources.faults(row, expected, exact)]
    assert not wrong, "\n".join(wrong)
    assert {row["chip"] for row in rows} >= {"sm_80", "sm_90a"}


def test_an_op_is_measured_again_when_its_kernels_change(monkeypatch, tmp_path):
    op = resources.operations()[0]
    monkeypatch.setattr(resources, "SOURCES", tmp_path / "sources.json")
    assert not resources.measured_before(op, "3.9.1")
    resources.SOURCES.write_text(json.dumps({"3.9": {op: resources.digest(op)}}))
    assert resources.measured_before(op, "3.9.1") and not resources.measured_before(op, "3.8.0")
    resources.SOURCES.write_text(json.dumps({"3.9": {op: "of another file"}}))
    assert not resources.measured_before(op, "3.9.1")


def test_the_table_has_no_ops_without_kernels():
    for rows in json.loads(resources.TABLE.read_text()).values():
        assert rows.keys() == set(resources.operations())


@pytest.mark.slow
def test_planted_faults_are_found():
    planted = str(Path(__file__).with_name("planted.py"))
    found = {}
    for row in measured(planted)["ops"][planted]:
        row["rules"]["fused_multiply_add"] = row["variant"] != "fused"
        found.setdefault(row["variant"], []).append(resources.faults(row, row, True))
    assert found["fine"] == found["products"] == [[], []] and found["float8"] == found["early"] == [[]]
    for name, text in {
        "spills": "accesses to spilled registers",
        "no_products": "no matrix instructions",
        "narrow": "no 16-byte loads",
        "widened": "matrix instructions of wider types",
        "fused": "products and sums were fused",
        "misspelt": "no_such_name",
        "never_waits": "2 accesses to memory before the wait",
        "waits_late": "1 accesses to memory before the wait",
    }.items():
        assert all(len(faults) == 1 and text in faults[0] for faults in found[name]), (name, found[name])


@pytest.mark.parametrize(
    "change, exact, text",
    [
        ({}, True, None),
        ({"registers": 41}, True, "registers: 41, in the table 40"),
        ({"registers": 39}, True, "registers: 39"),
        ({"shared": 1001}, True, "shared: 1001"),
        ({"wide_loads": 1}, True, "wide_loads: 1"),
        ({"registers": 50, "shared": 1250, "wide_loads": 1}, False, None),
        ({"registers": 51}, False, "registers: 51, at most 50"),
        ({"loop": {"matrix": 4}}, True, "loop: {'matrix': 4}, in the table None"),
        ({"stack": 8}, False, "8 bytes of stack"),
        ({"error": "broken"}, False, "broken"),
    ],
)
def test_numbers_are_compared(change, exact, text):
    found = resources.faults({**FINE, **change}, FINE, exact)
    assert not found if text is None else len(found) == 1 and text in found[0]
    assert "not in the table" in resources.faults({**FINE, **change}, None, exact) or "error" in change


def test_an_unlisted_version_is_compared_with_the_nearest():
    table = dict.fromkeys(("3.6", "3.9", "4.1"))
    for version, nearest in {
        "3.6.0": "3.6",
        "3.7.1": "3.6",
        "3.9.0+git": "3.9",
        "3.12.0": "3.9",
        "4.0.0": "4.1",
    }.items():
        assert resources.nearest(table, version) == nearest
