"""Where the embedded demo's files lie: inside an installed wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

from lad_pl.errors import UserError

_PACKAGE = Path(__file__).parent


def asset(relative: str) -> Path:
    """Path of an embedded file or folder, such as ``configs/demo.yaml``.

    Raises:
        UserError: this installation does not carry it.
    """
    for root in (_PACKAGE / "assets", _PACKAGE.parent):
        if (root / relative).exists():
            return root / relative
    raise UserError(f"This installation lacks {relative}; install lad_pl anew, from a wheel or a full checkout.")
