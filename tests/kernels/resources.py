"""What the Triton kernels take on each chip: compiled ahead of time, no GPU needed, and read from the machine code; and
a model of their main loops (machine_code.py).

    python tests/kernels/resources.py [OP ...]            prints the measurements as JSON
    python tests/kernels/resources.py --write [OP ...]    writes those of this Triton version into resources.json

Run it with each Triton version that the table lists after changing a kernel: another folder with a Triton in it comes
first with PYTHONPATH=FOLDER. Triton keeps what it has compiled in its own cache (TRITON_CACHE_DIR).

One Triton version compiles one source to one code. sources.json names the sources of the table's rows, so that the
tests measure all variants where a kernel file has changed since, and a sample where it has not.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("resources.json")
SOURCES = Path(__file__).with_name("sources.json")  # by Triton version and op, as digests
SAMPLE = 6  # one of so many variants
NUMBERS = ("registers", "shared", "wide_loads", "matrix_products", "slots", "special", "loop")
SLACK = 1.25  # of registers and shared memory, for Triton versions that the table does not list

# LDG.E.128 and the asynchronous copies LDGSTS.E.BYPASS.128 and UTMALDG (TMA); HMMA, and HGMMA of whole warp groups
WIDE_LOADS = re.compile(r"\b(?:LDG|LDGSTS)\.[A-Z0-9.]*128\b|\bUTMALDG\b|\bUBLKCP\b")
MATRIX_PRODUCTS = re.compile(r"\b(?:HMMA|HGMMA|QGMMA|QMMA|IMMA|IGMMA|UTC[A-Z]*MMA)\b")
FLOAT8_PRODUCTS = re.compile(r"\b(?:QGMMA|QMMA|UTCQMMA)\b")
FUSED = re.compile(r"\bfma\.rn(?:\.ftz)?\.f(?:32|64)\b")  # sums of bfloat16 on sm_80 are fma.rn.bf16 by one
SPILLS = re.compile(r"\b(?:LDL|STL)\b")  # loads and stores of local memory


def load(path: Path) -> Any:
    """A file that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Chip(NamedTuple):
    capability: int
    shared: int  # bytes that a program may have


CHIPS = {
    "sm_80": Chip(80, 163 * 1024),
    "sm_89": Chip(89, 99 * 1024),
    "sm_90a": Chip(90, 227 * 1024),
    "sm_100a": Chip(100, 227 * 1024),
    "sm_120a": Chip(120, 99 * 1024),
}
FLOAT8_CHIP = 89  # the first with float8 products
machine_code = load(Path(__file__).with_name("machine_code.py"))


def operations() -> list[str]:
    return sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if not path.name.startswith("_"))


def variants(source: str) -> dict[str, Any]:
    """The variants of an op, or of a file."""
    found = load(Path(source)) if source.endswith(".py") else importlib.import_module(f"edm_fast.kernels.{source}")
    return found.variants()


def files(op: str) -> list[Path]:
    """The kernel file of an op, and those it names, and so on."""
    found, new = [], [ROOT / f"kernels/{op}.py"]
    while new:
        found.append(path := new.pop())
        text = path.read_text()
        named = (p for p in (ROOT / "kernels").glob("_*.py") if re.search(rf"\b{p.stem}\b", text))
        new += [p for p in named if p not in (*found, *new)]
    return sorted(found)


def code(path: Path) -> str:
    """What a file does: comments and docstrings left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def digest(op: str) -> str:
    """Names what the kernels of an op are compiled from."""
    return hashlib.sha256("\0".join(map(code, files(op))).encode()).hexdigest()[:16]


def measured_before(op: str, triton: str) -> bool:
    """Whether the table's rows of an op are of this Triton version and of the kernel file as it is."""
    known = json.loads(SOURCES.read_text()) if SOURCES.exists() else {}
    return op in operations() and known.get(minor_version(triton), {}).get(op) == digest(op)


def minor_version(text: str) -> str:
    return ".".join(text.split(".")[:2])


def tool(name: str, *args: str) -> str:
    """Output of a program that comes with Triton."""
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout


def compiled(variant: Any, chip: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget

    names = variant.kernel.arg_names
    missing = set(names) ^ {*variant.signature, *variant.constants}
    assert not missing, f"arguments of {variant.kernel.__name__} without a type, or types without one: {missing}"
    form: Any = triton.compiler.ASTSource
    if getattr(variant.kernel, "is_gluon", lambda: False)():
        from triton.experimental.gluon._runtime import GluonASTSource as form
    source = form(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs=dict(variant.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options: dict[str, Any] = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    options["enable_fp_fusion"] = variant.fused_multiply_add  # the default is not the same in all Triton versions
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)


def read(kernel: Any, capability: int) -> dict[str, Any]:
    """Registers of a thread, bytes of its stack, accesses to local memory, shared bytes, counts of instructions, and
    the model of the main loop."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = os.path.join(folder, "kernel.cubin")
        Path(cubin).write_bytes(kernel.asm["cubin"])
        usage, code = tool("cuobjdump", "-res-usage", cubin), tool("nvdisasm", "-c", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    assert found, usage
    registers, stack, static = map(int, found.groups())
    return {
        "registers": registers,
        "shared": max(kernel.metadata.shared, static),  # a launch asks for the former
        "wide_loads": len(WIDE_LOADS.findall(code)),
        "matrix_products": len(MATRIX_PRODUCTS.findall(code)),
        "float8_products": len(FLOAT8_PRODUCTS.findall(code)),
        "stack": stack,
        "spills": len(SPILLS.findall(code)),
        "fused_in_ptx": len(FUSED.findall(kernel.asm["ptx"])),
        "before_wait": machine_code.before_wait(code),
        **machine_code.model(code, capability),
    }


def measure(job: tuple[str, str, str]) -> dict[str, Any]:
    """One variant on one chip: what it takes, and the rules it has to keep."""
    source, name, chip = job
    variant = variants(source)[name]
    try:
        found: dict[str, Any] = read(compiled(variant, CHIPS[chip].capability), CHIPS[chip].capability)
    except Exception as error:  # one broken kernel must not hide the others
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
    rules = {key: getattr(variant, key) for key in ("matrix_products", "wide_loads", "float8", "fused_multiply_add")}
    rules["early"] = variant.constants.get("EARLY", False)
    return {"variant": name, "chip": chip, "rules": rules, **found}


def faults(found: dict[str, Any], expected: dict[str, int] | None, exact: bool) -> list[str]:
    """What is wrong with a measurement, by its rules and by the table's numbers (None: not in the table)."""
    if "error" in found:
        return [found["error"]]
    rules, wrong = found["rules"], []
    if found["spills"] or found["stack"]:
        wrong.append(f"{found['spills']} accesses to spilled registers, {found['stack']} bytes of stack")
    if found["shared"] > (most := CHIPS[found["chip"]].shared):
        wrong.append(f"{found['shared']} bytes of shared memory, of which the chip has {most}")
    if rules["matrix_products"] and not found["matrix_products"]:
        wrong.append("no matrix instructions")
    if rules["float8"] and found["float8_products"] < found["matrix_products"]:
        wrong.append("matrix instructions of wider types")
    if rules["wide_loads"] and not found["wide_loads"]:
        wrong.append("no 16-byte loads")
    if not rules["fused_multiply_add"] and found["fused_in_ptx"]:
        wrong.append(f"{found['fused_in_ptx']} products and sums were fused")
    if rules["early"] and found["before_wait"]:
        wrong.append(f"{found['before_wait']} accesses to memory before the wait for the kernel before")
    if expected is None:
        return [*wrong, "not in the table"]
    if exact:
        return wrong + [
            f"{key}: {found.get(key)}, in the table {expected.get(key)}"
            for key in NUMBERS
            if found.get(key) != expected.get(key)
        ]
    limits = {key: int(SLACK * expected[key]) for key in ("registers", "shared")}
    return wrong + [f"{key}: {found[key]}, at most {most}" for key, most in limits.items() if found[key] > most]


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def nearest(table: dict[str, Any], triton: str) -> str:
    """The version of the table to compare with: this one, or else the closest."""
    key = minor_version(triton)
    major, minor = version(triton)
    return (
        key if key in table else min(table, key=lambda k: abs(1000 * (version(k)[0] - major) + version(k)[1] - minor))
    )


def lined(table: Any, depth: int = 4, indent: str = "") -> str:
    """JSON with a line for each entry of the outer levels: version, op, variant, chip."""
    if not depth:
        return json.dumps(table)
    rows = (f"{indent} {json.dumps(key)}: {lined(table[key], depth - 1, indent + ' ')}" for key in sorted(table))
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def write(results: dict[str, Any]) -> None:
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    key = minor_version(results["triton"])
    rows = table.setdefault(key, {})
    for op, found in results["ops"].items():
        rows[op] = {}
        for row in found:
            if wrong := faults(row, row, True):
                raise SystemExit(f"{op} {row['variant']} {row['chip']}: {'; '.join(wrong)}")
            rows[op].setdefault(row["variant"], {})[row["chip"]] = {key: row[key] for key in NUMBERS if key in row}
    for op in rows.keys() - set(operations()):
        del rows[op]  # a kernel file that is gone
    TABLE.write_text(lined(table) + "\n")
    sources = json.loads(SOURCES.read_text()) if SOURCES.exists() else {}
    known = {**sources.get(key, {}), **{op: digest(op) for op in results["ops"]}}
    sources[key] = {op: known[op] for op in operations() if op in known}
    SOURCES.write_text(json.dumps(sources, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help="ops, or files with a function variants() [default: all ops]")
    parser.add_argument("--write", action="store_true", help="write the table instead of printing")
    parser.add_argument("--sample", action="store_true", help="a sixth of the variants of ops measured before")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined
    import triton

    sources = args.ops or operations()
    names = {source: [*variants(source)] for source in sources}
    some = {source for source in sources if args.sample and measured_before(source, triton.__version__)}
    jobs = [
        (source, name, chip)
        for source in sources
        for name in names[source][:: SAMPLE if source in some else 1]
        for chip in variants(source)[name].chips
        if CHIPS[chip].capability >= FLOAT8_CHIP or not variants(source)[name].float8
    ]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:
        rows = list(pool.map(measure, jobs))
    ops: dict[str, list[Any]] = {source: [] for source in sources}
    for (source, _, _), row in zip(jobs, rows):
        ops[source].append(row)
    results = {"triton": triton.__version__, "ops": ops, "variants": names}
    if args.write:
        write(results)
    else:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
