"""Shared test set-up: tests/ itself is importable, so that helpers such as golden_cases have one copy."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
