"""Why a model could not be loaded, and what to do: the exceptions of the hub, of transformers and of damaged files."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub import errors as hub
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from lad_pl.errors import caused_by, first_line

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = (
    "download the model elsewhere and give its folder: --model.vlm.path path/to/folder (this path is no folder)"
)
_POINTER = "version https://git-lfs"
_OBJECTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
_NEEDED = (
    ("config.json",),
    ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json"),
    ("tokenizer_config.json", "tekken.json"),
    ("*processor_config.json",),
    ("*.safetensors",),
)
"""Files of a model's folder: of each line one is enough, and the first is named if there is none."""


def explained(error: Exception, spec: Any) -> str:
    """What went wrong and what to do, in one line that follows ``Cannot load the model ...:``.

    Args:
        error: of transformers' ``from_pretrained``.
        spec: the :class:`~lad_pl.vlm.loading.VLMSpec` that was loaded.
    """
    if spec.path and Path(spec.path).is_file():
        return "it is a file; name the folder that holds the model, --model.vlm.path path/to/folder."
    local = Path(spec.source).is_dir() and bool(spec.path)
    folder = Path(spec.source) / spec.options.get("subfolder", "") if local else _cached(spec)
    if found := _of_disk(error, spec) or (None if local else _of_hub(error, spec)) or _of_options(error, spec):
        return found
    if damage := folder and damaged_file(folder):
        fetch = "copy it into the folder" if local else "with --model.vlm.options.force_download true, fetch it"
        return f"{damage}; {fetch} again."
    if found := _of_architecture(error):
        return found
    said = first_line(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
    said = " ".join(said.split()).rstrip(" .:")
    if not local:
        return f"{said}. If the hub cannot be reached, {_ELSEWHERE}."
    if absent := missing_files(Path(spec.source)):
        return f"{said}. The folder lacks {' and '.join(absent)}; copy the model's whole repository into it."
    return f"{said}. No file of the folder is missing; fetch them again, or correct the options under vlm."


def _cached(spec: Any) -> Path | None:
    """The folder of the hub's cache that holds a model, if it does."""
    if not _is_hub_name(spec.path):
        return None
    cache = spec.options.get("cache_dir")
    config = try_to_load_from_cache(spec.path, "config.json", cache_dir=cache, revision=spec.revision)
    return Path(config).parent if isinstance(config, str) else None


def missing_files(folder: Path) -> list[str]:
    """Files that a model's folder needs and does not have, the shards that an index names among them."""
    absent = [names[0] for names in _NEEDED if not any(any(folder.glob(name)) for name in names)]
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        absent += [str(shard) for shard in shards if not (folder / str(shard)).is_file()]
    return absent


def damaged_file(folder: Path) -> str | None:
    """The first JSON or safetensors file of a folder that cannot be read, and why; None if all can."""
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return f"{path.name} is {_kind_of(path) or f'no valid JSON ({first_line(error)})'}"
        if not isinstance(content, dict) and (path.name in _OBJECTS or path.name.endswith("processor_config.json")):
            return f"{path.name} holds no settings (JSON object)"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError, RuntimeError) as error:
            return f"{path.name} is {_kind_of(path) or f'damaged or cut off ({first_line(error)})'}"
    return None


def is_pointer(text: str) -> bool:
    """Whether a file's text is what Git LFS leaves in place of the file."""
    return text.startswith(_POINTER)


def _kind_of(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER.encode():
        return "a pointer of Git LFS and not the file itself (`git lfs pull` gets it)"
    return "" if start else "empty"


def _is_hub_name(path: str) -> bool:
    try:
        validate_repo_id(path)
    except hub.HFValidationError:
        return False
    return True


def _of_disk(error: Exception, spec: Any) -> str | None:
    cache = spec.options.get("cache_dir") or constants.HF_HUB_CACHE
    system = caused_by(error, OSError, lambda found: found.errno is not None)
    code = getattr(system, "errno", None)
    text = caused_by(error, Exception, lambda found: "No space left" in str(found))  # of the hub's own downloader
    if code in _FULL or text:
        return f"no room is left in {cache}; make room, or set HF_HOME to a folder on another disk."
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        file, reason = getattr(system, "filename", None) or cache, getattr(system, "strerror", "")
        return f"{file}: {reason}; ask for the right to use it, or set HF_HOME to a folder of your own."
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "there is too little memory; set --model.vlm.dtype bfloat16 or --model.vlm.device_map auto."
    return None


def _of_hub(error: Exception, spec: Any) -> str | None:
    page = f"{constants.ENDPOINT}/{spec.path}"
    if caused_by(error, hub.GatedRepoError):
        return f"it is gated; accept the terms on its page, {page}, and {_LOG_IN}."
    if caused_by(error, hub.RepositoryNotFoundError):
        return f"the hub has no model of this name, or it is private; check the name, or {_LOG_IN}."
    if caused_by(error, hub.DisabledRepoError):
        return f"the hub has closed access to it; see {page}, or choose another model."
    if caused_by(error, hub.RevisionNotFoundError):
        return f"it has no revision '{spec.revision}'; see {page}/tree/main, or leave out --model.vlm.revision."
    status = getattr(getattr(caused_by(error, hub.HfHubHTTPError), "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses access ({status}); {_LOG_IN} with a token that may read {page}."
    if status == 429:
        return f"the hub has had too many requests from here (429); wait some minutes, or {_LOG_IN}."
    if status is not None and status >= 500:
        return f"the hub does not work at present ({status}); try again later, or {_ELSEWHERE}."
    if not _is_hub_name(spec.path):
        return "there is no such folder, and the hub's names are owner/model; correct --model.vlm.path path/to/folder."
    missing = caused_by(error, hub.LocalEntryNotFoundError) or caused_by(error, hub.OfflineModeIsEnabled)
    if missing and (spec.local_files_only or constants.is_offline_mode()):
        setting = "vlm.local_files_only" if spec.local_files_only else "HF_HUB_OFFLINE"
        where = spec.options.get("cache_dir") or constants.HF_HUB_CACHE
        return f"{setting} is set, and {where} has no complete copy of it; unset it to download once, or {_ELSEWHERE}."
    network = caused_by(error, hub.HTTPError) or missing
    if type(network).__name__ == "ProxyError":
        return f"the proxy refuses ({first_line(network)}); correct HTTPS_PROXY, or {_ELSEWHERE}."  # type: ignore[arg-type]
    if network:
        reason = first_line(network) if not isinstance(network, hub.LocalEntryNotFoundError) else "no connection"
        return f"{constants.ENDPOINT} cannot be reached ({reason}); check the network and HTTPS_PROXY, or {_ELSEWHERE}."
    if entry := re.search(r"does not appear to have (?:a file|files) named (\S+)", str(error)):
        safetensors = " (weights as safetensors; others are not read)" if "safetensors" in entry[1] else ""
        return f"its repository has no {entry[1].rstrip('.')}{safetensors}; see {page}/tree/main, or choose another."
    if "Should have a `model_type` key" in str(error):
        return f"its repository has no config.json with a model_type; see {page}/tree/main, or choose another."
    return None


def _of_options(error: Exception, spec: Any) -> str | None:
    message = first_line(error)
    if "trust_remote_code" in str(error) and not spec.trust_remote_code:
        return "it runs code of its own, which transformers does not have; choose a model that transformers supports."
    if isinstance(error, ImportError):
        attention = "flash" in str(error).lower() or spec.attn_implementation.split("_")[0] in str(error).lower()
        other = (
            ", or set --model.vlm.attn_implementation sdpa" if attention and spec.attn_implementation != "sdpa" else ""
        )
        return f"{' '.join(str(error).split())}. Install what is missing{other}."
    if isinstance(error, TypeError) and (name := re.search(r"unexpected keyword argument '(\w+)'", message)):
        return f"its class has no option '{name[1]}'; leave it out of vlm.options."
    return None


def _of_architecture(error: Exception) -> str | None:
    if unknown := re.search(r"model type `(.+?)`", str(error)):
        return (
            f"transformers {transformers.__version__} does not know its model_type '{unknown[1]}'; install a newer one "
            "(pip install -U transformers), or choose another model."
        )
    if text_only := re.search(r"Unrecognized configuration class <class '.*?(\w+)'> for this kind of", str(error)):
        return (
            f"its configuration is a {text_only[1]}, which transformers does not read as a model of images and text; "
            "choose a vision-language model that docs/models.md lists, or one like them."
        )
    return None


def _with_type(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
