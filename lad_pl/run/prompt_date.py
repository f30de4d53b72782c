"""The day that prompts show, where a chat template writes one: that of the calibration, whatever the day is."""

from __future__ import annotations

import json

from lad_pl.evidence.store import recorded_settings
from lad_pl.provenance import first_difference
from lad_pl.run.folder import RunFolder
from lad_pl.vlm.encoder import PromptEncoder


def date_of_passes(folder: RunFolder, encoder: PromptEncoder, weights: str) -> str | None:
    """The day that the calibration passes stored in a folder show, whether or not all of them are there.

    Args:
        folder: of the run.
        encoder: of today's prompts.
        weights: digest of the model's weights.

    Returns:
        YYYY-MM-DD; None if there are no passes of this model and prompt, or the chat template writes no date.
    """
    if encoder.date is None:
        return None
    # As it is read back: tuples become lists.
    wanted = json.loads(json.dumps({"weights": weights, "prompt": encoder.prompt.settings()}))
    for stored in recorded_settings(folder.evidence("fit")):
        if "date" in stored and not first_difference({name: stored.get(name) for name in wanted}, wanted):
            return stored["date"]
    return None
