"""The day that prompts show, where a chat template writes one: that of the calibration, whatever the day is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lad_pl.calibrate import load_calibration
from lad_pl.evidence.store import recorded_settings
from lad_pl.provenance import first_difference
from lad_pl.run.folder import RunFolder
from lad_pl.vlm.encoder import PromptEncoder


def prompt_date(
    encoder: PromptEncoder, weights: str, stage: str, folder: RunFolder, provenance: Mapping[str, Any] | None
) -> str | None:
    """The day that a stage's prompts are to show, as YYYY-MM-DD: that of the calibration, or of passes stored for it.

    Args:
        encoder: of today's prompts.
        weights: digest of the model's weights.
        stage: fit, or one that needs a calibration.
        folder: of the run.
        provenance: of the calibration in use; None if it is to be that of the folder.

    Returns:
        today if neither is there; None if the chat template writes no date.

    Raises:
        UserError: the folder's calibration cannot be read.
    """
    if encoder.date is None:
        return None
    if stage == "fit":
        return _date_of_passes(folder, {"weights": weights, "prompt": encoder.prompt.settings()}) or encoder.date
    if provenance is None:
        provenance = load_calibration(folder.calibration)[1] if folder.calibration.is_file() else {}
    return provenance.get("date", encoder.date)


def _date_of_passes(folder: RunFolder, settings: dict[str, Any]) -> str | None:
    """The day of stored calibration passes of this model and prompt, whether or not all of them are there."""
    wanted = json.loads(json.dumps(settings))  # as it is read back: tuples become lists
    for stored in recorded_settings(folder.evidence("fit")):
        if "date" in stored and not first_difference({name: stored.get(name) for name in wanted}, wanted):
            return stored["date"]
    return None
