"""A static model of a kernel's main loop, from the text of nvdisasm: instructions of one step by class, and the largest
share of the matrix units' speed that they allow.

The main loop is the backward branch that encloses the most matrix instructions, of two with as many the shorter one; in
a kernel without them the longest. Counted is what a warp issues in one step, both sides of inner branches. In a clock a
quarter of a multiprocessor, which has its own matrix unit, issues one instruction; its special functions take 8 clocks
for a warp; shared memory moves 128 bytes for all four quarters. All warps do the same, so that the ratios are those of
one. Not seen: latencies and waits, conflicts of banks, caches, what comes before the loop and after it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

# multiply-adds of 16-bit numbers in a clock of a multiprocessor, 32-bit sums; by compute capability
RATES = {80: 1024, 89: 256, 90: 2048, 100: 4096, 120: 256}
HMMA_SHARE = {90: 0.62}  # of that rate that a warp's own instruction reaches, where those of four warps are faster
SPECIAL_CLOCKS = 8  # of a warp: 4 lanes at a time
SHARED_BYTES = 128 / 4  # in a clock, of a quarter

CLASSES = {
    "matrix": r"HMMA|HGMMA|QGMMA|QMMA|IMMA|IGMMA|UTC[A-Z]*MMA",
    "special": r"MUFU|I2F|F2I|F2F",
    "shared": r"LDS|LDSM|STS|STSM|ATOMS|LDTM|STTM",
    "copies": r"LDGSTS|UTMALDG|UTMASTG|UBLKCP",
    "global": r"LDG|STG|LD|ST|RED|ATOM|ATOMG|REDG",
    "waits": r"BAR|DEPBAR|LDGDEPBAR|WARPGROUP|SYNCS|MEMBAR|FENCE|WARPSYNC|ARRIVES|UTCBAR|ERRBAR|CCTL",
}
PATTERNS = {name: re.compile(rf"(?:{pattern})\b") for name, pattern in CLASSES.items()}
LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
WAIT = "ACQBULK"  # for all that was launched before: griddepcontrol.wait
LABEL = re.compile(r"\s*(\.L_x_\d+):")
BRANCH = re.compile(r"`\((\.L_x_\d+)\)")


class Instruction(NamedTuple):
    name: str  # with all that follows its points
    operands: str

    def kind(self) -> str:
        return next((name for name, pattern in PATTERNS.items() if pattern.match(self.name)), "other")


def instructions(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Those of a kernel in order, and where its labels point."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif (match := LINE.match(line)) and match[1] != "NOP":
            found.append(Instruction(match[1], match[2]))
    return found, labels


def before_wait(text: str) -> int:
    """Accesses to global memory that come before a kernel waits for those before it: all of them if it never does."""
    program, _ = instructions(text)
    end = next((place for place, i in enumerate(program) if i.name.startswith(WAIT)), len(program))
    return sum(i.kind() in ("global", "copies") for i in program[:end])


def main_loop(program: list[Instruction], labels: dict[str, int]) -> list[Instruction]:
    """Nothing if there is no loop; the branch to itself that pads the end of a kernel is none."""
    best: tuple[tuple[int, int], list[Instruction]] = ((0, 0), [])
    for index, (name, operands) in enumerate(program):
        target = BRANCH.search(operands) if name.startswith("BRA") else None
        if target is None or labels.get(target[1], index) >= index:
            continue
        body = program[labels[target[1]] : index + 1]
        products = sum(i.kind() == "matrix" for i in body)
        best = max(best, ((products, -len(body) if products else len(body)), body), key=lambda found: found[0])
    return best[1]


def products(instruction: Instruction) -> tuple[int, int, bool]:
    """Of a matrix instruction: multiply-adds of one warp, bits of an operand, whether both operands are in shared
    memory. Those of sm_100 have their sizes in a descriptor: 0."""
    name = instruction.name
    bits = 8 if name.startswith(("Q", "I")) or "E4M3" in name or "E5M2" in name else 32 if "TF32" in name else 16
    if size := re.search(r"\.(\d+)x(\d+)x(\d+)\b", name):  # of four warps
        m, n, k = map(int, size.groups())
        return m * n * k // 4, bits, instruction.operands.split(",")[1].strip().startswith("gdesc")
    if size := re.search(r"MMA\.(?:SP\.)?(16)(8)(8|16|32)\b", name):
        m, n, k = map(int, size.groups())
        return m * n * k, bits, False
    return 0, bits, True


def shared_bytes(instruction: Instruction) -> float:
    """What a warp moves in or out of shared memory."""
    name = instruction.name
    if instruction.kind() == "matrix":
        size = re.search(r"\.(\d+)x(\d+)x(\d+)\b", name)
        if size is None:
            return 0
        m, n, k = map(int, size.groups())
        _, bits, both = products(instruction)
        return (n + (m if both else 0)) * k * bits / 8 / 4
    if not re.match(r"LDS|STS|LDGSTS", name):
        return 0
    if matrices := re.search(r"\.M88\.?(\d)?|\.MT88\.?(\d)?", name):
        return 128 * int(matrices[1] or matrices[2] or 1)
    width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", name)
    return 32 * {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}.get(width[1] if width else "", 4)


def model(text: str, capability: int) -> dict[str, Any]:
    """`slots` and `special` of the whole program, each instruction once; of its main loop what is in the file's head.

    `bound`: the clocks of the matrix unit in a step, in those of what takes longest (1 at most).
    """
    program, labels = instructions(text)
    found: dict[str, Any] = {"slots": len(program), "special": sum(i.kind() == "special" for i in program)}
    if not (body := main_loop(program, labels)):
        return found
    kinds = [i.kind() for i in body]
    loop: dict[str, Any] = {name: kinds.count(name) for name in (*CLASSES, "other")}
    found["loop"] = loop
    matrix = [i for i, kind in zip(body, kinds) if kind == "matrix"]
    each = [products(i) for i in matrix]
    if not matrix or not all(count for count, _, _ in each):
        return found
    rate = RATES[capability] / 4
    clocks = sum(count * max(bits, 8) / 16 / rate for count, bits, _ in each)
    moved = sum(shared_bytes(i) for i in body)
    slower = clocks / (HMMA_SHARE.get(capability, 1) if all(i.name.startswith("HMMA") for i in matrix) else 1)
    limits = (slower, len(body), loop["special"] * SPECIAL_CLOCKS, moved / SHARED_BYTES)
    where = {both for _, _, both in each}
    loop["operands"] = "shared memory" if where == {True} else "registers" if where == {False} else "both"
    loop |= {"clocks": round(clocks), "shared_bytes": round(moved), "bound": round(clocks / max(limits), 3)}
    return found
