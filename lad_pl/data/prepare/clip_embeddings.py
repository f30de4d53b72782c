"""CLIP embeddings of images and their captions, computed with open_clip and stored in shards, so that runs resume.

A store is a folder with ``manifest.json`` (the model) and ``shard-*.safetensors`` (embeddings and the keys of their
images). A key is made of name, file size and caption, so that a store serves any selection of images and only new ones
are computed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from lad_pl.data.batches import quiet_when_stopped
from lad_pl.data.images import open_image
from lad_pl.errors import UserError
from lad_pl.files import atomic_write
from lad_pl.provenance import first_difference, short_digest

SHARD_SIZE = 2048
"""Images per file of a store; an interruption costs the work of at most this many."""


@dataclass(frozen=True)
class ClipSpec:
    """A model of open_clip and its weights."""

    model: str = "ViT-L-14"
    """A name that open_clip knows, ``hf-hub:owner/name``, or ``local-dir:folder`` with open_clip_config.json."""
    pretrained: str | None = "openai"
    """A tag of the model's weights, or a local checkpoint file; unused with hf-hub: and local-dir:."""

    @property
    def brings_weights(self) -> bool:
        """Whether the model's name includes the location of its weights."""
        return self.model.startswith(("hf-hub:", "local-dir:"))

    def manifest(self) -> dict[str, Any]:
        """Identity of the model, by which embeddings are comparable: names, and the digest of a local checkpoint."""
        pretrained = None if self.brings_weights else self.pretrained
        return {"format": 1, "model": self.model, "pretrained": pretrained, "sha256": self._digest()}

    def _digest(self) -> str | None:
        if self.model.startswith("local-dir:"):
            files = sorted(path for path in Path(self.model.removeprefix("local-dir:")).glob("*") if path.is_file())
        else:
            files = [path for path in [Path(self.pretrained or "")] if path.is_file() and not self.brings_weights]
        digests = []
        for path in files:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return "-".join(digests) or None


@dataclass(frozen=True)
class Clip:
    """A loaded model with its image preprocessing and its tokenizer."""

    network: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    device: torch.device

    @torch.inference_mode()
    def embed(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Image and caption embeddings of a batch, float32 (B, D) of unit length, on the CPU."""
        image = self.network.encode_image(images.to(self.device))
        text = self.network.encode_text(self.tokenize(captions).to(self.device))
        return normalize(image.float(), dim=-1).cpu(), normalize(text.float(), dim=-1).cpu()


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of M images, in the requested order."""

    names: tuple[str, ...]
    images: Tensor
    """(M, D), float32, rows of unit length."""
    texts: Tensor
    """Embeddings of the captions, (M, D), float32, rows of unit length."""
    broken: Mapping[str, str]
    """Requested images whose files cannot be decoded: name and error."""
    computed: int
    """How many were not in the store before."""

    def of(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of some of the images, and of their captions."""
        rows = {name: row for row, name in enumerate(self.names)}
        order = [rows[name] for name in names]
        return self.images[order], self.texts[order]


def embed(
    captions: Mapping[str, str],
    folder: Path,
    store: Path,
    spec: ClipSpec,
    batch_size: int = 64,
    num_workers: int = 0,
    rebuild: bool = False,
    shard_size: int = SHARD_SIZE,
) -> Embeddings:
    """Embeddings of images and of one caption each, read from the store or computed and added to it.

    Args:
        captions: caption by image name; the model's tokenizer truncates long ones.
        folder: where the image files are.
        store: the store's folder; made if it does not exist.
        spec: the model; loaded only if an image is new.
        batch_size: images embedded at once.
        num_workers: processes that decode images; 0 does it in the main process.
        rebuild: delete a store of another model instead of refusing it.
        shard_size: images per file of the store.

    Raises:
        UserError: an image file is missing, the store is of another model, or the model cannot be loaded.
    """
    keys = {name: image_key(name, folder / name, caption) for name, caption in captions.items()}
    _open_store(store, spec.manifest(), rebuild)
    stored = {key for shard in _shards(store) for key in _shard_keys(shard)}
    missing = [name for name, key in keys.items() if key not in stored]
    broken: dict[str, str] = {}
    if missing:
        entries = [(name, keys[name], captions[name]) for name in missing]
        clip = load_clip(spec)
        broken = _compute(entries, folder, store, clip, batch_size, num_workers, shard_size)
    names = tuple(name for name in keys if name not in broken)
    images, texts = _collect(store, [keys[name] for name in names])
    return Embeddings(names, images, texts, broken, len(missing) - len(broken))


# ------------------------------------------------------------------------------------------------------ the model


def load_clip(spec: ClipSpec) -> Clip:
    """Load a model and its weights; checkpoints are read with ``weights_only``, so that they run no code.

    Raises:
        UserError: the model or its weights are unknown, cannot be downloaded, or do not belong together.
    """
    import open_clip

    pretrained = None if spec.brings_weights else spec.pretrained
    _check_names(spec)
    tag = open_clip.get_pretrained_cfg(spec.model.replace("/", "-"), pretrained) if pretrained else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    try:
        with _quiet():
            network, preprocess = open_clip.create_model_from_pretrained(
                spec.model,
                pretrained,
                device=device,
                # OpenAI's weights need their own activation; with the other one open_clip only warns.
                force_quick_gelu=bool(tag.get("quick_gelu")),
                weights_only=True,
            )
            tokenize = open_clip.get_tokenizer(spec.model)
    except Exception as error:  # open_clip, torch and the hub's client raise many kinds
        raise UserError(_load_failure(spec, bool(tag), error)) from error
    return Clip(network.eval(), preprocess, tokenize, device)


def _check_names(spec: ClipSpec) -> None:
    import open_clip

    if spec.brings_weights:
        return
    known = open_clip.list_models()
    if spec.model.replace("/", "-") not in known:
        near = difflib.get_close_matches(spec.model, known, n=3, cutoff=0.4)
        raise UserError(
            f"open_clip has no model '{spec.model}' (similar: {', '.join(near) or 'none'}); a model of your own is "
            "local-dir:FOLDER, with open_clip_config.json and the weights."
        )
    tags = open_clip.list_pretrained_tags_by_model(spec.model.replace("/", "-"))
    if not spec.pretrained or (spec.pretrained not in tags and not Path(spec.pretrained).is_file()):
        raise UserError(
            f"'{spec.pretrained}' is neither a checkpoint file nor weights of {spec.model}; "
            f"open_clip has {', '.join(tags) or 'none'}."
        )


def _load_failure(spec: ClipSpec, is_tag: bool, error: Exception) -> str:
    cause = shorten(str(error), 160, placeholder=" ...")
    if spec.model.startswith("hf-hub:"):
        return f"{spec.model} cannot be loaded ({cause}); offline, copy its folder here: local-dir:FOLDER."
    if is_tag:
        quick = (
            "" if "quickgelu" in spec.model or spec.pretrained != "openai" else f" with --model {spec.model}-quickgelu"
        )
        return (
            f"The weights '{spec.pretrained}' of {spec.model} cannot be downloaded ({cause}); fetch them elsewhere and "
            f"name the file: --pretrained open_clip_model.safetensors{quick}."
        )
    where = spec.model if spec.brings_weights else f"The checkpoint {spec.pretrained}"
    return f"{where} cannot be loaded as {spec.model} from plain tensors: {cause}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress open_clip's log of the error that is raised anyway, and its configuration of the root logger."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "QuickGELU mismatch")  # force_quick_gelu takes care of it
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.removeHandler(handler)


# -------------------------------------------------------------------------------------------------- the computation


Entry = tuple[str, str, str]
"""Name, key and caption of an image."""


class _Decoded(Dataset[tuple[int, Tensor | str]]):
    """Preprocessed images; for a broken one the error message."""

    def __init__(self, entries: Sequence[Entry], folder: Path, preprocess: Callable[[Image.Image], Tensor]) -> None:
        self.entries, self.folder, self.preprocess = entries, folder, preprocess

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.preprocess(open_image(self.folder / self.entries[index][0]))
        except UserError as error:
            return index, str(error)


def _compute(
    entries: Sequence[Entry],
    folder: Path,
    store: Path,
    clip: Clip,
    batch_size: int,
    num_workers: int,
    shard_size: int,
) -> dict[str, str]:
    """Write shards for ``entries``, each as soon as it is full; returns the errors of broken images."""
    shards = [range(len(entries))[start : start + shard_size] for start in range(0, len(entries), shard_size)]
    batches = [
        list(shard[start : start + batch_size]) for shard in shards for start in range(0, len(shard), batch_size)
    ]
    loader: DataLoader[Any] = DataLoader(
        _Decoded(entries, folder, clip.preprocess),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_separate,
        worker_init_fn=quiet_when_stopped,
    )
    ends = {shard[-1] for shard in shards}
    broken: dict[str, str] = {}
    parts: list[tuple[list[str], Tensor, Tensor]] = []
    with progress() as bar:
        task = bar.add_task("embeddings", total=len(entries))
        for indices, images, faults, last in loader:
            broken |= {entries[index][0]: fault for index, fault in faults.items()}
            if indices:
                embedded = clip.embed(images, [entries[index][2] for index in indices])
                parts.append(([entries[index][1] for index in indices], *embedded))
            if last in ends and parts:
                _write_shard(store, parts)
                parts = []
            bar.advance(task, len(indices) + len(faults))
    return broken


def _separate(items: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, dict[int, str], int]:
    """Indices and images of a batch, the errors of its broken ones, and the last index of all."""
    sound = {index: image for index, image in items if isinstance(image, Tensor)}
    faults = {index: fault for index, fault in items if isinstance(fault, str)}
    return list(sound), torch.stack(list(sound.values())) if sound else None, faults, items[-1][0]


def progress() -> Progress:
    """A progress bar on stderr, so that a command's output can be redirected."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


# -------------------------------------------------------------------------------------------------------- the store


def image_key(name: str, path: Path, caption: str) -> str:
    """Key of an image in a store: a digest of its name, file size and caption."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"image file {path} cannot be read ({error.strerror})") from error
    return short_digest([name, size, caption], 32)


def _open_store(store: Path, manifest: Mapping[str, Any], rebuild: bool) -> None:
    """Make sure that the store's shards are of the manifest's model; write the manifest of a new store."""
    shards = _shards(store)
    difference = _difference(store / "manifest.json", manifest)
    if difference is None:
        return
    if shards and not rebuild:
        raise UserError(
            f"The embeddings in {store} are of another model ({difference}); name another folder with --embeddings, or "
            "compute them again with --rebuild true."
        )
    for shard in shards:
        shard.unlink()
    with atomic_write(store / "manifest.json") as partial:
        partial.write_text(json.dumps(dict(manifest), indent=1) + "\n", encoding="utf-8")


def _difference(path: Path, manifest: Mapping[str, Any]) -> str | None:
    try:
        return first_difference(json.loads(path.read_text(encoding="utf-8")), manifest)
    except (OSError, ValueError, AttributeError) as error:
        return f"{path.name} cannot be read, {type(error).__name__}"


def _shards(store: Path) -> list[Path]:
    return sorted(store.glob("shard-*.safetensors"))


def _write_shard(store: Path, parts: Sequence[tuple[list[str], Tensor, Tensor]]) -> None:
    keys, images, texts = zip(*parts, strict=True)
    number = max((int(shard.stem.removeprefix("shard-")) for shard in _shards(store)), default=-1) + 1
    with atomic_write(store / f"shard-{number:05d}.safetensors") as partial:
        save_file(
            {"image_embeddings": torch.cat(images), "text_embeddings": torch.cat(texts)},
            partial,
            metadata={"keys": json.dumps([key for part in keys for key in part])},
        )


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    try:
        with safe_open(shard, "pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The embeddings in {shard} are damaged ({error}); delete the file and run again.") from error


def _shard_keys(shard: Path) -> list[str]:
    with _opened(shard) as file:
        return json.loads(file.metadata()["keys"])


def _collect(store: Path, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Image and text embeddings in the order of ``keys``, one shard in memory at a time."""
    rows = {key: row for row, key in enumerate(keys)}
    images = texts = torch.empty(0, 0)
    for shard in _shards(store):
        wanted = [(rows[key], place) for place, key in enumerate(_shard_keys(shard)) if key in rows]
        if not wanted:
            continue
        target, source = torch.tensor(wanted).unbind(1)
        with _opened(shard) as file:
            image, text = file.get_tensor("image_embeddings"), file.get_tensor("text_embeddings")
            if not (image.isfinite().all() and text.isfinite().all()):
                raise ValueError("not all values are finite")
            if images.numel() == 0:
                images, texts = torch.zeros(len(keys), image.shape[1]), torch.zeros(len(keys), text.shape[1])
            images[target], texts[target] = image[source], text[source]
    return images, texts
