"""The CUDA kernels of the compiled part, without a GPU: registers, spills, shared memory and 16-byte accesses of each,
compared with tests/cuda_resources.json. `python tests/test_cuda_resources.py` writes that table anew."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edm_fast import native

TABLE = Path(__file__).with_name("cuda_resources.json")
CHIPS = {"80", "90a"}
TRITON = importlib.util.find_spec("triton")  # brings cuobjdump along
OBJDUMP = shutil.which("cuobjdump") or (TRITON and Path(TRITON.origin).parent / "backends/nvidia/bin/cuobjdump")
MISSING = [tool for tool in (OBJDUMP or "cuobjdump", "c++filt") if not shutil.which(tool)]
RESERVED = {"90a": 1024}  # bytes of shared memory that CUDA keeps for itself, counted where a kernel uses any
SLACK = 1.15  # of the registers: other releases of nvcc allocate a few more or fewer


def output(*command, cwd=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def short(names):
    """mangled name -> "_kernel<float, 4, ...>" of all the names."""
    plain = output("c++filt", *names).splitlines()
    found = [re.search(r"(_\w+<.*?>)\(", re.sub(r"\((int|bool)\)", "", line)) for line in plain]
    return {name: match[1].replace("<unnamed>::", "") for name, match in zip(names, found) if match}


def measured(cubin, chip):
    """kernel -> registers, spilled bytes (stack and local memory), shared memory, 16-byte loads and stores."""
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    usage = {
        name: [int(n) for n in numbers] for name, *numbers in re.findall(pattern, output(OBJDUMP, "-res-usage", cubin))
    }
    names = short(list(usage))
    code = {part.split("\n", 1)[0].strip(): part for part in output(OBJDUMP, "-sass", cubin).split("Function : ")[1:]}
    return {
        names[name]: {
            "registers": registers,
            "spills": stack + local,
            "shared": max(shared - RESERVED.get(chip, 0), 0),
            "loads_16": len(re.findall(r"\bLDG\.E\S*\.128", code[name])),
            "stores_16": len(re.findall(r"\bSTG\.E\S*\.128", code[name])),
        }
        for name, (registers, stack, shared, local) in usage.items()
    }


def all_measured():
    """By source and chip; empty without CUDA code."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        output(OBJDUMP, "-xelf", "all", native.lib.__file__, cwd=folder)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            chip = re.search(r"sm_(\w+)\.cubin", cubin.name)[1]
            if table := measured(cubin, chip):
                kernel = next(iter(table)).partition("<")[0]  # _upfirdn_fwd, in upfirdn.cu
                found[f"{re.sub('_(fwd|bwd|statistics).*', '', kernel)[1:]} sm_{chip}"] = dict(sorted(table.items()))
    return found


@pytest.fixture(scope="module")
def tables():
    if MISSING:
        pytest.skip(f"{', '.join(map(str, MISSING))} not found")
    if native.lib is None:
        pytest.skip(native.cpu_reason())
    found = all_measured()
    if not {key.rpartition("sm_")[2] for key in found} >= CHIPS:
        pytest.skip(f"the compiled part has no CUDA code for sm_{', sm_'.join(sorted(CHIPS))}")
    return found


def elements(kernel):
    return int(re.search(r", (\d+)", kernel)[1])


@pytest.mark.slow
def test_resources_are_those_of_the_table(tables):
    known = json.loads(TABLE.read_text())
    assert {k: sorted(t) for k, t in tables.items()} == {k: sorted(t) for k, t in known.items()}
    for key, table in tables.items():
        for kernel, now in table.items():
            then = known[key][kernel]
            assert now["registers"] <= SLACK * then["registers"] + 2, f"{key} {kernel}: {now}, {then}"
            assert now["shared"] <= then["shared"] + 64, f"{key} {kernel}: {now}, {then}"
            assert (now["loads_16"] > 0, now["stores_16"] > 0) == (then["loads_16"] > 0, then["stores_16"] > 0)


@pytest.mark.slow
def test_no_spills_and_16_byte_accesses(tables):
    for key, table in tables.items():
        for kernel, now in table.items():
            assert now["spills"] == 0, f"{key} {kernel} spills {now['spills']} bytes"
            if elements(kernel) > 1:
                statistics = kernel.startswith("_group_norm") and kernel.endswith(", 1>")
                pixels = kernel.startswith("_upfirdn_fwd<")  # their inputs overlap: read one by one
                assert now["loads_16"] or pixels, f"{key} {kernel} loads in parts"
                assert now["stores_16"] or statistics, f"{key} {kernel} stores in parts"


if __name__ == "__main__":
    TABLE.write_text(json.dumps(all_measured(), indent=1) + "\n")
    sys.stdout.write(f"{TABLE} written\n")
