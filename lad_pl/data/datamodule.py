"""The LightningDataModule: which samples are for calibration, validation, test and prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from lad_pl.data.annotations import digest, question_key, read_annotations, sample_key
from lad_pl.data.batches import (
    EncodeUnlessEmpty,
    LoaderSpec,
    LoadImage,
    ReplicaSampler,
    SampleBatches,
    plan_batches,
    quiet_when_stopped,
)
from lad_pl.data.image_names import check_distinct, check_inside, fitting_folder
from lad_pl.data.images import ends_digest, file_digest, load_photo, raise_broken, size_of
from lad_pl.data.permutations import Permutation, cyclic_shifts, random_permutations
from lad_pl.errors import UserError, check_at_least
from lad_pl.provenance import short_digest
from lad_pl.types import Sample

Split = list[Sample]


class MultiImageData(pl.LightningDataModule):
    """Samples from annotation files and an image folder.

    ``fit`` takes the calibration samples, each under its N cyclic shifts; ``test``, ``validate`` and ``predict`` take
    samples under T permutations. No sample of ``test`` and ``validate`` asks a calibration sample's question (the same
    caption and correct image), unless this is allowed by name.

    Args:
        annotations: JSON file of samples: a list of {id, image_ids, index, caption}; index is 0-based.
        images: folder that the image names are relative to; the annotation file's own folder if unset.
        calibration_annotations: another file to take the calibration samples from.
        validation_annotations: file of the samples that ``validate`` uses; choose settings there, not on test samples.
        num_calibration: how many samples to calibrate on; with 0, only the calibration in use holds samples back.
        calibration_offset: index of the first calibration sample in its file.
        num_test: how many of the remaining samples to test on, or of all to predict on; all if unset.
        allow_calibration_in_test: let calibration samples be test samples too, as the published code does.
        allow_outside: let image names lead out of the image folder.
        num_permutations: T, the orders in which every test sample is shown: the given one, then random ones.
        permutation_seed: seed of the random orders.
        batch_size: samples per batch, each with its T permutations (N shifts in ``fit``); auto takes as many as
            ``batch_tokens`` hold. A batch that does not fit into memory is halved.
        batch_tokens: the most tokens that go through the model together where ``batch_size`` is auto.
        num_workers: processes that decode and encode ahead of the model; 0 does it in the main process.
        image_check: how the images of a stage are checked before the model is loaded: by their headers (and decoded
            where a file may be cut off), or full, which decodes every image.
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
        allow_outside: bool = False,
        num_permutations: int = 5,
        permutation_seed: int = 42,
        batch_size: int | Literal["auto"] = 1,
        batch_tokens: int = 16384,
        num_workers: int = 0,
        image_check: Literal["header", "full"] = "header",
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
        self.allow_outside = allow_outside
        self.num_permutations = num_permutations
        self.permutation_seed = permutation_seed
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.num_workers = num_workers
        self.image_check = image_check
        self.samples: Split = []
        """The samples of the stage in progress; a batch's ``sample_index`` are indices into it."""
        self.orders: tuple[Permutation, ...] = ()
        """The orders in which the stage in progress shows every sample."""
        self.loader_specs: tuple[LoaderSpec, ...] = ()
        """One for each dataloader of the stage in progress; set by the LightningModule."""
        self.before_loaders: Callable[[], None] | None = None
        """Called once before the stage's dataloaders are made, with the calibration loaded; set by the module."""
        self.num_held_back = 0
        """How many samples of the stage in progress are left out because they ask a calibration sample's question."""
        self._num_read = 0
        self._calibrated: set[str] = set()
        self._sound: set[Path] = set()
        self._stage = ""
        self._settings: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._contents: dict[str, str | None] = {}

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
        self._stage, self._calibrated, self.before_loaders, self._contents = stage, set(), None, {}
        self._choose_samples()
        tested = random_permutations(self.num_candidates, self.num_permutations, self.permutation_seed)
        self.orders = cyclic_shifts(self.num_candidates) if stage == "fit" else tested
        self.loader_specs = (LoaderSpec(self.orders),)

    def _choose_samples(self) -> None:
        stage, self._settings, self._digests, self.num_held_back = self._stage, {}, {}, 0
        splits = {"fit": self.calibration_samples, "validate": self.validation_samples, "predict": self.all_samples}
        self.samples = splits.get(stage, self.test_samples)()
        if not self.samples:
            raise UserError("data.num_calibration is 0, and fit needs at least one sample to calibrate on.")
        unknown = [sample.id for sample in self.samples if sample.target is None]
        if unknown and stage != "predict":
            raise UserError(f"Sample {unknown[0]} has no index, and {stage} needs the correct answer; use predict.")
        self.check_names()
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
        """The samples of the validation file that ask no calibration sample's question."""
        if self.validation_annotations is None:
            raise UserError("There is no validation set; name its file with data.validation_annotations.")
        samples = self._without_calibration(read_annotations(self.validation_annotations))
        if not samples:
            raise UserError(f"All samples of {self.validation_annotations} ask a calibration sample's question.")
        return samples

    def test_samples(self) -> Split:
        """The first ``num_test`` samples, in the file's order, that ask no calibration sample's question."""
        samples = self._without_calibration(read_annotations(self.annotations))
        return self._first(samples, f"leaves {len(samples)} samples beside the {self.num_held_back} held back")

    def all_samples(self) -> Split:
        """Every sample of the file, for prediction; the first ``num_test`` of them."""
        samples = read_annotations(self.annotations)
        return self._first(samples, f"has {len(samples)} samples")

    def question_keys(self, sample: Sample) -> list[str]:
        """Fingerprints of what a sample asks: caption and correct image, by the image's name and by its file."""
        if sample.target is None:
            return []
        content = self._content_of(sample.images[sample.target])
        return [question_key(sample), *([question_key(sample, content)] if content else [])]

    def asked(self) -> dict[str, list[str]]:
        """What the samples of the stage in progress ask, for a calibration's provenance: see :meth:`hold_back`."""
        keys = [key for sample in self.samples for key in self.question_keys(sample)]
        return {"calibration_samples": list(map(sample_key, self.samples)), "calibration_questions": keys}

    def hold_back(self, provenance: Mapping[str, Any]) -> None:
        """Leave out every sample of ``test`` or ``validate`` that asks a calibration sample's question.

        How many is printed, unless they are just the ``num_calibration`` samples of the test file.

        A question is a caption and its correct image. It is the same in whatever file, with whatever other images:
        sets that were built together, such as COCO's random and adversarial ones, share their questions.

        Args:
            provenance: of the calibration in use, with the entries of :meth:`asked`; those of an earlier version lack
                ``calibration_questions``.

        Raises:
            UserError: the samples that ``num_calibration`` reserves are none of the calibration's, or too few are left.
        """
        if self._stage not in ("test", "validate") or self.allow_calibration_in_test:
            return
        self._calibrated = {*provenance["calibration_samples"], *provenance.get("calibration_questions", ())}
        same_file = self._stage == "test" and self.calibration_annotations == self.annotations
        reserved = self._reserved() if same_file else []
        if reserved and not any(self._calibrated.intersection(self._keys(sample)) for sample in reserved):
            raise UserError(
                f"{len(reserved)} samples of {self.annotations} are held back for calibration, but the "
                "calibration was made on others; name their file with --data.calibration_annotations, or hold none "
                "back with --data.num_calibration 0."
            )
        self._choose_samples()
        if self.num_held_back > len(reserved):  # more than the samples that the options name
            found = f"{self.num_held_back} of {self._num_read} samples ask a calibration sample's question"
            rank_zero_only(print)(f"{found} and are held back.")

    def _reserved(self) -> Split:
        return self.calibration_samples() if self.num_calibration else []

    def _keys(self, sample: Sample) -> list[str]:
        return [sample_key(sample), *self.question_keys(sample)]

    def _without_calibration(self, samples: Split) -> Split:
        """The samples that ask no question of the calibration in use, nor of the samples that are for calibration."""
        if self.allow_calibration_in_test:
            return samples
        asked = {key for sample in self._reserved() for key in self.question_keys(sample)} | self._calibrated
        keys = [set(self._keys(sample)) for sample in samples]
        # A calibration without question keys, of an earlier version, is known by its samples, and they tell the rest.
        asked |= set().union(*(own for own in keys if own & asked))
        others = [sample for sample, own in zip(samples, keys, strict=True) if not own & asked]
        self._num_read, self.num_held_back = len(samples), len(samples) - len(others)
        return others

    def _first(self, samples: Split, found: str) -> Split:
        chosen = samples[: self.num_test]
        if not chosen or len(chosen) < (self.num_test or 0):
            asked = f"data.num_test asks for {self.num_test}" if self.num_test else "add samples"
            raise UserError(f"{self.annotations} {found}; {asked}.")
        return chosen

    def image_loader(self, side: int | None) -> LoadImage:
        """The function that decodes one image by its name, as RGB, resized to ``side`` pixels square if given."""
        return partial(load_photo, folder=self.images, side=side)

    def check_names(self) -> None:
        """Raise a UserError for an image name that leads out of the folder, or two names of one image in a sample."""
        if not self.allow_outside:
            check_inside(self.samples, self.images)
        fitting = fitting_folder(self.samples[0].images, self.images)
        if fitting is not None:
            first = self.samples[0]
            raise UserError(
                f"Sample {first.id}: image file {self.images / first.images[0]} does not exist, but "
                f"{fitting / first.images[0]} does; name that folder: --data.images {fitting}"
            )
        check_distinct(self.samples, self.images)

    def check_images(self) -> None:
        """Check every image file of this stage that has not been checked before, as ``image_check`` says.

        Raises:
            UserError: files are missing or broken; it names the first ten with their samples.
        """
        files: dict[Path, str] = {}
        for sample in self.samples:
            for name in sample.images:
                files.setdefault(self.images / name, f"Sample {sample.id}: image file ")
        files = {path: sample for path, sample in files.items() if path not in self._sound}
        raise_broken(files, self.image_check == "full", "fix this, or name the image folder with data.images")
        self._sound |= files.keys()

    def settings(self) -> dict[str, Any]:
        """Digests of the samples and images of the stage in progress, and its permutations, as plain values."""
        if not self._settings:  # opens every image file
            contents = short_digest([self._identified(sample) for sample in self.samples])
            of_images = {"images": self.image_digest(), "image_contents": contents}
            self._settings = {"samples": digest(self.samples), **of_images}
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
        if not self._digests:  # all images of the stage, several at a time
            names = list(dict.fromkeys(name for sample in self.samples for name in sample.images))
            with ThreadPoolExecutor() as pool:
                self._digests = dict(zip(names, pool.map(self.digest_of, names), strict=True))
        return self._digests[name]

    def image_key(self, name: str) -> str:
        """What an image is called where its evidence is looked up."""
        return name

    def digest_of(self, name: str) -> str:
        """A digest of an image's file; of images that are no files, what :meth:`image_digest` says."""
        return self._content_of(name) or self.image_digest()

    def _content_of(self, name: str) -> str | None:
        """A digest of an image's file, read once in a stage; None if it is drawn, or missing (told elsewhere)."""
        if name not in self._contents:
            path = self.images / name
            try:
                self._contents[name] = file_digest(path) if path.is_file() else None
            except OSError:
                self._contents[name] = None
        return self._contents[name]

    def image_digest(self) -> str:
        """A short digest of the images of this stage: their names, sizes, and the ends of their files.

        Results of earlier versions are known by it; what changes within a file, :meth:`digest_of` tells.
        """
        names = sorted({name for sample in self.samples for name in sample.images})
        return short_digest([[name, ends_digest(self.images / name)] for name in names])

    # -------------------------------------------------------------------------------------------- the dataloaders

    def train_dataloader(self) -> DataLoader[Any]:
        """Calibration samples, each under its N cyclic shifts."""
        self._prepare()
        return self._loader(self.loader_specs[0])

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Validation samples under T permutations; nothing during ``fit``, which only calibrates."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return [] if fitting else self.test_dataloader()

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Test samples under T permutations: one loader for each of the module's methods."""
        self._prepare()
        return [self._loader(spec) for spec in self.loader_specs]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Samples under T permutations; their answers need not be known."""
        return self.test_dataloader()

    def _prepare(self) -> None:
        prepare, self.before_loaders = self.before_loaders, None
        if prepare is not None:
            prepare()

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
            worker_init_fn=quiet_when_stopped,
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
