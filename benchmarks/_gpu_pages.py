"""What the parts of gpu_report.py found, as one JSON, one Markdown page, charts, and lines for a terminal.

    python benchmarks/_gpu_pages.py FOLDER

writes FOLDER/gpu-report-MACHINE.json and .md, and a PNG for each measured target, to be copied to benchmarks/results/.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_report import PARTS, write

from edm_fast.evaluation import _machine, _report
from edm_fast.evaluation._targets import STEPS

EVALUATIONS = 2 * STEPS - 1  # of the network, in a run of Heun's method
Part = dict[str, Any]


def collect(folder: Path) -> dict[str, Part]:
    found = {}
    for name in PARTS:
        path = folder / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def status(parts: dict[str, Part]) -> Iterator[str]:
    for name in PARTS:
        part = parts.get(name)
        if part is None:
            yield f"{name:10s} not run"
            continue
        word = "ok" if part.get("ok") and part.get("complete") else "cut" if part.get("ok") else "NOT OK"
        yield f"{name:10s} {word:7s} {part.get('part_seconds', 0):6.0f} s  {part.get('summary', '')}"[:200]


def cuts(parts: dict[str, Part]) -> Iterator[str]:
    """What was not measured for lack of time, or because it failed."""
    for name, part in parts.items():
        for cut in part.get("cut", []):
            text = cut if isinstance(cut, str) else f"{cut[0]}, batch {cut[1]}: {', '.join(cut[2])}"
            yield f"{name}: {text}"
        yield from (f"{name}, failed: {error}" for error in part.get("errors", []))


def utilisation(parts: dict[str, Part]) -> Iterator[str]:
    """Products per second of whole samplers and single evaluations, as a share of the measured bfloat16 ceiling."""
    ceiling = parts.get("ops", {}).get("ceilings", {}).get("bf16_flops_per_s")
    for name, evaluations in (("networks", 1), ("sampling", EVALUATIONS)):
        part = parts.get(name, {})
        for entry in (part.get("results") or {}).get("rows", []):
            flops = part.get("flops", {}).get(entry["network"])
            if ceiling and flops and "median_s" in entry:
                rate = flops * entry["batch"] * evaluations / entry["median_s"]
                yield (
                    f"| {name} | {entry['network']} | {entry['batch']} | {entry['row']} | {rate / 1e12:.1f} "
                    f"| {rate / ceiling:.1%} |"
                )


def op_rows(part: Part) -> Iterator[str]:
    for row in part.get("rows", []):
        where = f"| {row['op']} | {row['layer']} | {row['kind']} | {row['backend']} |"
        if row.get("reason"):
            yield f"{where} {row['reason'][:110]} | | | |"
        elif "ratio" in row:
            share = f"{row['of_ceiling']:.0%}" if "of_ceiling" in row else _report.MISSING
            bits = {True: "yes", False: "NO"}.get(row.get("bit_stable"), _report.MISSING)
            yield f"{where} {row['median_s'] * 1e6:.1f} | {row['ratio']:.2f} | {share} | {bits} |"


def page(parts: dict[str, Part], settings: Part) -> str:
    text = [f"# GPU report, {settings['device']}", "\n".join(["```", *status(parts), "```"])]
    if missing := list(cuts(parts)):
        text += ["Not measured in this run:", "\n".join(f"- {line}" for line in missing)]
    if "ops" in parts:
        limits = parts["ops"].get("ceilings", {})
        text += [
            "## ops",
            "Ceilings measured in this run: "
            + ", ".join(f"{key} {value:.3g}" for key, value in limits.items())
            + ". `of ceiling`: time at the ceilings over time taken.",
            "\n".join(
                [
                    "| op | layer | kind | backend | us | ratio | of ceiling | same bits |",
                    "|---|---|---|---|---|---|---|---|",
                ]
                + list(op_rows(parts["ops"]))
            ),
        ]
    for name in ("networks", "training", "sampling"):
        if parts.get(name, {}).get("results"):
            text.append(_report.markdown(parts[name]["results"]).replace(f"# {name}", f"## {name}", 1).strip())
    if rates := list(utilisation(parts)):
        head = ["| part | network | batch | row | TFLOP/s | of the bfloat16 ceiling |", "|---|---|---|---|---|---|"]
        text += ["## Products per second", "\n".join(head + rates)]
    for name, table in parts.get("profile", {}).get("tables", {}).items():
        lines = (
            [table]
            if isinstance(table, str)
            else [f"{ms:9.3f} ms {share:6.1%} {n:5d}  {key}" for key, n, ms, share in table]
        )
        text += [f"## Profile: {name}", "\n".join(["```", *lines, "```"])]
    text.append(f"Settings: {', '.join(f'{key} {value}' for key, value in settings.items())}.")
    return "\n\n".join(text) + "\n"


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def without_output(value: Any) -> Any:
    """Logs stay in the parts' own files."""
    if isinstance(value, dict):
        return {key: without_output(item) for key, item in value.items() if key != "output"}
    return [without_output(item) for item in value] if isinstance(value, list) else value


def main(folder: Path) -> None:
    parts = collect(folder)
    device = next((part["device"] for part in parts.values()), "cpu")
    results = (part["results"]["settings"] for part in parts.values() if part.get("results"))
    settings = {**next(results, _machine.settings(torch.device(device))), "triton": triton_version()}
    settings.pop("rounds", None)
    path = folder / f"gpu-report-{_machine.slug(settings)}.json"
    write(path, {"settings": settings, "parts": {name: without_output(part) for name, part in parts.items()}})
    path.with_suffix(".md").write_text(page(parts, settings), encoding="utf-8")
    for name in ("networks", "training", "sampling"):
        results = parts.get(name, {}).get("results")
        if results:
            chart = path.with_name(path.stem.replace("gpu-report", f"gpu-report-{name}") + ".png")
            print(_report.chart(results, chart) or str(chart))
    print(path, path.with_suffix(".md"), sep="\n")
    for name in ("networks", "training", "sampling"):
        if parts.get(name, {}).get("results"):
            print(f"\n{name}", *_report.table(parts[name]["results"]), sep="\n")
    print("", *status(parts), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
