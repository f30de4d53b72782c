"""The LightningDataModule: which samples are for calibration, validation, test and prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lad_pl.data.annotations import read_annotations
from lad_pl.data.batches import LoadImage, SampleBatches, Shard, plan_batches
from lad_pl.data.images import file_digest, load_photo, size_of
from lad_pl.data.permutations import Permutation, cyclic_shifts, random_permutations
from lad_pl.errors import UserError
from lad_pl.provenance import short_digest
from lad_pl.types import PermutedSample, Sample
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.prompt_length import PromptLengths

Split = list[Sample]


class MultiImageData(pl.LightningDataModule):
    """Samples from annotation files and an image folder.

    ``fit`` takes the calibration samples, each under its N cyclic shifts; ``test``, ``validate`` and ``predict`` take
    samples under T permutations. Test samples never include calibration samples unless asked for by name.

    Args:
        annotations: JSON file of samples: a list of {id, image_ids, index, caption}; index is 0-based.
        images: folder that the image names are relative to; the annotation file's own folder if unset.
        calibration_annotations: another file to take the calibration samples from.
        validation_annotations: file of the samples that ``validate`` uses; choose settings there, not on test samples.
        num_calibration: how many samples to calibrate on; 0 holds none back from the test.
        calibration_offset: place of the first calibration sample in its file.
        num_test: how many of the remaining samples to test on, or of all to predict on; all if unset.
        allow_calibration_in_test: let calibration samples be test samples too, as the published code does.
        num_permutations: T, the orders in which every test sample is shown: the given one, then random ones.
        permutation_seed: seed of the random orders.
        batch_size: samples per batch, whose T permutations (N shifts in ``fit``) travel with them; auto takes as many
            as ``batch_tokens`` hold. Whatever it is, a batch that does not fit into memory is cut in halves.
        batch_tokens: the most tokens that go through the model together where ``batch_size`` is auto.
        num_workers: processes that decode and encode ahead of the model; 0 does it in the main process.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        calibration_annotations: str | None = None,
        validation_annotations: str | None = None,
        num_calibration: int = 5,
        calibration_offset: int = 0,
        num_test: int | None = None,
        allow_calibration_in_test: bool = False,
        num_permutations: int = 5,
        permutation_seed: int = 42,
        batch_size: int | Literal["auto"] = 1,
        batch_tokens: int = 16384,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.annotations = annotations
        self.images = Path(images) if images is not None else Path(annotations).parent
        self.calibration_annotations = calibration_annotations or annotations
        self.validation_annotations = validation_annotations
        self.num_calibration = num_calibration
        self.calibration_offset = calibration_offset
        self.num_test = num_test
        self.allow_calibration_in_test = allow_calibration_in_test
        self.num_permutations = num_permutations
        self.permutation_seed = permutation_seed
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.num_workers = num_workers
        self.samples: Split = []
        """The samples of the stage in progress; a batch's ``sample_index`` are indices into it."""

    @property
    def results_folder(self) -> str:
        """Folder within the run folder that results go to: the run folder itself."""
        return ""

    # ------------------------------------------------------------------------------------------------- the splits

    def setup(self, stage: str) -> None:
        """Read the annotation files and choose the samples of ``stage`` (fit, validate, test, predict).

        Raises:
            UserError: a file or a number does not fit; see :func:`lad_pl.data.read_annotations`.
        """
        self._check_numbers()
        splits = {"fit": self.calibration_samples, "validate": self.validation_samples, "predict": self.all_samples}
        self.samples = splits.get(stage, self.test_samples)()
        if not self.samples:
            raise UserError("data.num_calibration is 0, and fit needs at least one sample to calibrate on.")
        unknown = [sample.id for sample in self.samples if sample.target is None]
        if unknown and stage != "predict":
            raise UserError(f"Sample {unknown[0]} has no index, and {stage} needs the right answer; use predict.")
        random_permutations(self.num_candidates, self.num_permutations)  # fails early if there are not so many
        self.check_images()

    @property
    def batch_samples(self) -> int | None:
        """Samples per batch; None where a number of tokens decides."""
        return None if self.batch_size == "auto" else self.batch_size

    @property
    def num_candidates(self) -> int:
        """N of the stage in progress."""
        return self.samples[0].num_candidates

    def calibration_samples(self) -> Split:
        """``num_calibration`` samples from ``calibration_offset`` on."""
        samples = read_annotations(self.calibration_annotations)
        chosen = samples[self.calibration_offset : self.calibration_offset + self.num_calibration]
        if len(chosen) < self.num_calibration:
            raise UserError(
                f"{self.calibration_annotations} has {len(samples)} samples, too few for {self.num_calibration} "
                f"calibration samples from number {self.calibration_offset} on (data.num_calibration, "
                "data.calibration_offset)."
            )
        return chosen

    def validation_samples(self) -> Split:
        """All samples of the validation file."""
        if self.validation_annotations is None:
            raise UserError("There is no validation set; name its file with data.validation_annotations.")
        return read_annotations(self.validation_annotations)

    def test_samples(self) -> Split:
        """The samples that are not for calibration, in the file's order; the first ``num_test`` of them."""
        held_back = {sample.id for sample in self.held_back()}
        samples = [sample for sample in read_annotations(self.annotations) if sample.id not in held_back]
        return self._first(samples, f"leaves {len(samples)} samples beside the {len(held_back)} for calibration")

    def all_samples(self) -> Split:
        """Every sample of the file, for prediction; the first ``num_test`` of them."""
        samples = read_annotations(self.annotations)
        return self._first(samples, f"has {len(samples)} samples")

    def held_back(self) -> Split:
        """The samples of the test file that are kept for calibration, or ask what a calibration sample asks.

        Sets that were built together, such as COCO's random and adversarial ones, share captions and right images.
        """
        if self.allow_calibration_in_test or self.num_calibration == 0:
            return []
        calibrated = self.calibration_samples()
        if self.calibration_annotations == self.annotations:
            return calibrated
        asked = {_question(sample) for sample in calibrated}
        return [sample for sample in read_annotations(self.annotations) if _question(sample) in asked]

    def _first(self, samples: Split, found: str) -> Split:
        chosen = samples[: self.num_test]
        if not chosen or len(chosen) < (self.num_test or 0):
            asked = f"data.num_test asks for {self.num_test}" if self.num_test else "add samples"
            raise UserError(f"{self.annotations} {found}; {asked}.")
        return chosen

    def image_loader(self, side: int | None) -> LoadImage:
        """The function that decodes one image by its name, as RGB, resized to ``side`` pixels square if given."""
        return partial(load_photo, folder=self.images, side=side)

    def check_images(self) -> None:
        """Raise a UserError for the first image file of this stage that does not exist."""
        for sample in self.samples:
            for name in sample.images:
                if not (self.images / name).is_file():
                    raise UserError(
                        f"Sample {sample.id}: image file {self.images / name} does not exist; mend the sample, or name "
                        "the image folder with data.images."
                    )

    def image_digest(self) -> str:
        """A short digest of the images of this stage: their names, sizes, and the ends of their files."""
        names = sorted({name for sample in self.samples for name in sample.images})
        return short_digest([[name, file_digest(self.images / name)] for name in names])

    # -------------------------------------------------------------------------------------------- the dataloaders

    def train_dataloader(self) -> DataLoader[Any]:
        """Calibration samples, each under its N cyclic shifts."""
        return self._loaders(cyclic_shifts(self.num_candidates))[0]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Validation samples under T permutations; nothing during ``fit``, which only calibrates."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return [] if fitting else self.test_dataloader()

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Test samples under T permutations: one loader for each of the module's passes."""
        return self._loaders(random_permutations(self.num_candidates, self.num_permutations, self.permutation_seed))

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Test samples under T permutations; their answers need not be known."""
        return self.test_dataloader()

    def _loaders(self, permutations: tuple[Permutation, ...]) -> list[DataLoader[Any]]:
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if module is None:
            planned = plan_batches([0] * len(self.samples), len(permutations), self.batch_samples, self.batch_tokens)
            return [self._loader(permutations, planned, list, None)]
        loaders = []
        for a_pass in module.passes:
            orders = a_pass.way.orders(permutations)
            # Every process deals out the same list, even where a shared disk shows them different states of the store.
            done = module.trainer.strategy.broadcast(a_pass.done)
            planned = plan_batches(self._lengths(a_pass.encoder), len(orders), self.batch_samples, self.batch_tokens)
            waiting = [[sample for sample in batch if sample not in done] for batch in planned]
            encode = a_pass.way.encode(a_pass.encoder)
            loaders.append(self._loader(orders, list(filter(None, waiting)), encode, module.prompt.image_size))
        return loaders

    def _lengths(self, encoder: PromptEncoder) -> list[int]:
        """Tokens of each sample's prompts; all alike where a batch is a sample and nothing depends on it."""
        if self.batch_samples == 1:
            return [0] * len(self.samples)
        side, length = encoder.prompt.image_size, PromptLengths(encoder)
        sizes = {
            name: self.image_size(name) if side is None else (side, side) for s in self.samples for name in s.images
        }
        return [length(sample, [sizes[name] for name in sample.images]) for sample in self.samples]

    def image_size(self, name: str) -> tuple[int, int]:
        """Width and height of an image in pixels, from its file's header."""
        return size_of(self.images / name)

    def _loader(
        self,
        permutations: tuple[Permutation, ...],
        batches: Sequence[Sequence[int]],
        encode: Callable[[list[PermutedSample]], Any],
        side: int | None,
    ) -> DataLoader[Any]:
        dataset = SampleBatches(self.samples, batches, permutations, self.image_loader(side))
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        replicas, replica = module.replicas if module is not None else (1, 0)
        return DataLoader(
            dataset,
            batch_size=None,  # an item is a batch
            sampler=Shard(dataset, replicas, replica),
            num_workers=self.num_workers,
            collate_fn=EncodeUnlessEmpty(encode),
            pin_memory=False,
        )

    def _check_numbers(self) -> None:
        least = {"num_calibration": 0, "calibration_offset": 0, "num_permutations": 1, "batch_size": 1}
        for name, minimum in {**least, "batch_tokens": 1, "num_workers": 0}.items():
            if getattr(self, name) != "auto" and getattr(self, name) < minimum:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least {minimum}.")
        if self.num_test is not None and self.num_test < 1:
            raise UserError(f"data.num_test is {self.num_test}; it must be at least 1, or null for all.")


def _question(sample: Sample) -> tuple[str, str | None]:
    return sample.caption, None if sample.target is None else sample.images[sample.target]


class EncodeUnlessEmpty:
    """The function that makes model inputs of a batch of samples, in the data workers; of no samples it makes none."""

    def __init__(self, encode: Callable[[list[PermutedSample]], Any]) -> None:
        self.encode = encode

    def __call__(self, items: list[PermutedSample]) -> Any:
        """Encode one batch."""
        return self.encode(items) if items else []
