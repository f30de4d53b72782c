"""Where the tests' inputs lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"
"""Golden results and photographs; tests that need them are skipped where they are not there."""
