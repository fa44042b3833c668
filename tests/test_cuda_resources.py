"""Every CUDA source compiled ahead of time, without a GPU: registers, spills, shared memory and 16-byte accesses of
each kernel, compared with tests/cuda_resources.json. `python tests/test_cuda_resources.py` writes that table anew."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests/cuda_resources.json"
SOURCES = sorted(path for path in (ROOT / "csrc/cuda").glob("*.cu") if path.stem != "errors")
CHIPS = ("80", "90a")
TRITON = importlib.util.find_spec("triton")  # brings cuobjdump along
OBJDUMP = shutil.which("cuobjdump") or (TRITON and Path(TRITON.origin).parent / "backends/nvidia/bin/cuobjdump")
MISSING = [tool for tool in ("nvcc", OBJDUMP or "cuobjdump", "c++filt") if not shutil.which(tool)]
SLACK = 1.15  # of the registers: other releases of nvcc allocate a few more or fewer


def output(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def short(names):
    """mangled name -> "_kernel<float, 4, ...>" of all the names."""
    plain = output("c++filt", *names).splitlines()
    found = [re.search(r"(_\w+<.*?>)\(", re.sub(r"\((int|bool)\)", "", line)) for line in plain]
    return {name: match[1].replace("<unnamed>::", "") for name, match in zip(names, found) if match}


def measured(source, chip, folder):
    """kernel -> registers, spilled bytes (stores and loads), shared memory, 16-byte loads and stores."""
    cubin = Path(folder) / f"{source.stem}-{chip}.cubin"
    flags = "-std=c++17", "-O3", f"-arch=sm_{chip}", "-cubin", "--resource-usage"
    text = output("nvcc", *flags, source, "-o", cubin)
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    usage = {m[1]: m for m in re.finditer(pattern + r"([^\n]*)", text, re.DOTALL)}
    names = short(list(usage))
    code = {part.split("\n", 1)[0].strip(): part for part in output(OBJDUMP, "-sass", cubin).split("Function : ")[1:]}
    table = {}
    for name, m in usage.items():
        shared = re.search(r"(\d+) bytes smem", m[5])
        table[names[name]] = {
            "registers": int(m[4]),
            "spills": int(m[2]) + int(m[3]),
            "shared": int(shared[1]) if shared else 0,
            "loads_16": len(re.findall(r"\bLDG\.E\S*\.128", code[name])),
            "stores_16": len(re.findall(r"\bSTG\.E\S*\.128", code[name])),
        }
    return table


def all_measured():
    jobs = [(source, chip) for source in SOURCES for chip in CHIPS]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda job: measured(*job, folder), jobs)
        return {f"{source.stem} sm_{chip}": dict(sorted(t.items())) for (source, chip), t in zip(jobs, found)}


@pytest.fixture(scope="module")
def tables():
    if MISSING:
        pytest.skip(f"{', '.join(map(str, MISSING))} not found")
    return all_measured()


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
