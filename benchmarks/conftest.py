"""Benchmarks are bench_*.py files; helpers in ops/ and networks/ are importable."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("ops", "networks")]
