"""Benchmarks are bench_*.py files; the helper in networks/ is importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "networks"))
