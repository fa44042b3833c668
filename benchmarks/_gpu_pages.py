"""What the parts of gpu_report.py found: a page, an archive, tables for a terminal. The standard library alone."""

from __future__ import annotations

import datetime
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TERMINAL = 10_000  # characters
MEMBER, ARCHIVE = 3_000_000, 15_000_000  # bytes of a file in the archive, and of all of it
EVALUATIONS = 35  # of the network, in 18 steps of Heun's method
PLANS = ("accelerate-fp16", "accelerate-bf16")
FUSED = ("fused-autocast-fp16", "fused-autocast-bf16")
OURS = {"networks": PLANS, "sampling": PLANS, "training": FUSED}  # what is predicted
OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED")
PREDICTED = Path(__file__).parent / "results/predicted-gpu.json"  # seconds, of gpu_predict.py
TARGETS = {"networks": ("networks", "autotune"), "training": ("training",), "sampling": ("sampling",)}
Part = dict[str, Any]
Parts = dict[str, Part]


def outcomes(output: str) -> dict[str, tuple[str, str]]:
    """By test, what pytest -v -rfE says of it, and why it failed."""
    words, found = "|".join(OUTCOMES), {}
    for line in output.splitlines():
        if match := re.match(rf"\[gw\d+\] \[ *\d+%\] ({words}) (tests/.*\S)", line):
            found[match[2]] = match[1], ""
        elif match := re.match(rf"(tests/\S.*) ({words})\b(?: \(.*\))? *(?:\[ *\d+%\])?$", line):
            found[match[1]] = match[2], ""
        elif match := re.match(r"(FAILED|ERROR) (tests/.*?)(?: - (.*))?$", line):
            found[match[2].strip()] = match[1], (match[3] or "")[:160]
    return found


def facts(parts: Parts) -> Part:
    """Settings, sizes and ceilings that the parts told."""
    found: Part = {}
    for part in parts.values():
        for key, value in part.get("facts", {}).items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    return found


def slug(parts: Parts) -> str:
    return facts(parts).get("slug", "unknown")


def predicted(parts: Parts) -> dict[str, float]:
    """Of the chip that was measured, if it is one of those: seconds by network, batch and target, or op and layer;
    TFLOP/s by layer and way of the sweep."""
    try:
        known = json.loads(PREDICTED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return next((seconds for chip, seconds in known.items() if chip in slug(parts).lower()), {})


def beside(seconds: float | None, unit: float) -> str:
    return f"{seconds / unit:9.3f} predicted" if seconds else ""


def rows(parts: Parts, target: str) -> list[Part]:
    return [row for name in TARGETS[target] for row in parts.get(name, {}).get("rows", [])]


def status(parts: Parts) -> Iterator[str]:
    for name, part in parts.items():
        word = "ok" if part.get("ok") and part.get("complete") else "cut" if part.get("ok") else "NOT OK"
        yield f"{name:10s} {word:7s} {part.get('part_seconds', 0):5.0f} s  {part.get('summary', '')}"[:300]


def losses(parts: Parts) -> Iterator[str]:
    """What has no numbers, and why."""
    for name, part in parts.items():
        yield from (f"{name}, {row['id']}: {row['reason']}" for row in part.get("lost", []))
        yield from (f"{name}: {line}" for key in ("failures", "faults", "failed") for line in part.get(key, []))
        reasons = {row["reason"]: row for row in part.get("rows", []) if row.get("reason") and "median_s" not in row}
        unexpected = {text: row for text, row in reasons.items() if "was requested, but" not in text}
        yield from (f"{name}, {row['id']}: {reason}" for reason, row in unexpected.items())
    for name, part in parts.items():
        yield from (f"{name}, out of time: {cut}" for cut in part.get("cut", []))


def network_lines(parts: Parts, target: str) -> Iterator[str]:
    """Milliseconds, images per second, speed as a multiple of the reference and of torch.compile, error, TFLOP/s."""
    found, known, expected = rows(parts, target), facts(parts), predicted(parts)
    compiled = {(r["network"], r["batch"]): r["median_s"] for r in found if r["row"] == "compile-fp16" and "ratio" in r}
    for row in found:
        where = f"{row['network'].removeprefix('edm-')[:22]:22s}{row['batch']:4d} {row['row'][:27]:27s}"
        if "ratio" not in row:
            yield f"{where} cannot run: {row.get('reason', '')[:60]}"
            continue
        place = f"{row['network']}, batch {row['batch']}" + ("" if target == "networks" else f", {target}")
        peer = compiled.get((row["network"], row["batch"]))
        flops = known.get("flops", {}).get(row["network"], 0) if target != "training" else 0
        rate = flops * row["batch"] * (EVALUATIONS if target == "sampling" else 1) / row["median_s"] / 1e12
        yield (
            f"{where}{row['median_s'] * 1e3:9.3f} ms{row['images_per_s']:9.0f}/s{row['ratio']:7.2f}x"
            + (f"{peer / row['median_s']:6.2f} of compile" if peer else " " * 17)
            + f" {row['error']:.0e}"
            + (f"{rate:6.0f} TFLOP/s" if rate else "")
            + beside(expected.get(place) if row["row"] in OURS[target] else None, 1e-3)
        )


def op_lines(parts: Parts, kinds: tuple[str, ...] = ("forward", "with backward")) -> Iterator[str]:
    expected = predicted(parts)
    for row in parts.get("ops", {}).get("rows", []):
        if row["kind"] not in kinds:
            continue
        where = f"{row['op'][:15]:15s} {row['layer'][:26]:26s} {row['kind'][:7]:7s} {row['backend'][:20]:20s}"
        if "median_s" in row:
            share = f"{row['of_ceiling']:5.0%}" if "of_ceiling" in row else " " * 5
            own = row["backend"] == "triton" and row["kind"] == "forward"
            seconds = expected.get(f"{row['op']}, {row['layer']}") if own else None
            bits = "" if row.get("bit_stable") is not False else " OTHER BITS"
            yield f"{where}{row['median_s'] * 1e6:9.1f} us {row['ratio']:6.2f}x {share}{bits}" + beside(seconds, 1e-6)


def sweep_lines(parts: Parts, most: int) -> Iterator[str]:
    """TFLOP/s of the ways, then of the best blocks; what was predicted of a way, and of the blocks, in brackets."""
    expected = predicted(parts)
    for row in parts.get("sweep", {}).get("rows", []):
        rates = row.get("tflops", {})
        named = [name for name in rates if " " not in name]  # others are blocks
        names = [*named, *sorted(rates.keys() - {*named}, key=lambda name: -rates[name])]
        blocks, told = "fused", []
        for name in names[:most]:
            way, blocks = (name, blocks) if " " not in name else (blocks, "")
            rate = expected.get(f"sweep, {row['id']}, {way}")
            told.append(f"{name} {rates[name]:.0f}" + (f" [{rate:.0f}]" if rate else ""))
        times = "; ".join(told)
        yield f"{row['id'][:48]:48s} {times}; {row.get('share', 0):.0%} of a product"


def kernel_lines(part: Part, most: int) -> Iterator[str]:
    for row in part.get("rows", []):
        yield f"{row['id']}: {row['total_ms']:.3f} ms" if "table" in row else f"{row['id']}: {row.get('reason')}"
        for name, count, ms, share in row.get("table", [])[:most]:
            yield f"{ms:9.3f} ms {share:6.1%} {count:4d}  {name[:64] if most < 20 else name}"


def fitting(lines: Iterable[str], characters: int) -> list[str]:
    """As many of the first lines as fit; how many do not."""
    found, every = [], list(lines)
    for line in every:
        characters -= len(line) + 1
        if characters < 30:
            return [*found, f"... {len(every) - len(found)} lines more in the page"]
        found.append(line)
    return found


def terminal(parts: Parts, faults: Iterable[str]) -> str:
    """At most TERMINAL characters, the most important ones last: terminals and records of them keep the end."""
    known = facts(parts)
    ceilings = ", ".join(f"{key} {value:.3g}" for key, value in known.get("ceilings", {}).items())
    sections = [
        ("ops, us", op_lines(parts, ("forward",)), 4000),
        ("sweep, TFLOP/s", sweep_lines(parts, 6), 3500),
        ("kernels", kernel_lines(parts.get("profile", {}), 7), 1600),
        ("training", network_lines(parts, "training"), 700),
        ("sampling", network_lines(parts, "sampling"), 700),
        ("not measured", losses(parts), 1200),
        ("networks", network_lines(parts, "networks"), 2600),
        (f"parts, {known.get('slug', 'no device')} {ceilings}", [*status(parts), *dict.fromkeys(faults)], 1500),
    ]
    text, used = [], 0
    for name, lines, share in reversed(sections):
        left = TERMINAL - used - len(name) - 3
        if left > 100 and (found := fitting(lines, min(share, left))):
            text.insert(0, "\n".join(["", name, *found]))
            used += len(text[0]) + 1
    return "\n".join(text)[-TERMINAL:]


def page(parts: Parts, faults: Iterable[str]) -> str:
    """Everything but the logs, in Markdown."""
    known = facts(parts)
    settings = ", ".join(f"{key} {value}" for key, value in known.get("settings", {}).items())
    ceilings = ", ".join(f"{key} {value:.3g}" for key, value in known.get("ceilings", {}).items())
    sections: list[tuple[str, Iterable[str]]] = [
        ("Parts", [*status(parts), *dict.fromkeys(faults)]),
        *((name.capitalize(), network_lines(parts, name)) for name in TARGETS),
        (f"Ops (share of the ceilings {ceilings})", op_lines(parts)),
        ("Sweep, TFLOP/s", sweep_lines(parts, 100)),
        ("Kernels", kernel_lines(parts.get("profile", {}), 40)),
        ("Not measured", losses(parts)),
    ]
    text = [f"# GPU report, {known.get('slug', 'no device')}"]
    for name, lines in sections:
        if found := list(lines):
            text += [f"## {name}", "\n".join(["```", *found, "```"])]
    return "\n\n".join([*text, f"Settings: {settings}."]) + "\n"


def documents(parts: Parts) -> dict[str, str]:
    """By file name: results as `edm-fast bench` writes them, for benchmarks/results."""
    known, found = facts(parts), {}
    for target in TARGETS:
        entries = [{key: value for key, value in row.items() if key != "id"} for row in rows(parts, target)]
        if entries:
            date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            document = {"target": target, "settings": known.get("settings", {}), "command": "make gpu-report"}
            text = json.dumps({**document, "date": date, "rows": entries}, indent=1) + "\n"
            found[f"{target}-{slug(parts)}.json"] = text
    return found


def tuned(parts: Parts) -> tuple[str, str]:
    """Name and text of what kernels/ is to hold of this chip; no text without a sweep. No way is proved, [1], before
    every layer is measured."""
    known, swept = facts(parts), parts.get("sweep", {})
    lost = {row["id"] for row in swept.get("lost", [])} - {row["id"] for row in swept.get("rows", [])}
    whole = swept.get("complete") and not lost
    found = {sizes: fields for sizes, fields in sorted(known.get("tuned", {}).items()) if whole or fields != [1]}
    rows = [f'"{sizes}": {json.dumps(fields)}' for sizes, fields in found.items()]
    return f"tuned-{known.get('chip', 'unknown')}.json", "{\n" + ",\n".join(rows) + "\n}\n" if rows else ""


def archive(parts: Parts, work: Path) -> bytes:
    """A tar.gz: the documents, results and logs of the parts, tables of plans, what the sweep chose, profiles."""
    members = {f"results/{name}": text.encode() for name, text in documents(parts).items()}
    name, text = tuned(parts)
    members |= {f"kernels/{name}": text.encode()} if text else {}
    members |= {f"parts/{name}.json": json.dumps(part, indent=1).encode() for name, part in parts.items()}
    for pattern in ("cache/plans/*.json", "*.log"):
        for path in sorted(work.glob(pattern)):
            members[str(path.relative_to(work))] = path.read_bytes()[-MEMBER:]
    while True:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        if buffer.tell() <= ARCHIVE or not members:
            return buffer.getvalue()
        del members[max(members, key=lambda name: len(members[name]))]
