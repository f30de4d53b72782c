"""The LightningDataModule: which samples are for calibration, validation, test and prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lad_pl.data.annotations import digest, read_annotations, sample_key
from lad_pl.data.batches import EncodeUnlessEmpty, LoaderSpec, LoadImage, ReplicaSampler, SampleBatches, plan_batches
from lad_pl.data.images import file_digest, load_photo, size_of
from lad_pl.data.permutations import Permutation, cyclic_shifts, random_permutations
from lad_pl.errors import UserError, check_at_least
from lad_pl.provenance import short_digest
from lad_pl.types import Sample

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
        calibration_offset: index of the first calibration sample in its file.
        num_test: how many of the remaining samples to test on, or of all to predict on; all if unset.
        allow_calibration_in_test: let calibration samples be test samples too, as the published code does.
        num_permutations: T, the orders in which every test sample is shown: the given one, then random ones.
        permutation_seed: seed of the random orders.
        batch_size: samples per batch, each with its T permutations (N shifts in ``fit``); auto takes as many as
            ``batch_tokens`` hold. A batch that does not fit into memory is halved.
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
        self.orders: tuple[Permutation, ...] = ()
        """The orders in which the stage in progress shows every sample."""
        self.loader_specs: tuple[LoaderSpec, ...] = ()
        """One for each dataloader of the stage in progress; set by the LightningModule's ``setup``."""
        self._stage = ""
        self._settings: dict[str, Any] = {}
        self._digests: dict[str, str] = {}

    @property
    def results_folder(self) -> str:
        """Folder within the run folder for the results: the run folder itself."""
        return ""

    # ------------------------------------------------------------------------------------------------- the splits

    def setup(self, stage: str) -> None:
        """Read the annotation files and choose the samples of ``stage`` (fit, validate, test, predict).

        Raises:
            UserError: a file or a number does not fit; see :func:`lad_pl.data.read_annotations`.
        """
        self._check_numbers()
        self._stage, self._settings, self._digests = stage, {}, {}
        splits = {"fit": self.calibration_samples, "validate": self.validation_samples, "predict": self.all_samples}
        self.samples = splits.get(stage, self.test_samples)()
        if not self.samples:
            raise UserError("data.num_calibration is 0, and fit needs at least one sample to calibrate on.")
        unknown = [sample.id for sample in self.samples if sample.target is None]
        if unknown and stage != "predict":
            raise UserError(f"Sample {unknown[0]} has no index, and {stage} needs the correct answer; use predict.")
        tested = random_permutations(self.num_candidates, self.num_permutations, self.permutation_seed)
        self.orders = cyclic_shifts(self.num_candidates) if stage == "fit" else tested
        self.loader_specs = (LoaderSpec(self.orders),)
        self.check_images()

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
        """The samples of the test file that are kept for calibration, or have a calibration sample's question.

        Sets that were built together, such as COCO's random and adversarial ones, share captions and correct images.
        """
        if self.allow_calibration_in_test or self.num_calibration == 0:
            return []
        calibrated = self.calibration_samples()
        if self.calibration_annotations == self.annotations:
            return calibrated
        questions = {_question(sample) for sample in calibrated}
        return [sample for sample in read_annotations(self.annotations) if _question(sample) in questions]

    def check_held_out(self, calibrated: Collection[str]) -> None:
        """Refuse to test on calibration samples, or to hold back samples that are not the calibration's.

        Args:
            calibrated: :func:`~lad_pl.data.annotations.sample_key` of every calibration sample.

        Raises:
            UserError: a sample of the stage in progress is a calibration sample, and this is not allowed by name; or
                the samples held back for calibration are not those of the calibration.
        """
        calibrated = set(calibrated)
        shared = [sample.id for sample in self.samples if sample_key(sample) in calibrated]
        if shared and not self.allow_calibration_in_test:
            raise UserError(
                f"Sample {shared[0]} was used for calibration; test on others, or allow it by name with "
                "--data.allow_calibration_in_test true."
            )
        same_file = self.calibration_annotations == self.annotations
        held_back = self.held_back() if self._stage == "test" and same_file else []
        if held_back and not any(sample_key(sample) in calibrated for sample in held_back):
            raise UserError(
                f"{len(held_back)} samples of {self.annotations} are held back for calibration, but the "
                "calibration was made on others; name their file with --data.calibration_annotations, or hold none "
                "back with --data.num_calibration 0."
            )

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
                        f"Sample {sample.id}: image file {self.images / name} does not exist; fix the sample, or name "
                        "the image folder with data.images."
                    )

    def settings(self) -> dict[str, Any]:
        """Digests of the samples and images of the stage in progress, and its permutations, as plain values."""
        if not self._settings:  # opens every image file
            self._settings = {"samples": digest(self.samples), "images": self.image_digest()}
            if self._stage != "fit":
                self._settings |= {name: getattr(self, name) for name in ("num_permutations", "permutation_seed")}
        return self._settings

    def chosen(self) -> dict[str, Any]:
        """The options that choose the samples and images of the stage in progress, as plain values."""
        options = {name: getattr(self, name) for name in _CHOOSE[self._stage]}
        options |= {"num_test": self.num_test or "all"} if "num_test" in options else {}
        paths = {name: str(Path(path).resolve()) for name, path in options.items() if name.endswith("annotations")}
        return {**options, **paths, "images": str(self.images.resolve())}

    def keys(self, by_id: bool = False) -> dict[str, str]:
        """A digest of each sample of the stage in progress, by which its evidence is known, and the sample's id.

        It is of everything that the prompts depend on: the names and files of the images, in the annotation's order,
        the caption, and the correct answer, which the evidence repeats.

        Args:
            by_id: and of the sample's id, for methods whose prompts depend on it.
        """
        found = [
            short_digest([self._identified(s), s.caption, s.target, *([s.id] if by_id else [])]) for s in self.samples
        ]
        return dict(zip(numbered(found), (sample.id for sample in self.samples), strict=True))

    def _identified(self, sample: Sample) -> list[tuple[str, str]]:
        """Name and digest of each image of a sample."""
        return [(self.image_key(name), self._digest_once(name)) for name in sample.images]

    def _digest_once(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = self.digest_of(name)
        return self._digests[name]

    def image_key(self, name: str) -> str:
        """What an image is called where its evidence is looked up."""
        return name

    def digest_of(self, name: str) -> str:
        """A digest of an image: of its file's size and of the ends of the file."""
        return file_digest(self.images / name)

    def image_digest(self) -> str:
        """A short digest of the images of this stage: their names, sizes, and the ends of their files."""
        names = sorted({name for sample in self.samples for name in sample.images})
        return short_digest([[name, self._digest_once(name)] for name in names])

    # -------------------------------------------------------------------------------------------- the dataloaders

    def train_dataloader(self) -> DataLoader[Any]:
        """Calibration samples, each under its N cyclic shifts."""
        return self._loader(self.loader_specs[0])

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Validation samples under T permutations; nothing during ``fit``, which only calibrates."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return [] if fitting else self.test_dataloader()

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Test samples under T permutations: one loader for each of the module's methods."""
        return [self._loader(spec) for spec in self.loader_specs]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Samples under T permutations; their answers need not be known."""
        return self.test_dataloader()

    def _loader(self, spec: LoaderSpec) -> DataLoader[Any]:
        size = None if self.batch_size == "auto" else self.batch_size
        planned = plan_batches(self._lengths(spec), len(spec.orders), size, self.batch_tokens)
        waiting = [[sample for sample in batch if sample not in spec.done] for batch in planned]
        dataset = SampleBatches(
            self.samples, list(filter(None, waiting)), spec.orders, self.image_loader(spec.image_size)
        )
        return DataLoader(
            dataset,
            batch_size=None,  # an item is a batch
            sampler=ReplicaSampler(dataset, *spec.replica),
            num_workers=self.num_workers,
            collate_fn=EncodeUnlessEmpty(spec.encode),
            pin_memory=False,
        )

    def _lengths(self, spec: LoaderSpec) -> list[int]:
        """Tokens of each sample's prompts; zeros where a batch is one sample and nothing depends on it."""
        if spec.lengths is None or self.batch_size == 1:
            return [0] * len(self.samples)
        side = spec.image_size
        names = {name for sample in self.samples for name in sample.images}
        sizes = {name: self.image_size(name) if side is None else (side, side) for name in names}
        return [spec.lengths(sample, [sizes[name] for name in sample.images]) for sample in self.samples]

    def image_size(self, name: str) -> tuple[int, int]:
        """Width and height of an image in pixels, from its file's header."""
        return size_of(self.images / name)

    def _check_numbers(self) -> None:
        for minimum, names in ((0, _FROM_ZERO), (1, _FROM_ONE)):
            numbers = {f"data.{name}": getattr(self, name) for name in names}
            check_at_least(minimum, **{name: value for name, value in numbers.items() if value != "auto"})


_CALIBRATION = ("calibration_annotations", "num_calibration", "calibration_offset")
_CHOOSE = {
    "fit": _CALIBRATION,
    "validate": ("validation_annotations",),
    "test": ("annotations", "num_test", *_CALIBRATION, "allow_calibration_in_test"),
    "predict": ("annotations", "num_test"),
}
"""The options that choose the samples of each stage."""
_FROM_ZERO = ("num_calibration", "calibration_offset", "num_workers")
_FROM_ONE = ("num_test", "num_permutations", "batch_size", "batch_tokens")


def numbered(digests: Iterable[str]) -> list[str]:
    """Digests made unique: those that occurred before get a number.

    >>> numbered(["a", "b", "a"])
    ['a', 'b', 'a#2']
    """
    seen: Counter[str] = Counter()
    unique = []
    for digest_ in digests:
        seen[digest_] += 1
        unique.append(digest_ if seen[digest_] == 1 else f"{digest_}#{seen[digest_]}")
    return unique


def _question(sample: Sample) -> tuple[str, str | None]:
    return sample.caption, None if sample.target is None else sample.images[sample.target]
