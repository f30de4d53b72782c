"""Loading a model and its processor from the Hugging Face hub or a local folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.distributed import DistributedConfig

from lad_pl.errors import UserError
from lad_pl.files import asset
from lad_pl.vlm.load_errors import explained, is_pointer, missing_files
from lad_pl.vlm.tensor_parallel import with_plan

_FEED_FORWARD = ("mlp", "feed_forward")
# Options that locate the files, and so apply to the processor as well as to the weights.
_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "subfolder", "token")
_OWN_OPTIONS = ("dtype", "attn_implementation", "device_map", "revision", "local_files_only", "trust_remote_code")
_DISTRIBUTED = ("distributed_config", "tp_plan", "tp_size", "device_mesh")
_DECIDED = ("use_safetensors", "weights_only", "output_loading_info", "ignore_mismatched_sizes")

_EMBEDDED = {"demo": "checkpoints/demo-vlm", "demo-hard": "checkpoints/demo-hard-vlm"}
"""Models that come with the toolkit."""


@dataclass(frozen=True)
class VLMSpec:
    """A Hugging Face vision-language model, and how to load it.

    Raises:
        UserError: the number format is unknown, ``device_map`` gives the weights no place, or ``options`` names what
            has an option of its own or is decided.
    """

    path: str
    """Hub id (Qwen/Qwen2.5-VL-3B-Instruct), local folder with config.json, safetensors and processor files, or
    "demo" or "demo-hard" for an embedded demo model."""
    dtype: str = "auto"
    """Number format of the weights: auto (as stored), float32, bfloat16 or float16."""
    attn_implementation: str = "sdpa"
    """Attention backend: sdpa, flash_attention_2, flash_attention_3 or eager."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    device_map: str | dict[str, Any] | None = None
    """Placement by accelerate ("auto" spreads one model over several devices). Unset, the Trainer places the model."""
    tensor_parallel: int = 1
    """Number of processes over which every layer of the model is split (tensor parallelism), for a model that is larger
    than a device: all processes of the run, trainer.devices times trainer.num_nodes. All of them see every prompt."""
    local_files_only: bool = False
    """Use local files only; never contact the hub."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. No supported model needs it. On the command line alone: a
    configuration file cannot ask for it."""
    compile: bool = False
    """Compile the feed-forward parts of language model and vision tower (torch.compile). Attention is not compiled,
    because it is read."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the model's ``from_pretrained``, such as quantization_config or max_memory."""

    def __post_init__(self) -> None:
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise UserError(f"vlm.dtype is '{self.dtype}'; choose auto, float32, bfloat16 or float16.")
        if self.tensor_parallel < 1 or (self.tensor_parallel > 1 and self.device_map is not None):
            raise UserError("vlm.tensor_parallel is a number of processes, and goes without vlm.device_map.")
        for name in self.options:
            if name in _DISTRIBUTED:
                raise UserError(f"vlm.options names '{name}'; split a model over processes by vlm.tensor_parallel.")
            if name in _OWN_OPTIONS:
                raise UserError(f"vlm.options names '{name}', which has an option of its own: vlm.{name}.")
            if name in _DECIDED:
                raise UserError(
                    f"vlm.options names '{name}', which cannot be chosen: weights are read whole, and never unpickled."
                )
        placed = self.device_map.values() if isinstance(self.device_map, dict) else (self.device_map,)
        if "meta" in placed:
            raise UserError("vlm.device_map names 'meta', where weights have no values; name devices, or auto.")

    def settings(self) -> dict[str, Any]:
        """The fields that the evidence depends on beside the weights, as plain values."""
        return {name: getattr(self, name) for name in ("dtype", "attn_implementation", "compile", "options")}

    @property
    def source(self) -> str:
        """Hub id or folder for ``from_pretrained``."""
        return str(asset(_EMBEDDED[self.path])) if self.path in _EMBEDDED else self.path

    def load_processor(self) -> ProcessorMixin:
        """The model's tokenizer, image processor and chat template.

        Raises:
            UserError: the folder or hub id cannot be read, or there is no chat template.
        """
        processor = self._load(AutoProcessor, "processor", **self._hub_options())
        if getattr(processor, "chat_template", None) is None:
            raise UserError(f"The processor '{self.path}' has no chat template; use an instruction-tuned model.")
        if is_pointer(str(processor.chat_template)):
            raise UserError(
                f"The chat template of '{self.path}' is a pointer of Git LFS; get the file (`git lfs pull`)."
            )
        tokenizer = getattr(processor, "tokenizer", processor)
        if set(tokenizer("photo 1", add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
            absent = " and ".join(missing_files(Path(self.source))) or "its vocabulary, such as tokenizer.json"
            raise UserError(f"The tokenizer '{self.path}' knows no word: {absent} is missing; fetch its files again.")
        return processor

    def load_model(self) -> PreTrainedModel:
        """The model in evaluation mode, frozen.

        Raises:
            UserError: the folder or hub id cannot be read, is no vision-language model, lacks weights, or does not
                have the attention backend.
        """
        model, report = self._load(
            AutoModelForImageTextToText,
            "model",
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            device_map=self.device_map,
            use_safetensors=True,  # never unpickle weights
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
            **self._tensor_parallel_options(),
            **self.options,
        )
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise UserError(
                f"The weights at '{self.path}' lack {len(missing)} tensors ({missing[0]}, ...) of "
                f"{type(model).__name__}; the model would answer at random. Fetch the files again."
            )
        if report["mismatched_keys"]:
            name, stored, expected = (str(part) for part in min(report["mismatched_keys"], key=str))
            raise UserError(
                f"The weights at '{self.path}' do not fit {type(model).__name__}: {name} is {stored} in the file and "
                f"{expected} by config.json; the model would answer at random. Fetch the files again."
            )
        if self.compile:
            _compile_feed_forward(model)
        return model.eval().requires_grad_(False)

    def _tensor_parallel_options(self) -> dict[str, Any]:
        if self.tensor_parallel == 1:
            return {}
        config = with_plan(self._load(AutoConfig, "configuration", **self._hub_options()))
        return {"config": config, "distributed_config": DistributedConfig(tp_size=self.tensor_parallel)}

    def _hub_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name in _HUB_OPTIONS}

    def _load(self, loader: Any, what: str, **arguments: Any) -> Any:
        try:
            return loader.from_pretrained(
                self.source,
                revision=self.revision,
                local_files_only=self.local_files_only,
                trust_remote_code=self.trust_remote_code,
                **arguments,
            )
        except Exception as error:  # libraries raise whatever a file or an option leads them to
            raise UserError(f"Cannot load the {what} '{self.path}': {explained(error, self)}") from error


def _compile_feed_forward(model: PreTrainedModel) -> None:
    parts = [part for name, part in model.named_modules() if name.rpartition(".")[2] in _FEED_FORWARD]
    if not parts:
        raise UserError(
            f"{type(model).__name__} has no part named mlp or feed_forward to compile; leave out vlm.compile."
        )
    for part in parts:
        part.compile(dynamic=True)  # prompts differ in length
