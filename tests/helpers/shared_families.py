"""Every tiny family, in one process and under tensor parallelism in two; not part of the test suite, because it takes
a minute on two processors:

    torchrun --nproc-per-node 2 tests/helpers/shared_families.py [MODEL_TYPE ...]

Prints the largest difference of log-probabilities and of attention, per head, or why a family is refused.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from families import FAMILIES, Family
from PIL import Image
from tiny_vlm import write_noise_images
from transformers.utils import logging

from lad_pl import PromptSpec, UserError, VisionLanguageModel, VLMSpec
from lad_pl.data.permutations import random_permutations
from lad_pl.types import Evidence, PermutedSample, Sample


def evidence(folder: Path, pictures: list[Image.Image], processes: int) -> tuple[str, Evidence]:
    """Fingerprint of the weights, and evidence of all layers with attention under three orders."""
    vlm = VisionLanguageModel.load(VLMSpec(str(folder), dtype="float32", tensor_parallel=processes))
    sample = Sample("0", ("a", "b", "c"), "A dog lies on the grass.", 2)
    encoder = vlm.encoder(PromptSpec(image_size=None))
    batch = encoder([PermutedSample(sample, 0, random_permutations(3, 3), tuple(pictures))])
    layers = [layer for layer, module in enumerate(vlm.layers.attention) if module is not None]
    return vlm.fingerprint(), vlm.evidence(batch, encoder.answer_trie(3), layers)


def outcome(family: Family, folder: Path) -> str:
    """What tensor parallelism changes."""
    if dist.get_rank() == 0:
        family.build(folder / "model")
        (folder / "pictures").mkdir()
        write_noise_images(folder / "pictures", 3, sizes=family.sizes)
    dist.barrier()
    pictures = [Image.open(path).convert("RGB") for path in sorted((folder / "pictures").iterdir())]
    weights, whole = evidence(folder / "model", pictures, 1)
    try:
        shared_weights, shared = evidence(folder / "model", pictures, 2)
    except UserError as error:
        return f"refused: {error}"
    assert weights == shared_weights
    differences = [
        float((getattr(whole, name) - getattr(shared, name)).abs().max()) for name in ("log_probs", "attention")
    ]
    assert max(differences) < 1e-5, differences
    return "log-probabilities {:.0e}, attention {:.0e}".format(*differences)


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    shared_folder = [tempfile.mkdtemp(prefix="lad_pl_families_")]
    dist.broadcast_object_list(shared_folder)
    for family in FAMILIES:
        if not names or family.name in names:
            folder = Path(shared_folder[0]) / family.name
            folder.mkdir(exist_ok=True)
            result = outcome(family, folder)
            if dist.get_rank() == 0:
                print(f"{family.name}: {result}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
