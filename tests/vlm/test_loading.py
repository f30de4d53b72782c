"""Loading: options, placements, precisions, and folders that cannot be loaded."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http as hub_http
from tiny_models import item
from transformers import AutoModelForImageTextToText
from transformers.utils import hub as transformers_hub

from lad_pl import PromptSpec, UserError, VisionLanguageModel, VLMSpec

LAYERS = (1, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nobody/no-such-model"}, r"nobody/no-such-model.*--model\.vlm\.path path/to/folder"),
        ({"dtype": "float23"}, "vlm.dtype is 'float23'"),
        ({"attn_implementation": "telepathy"}, "telepathy"),
    ],
)
def test_models_that_cannot_be_loaded(tiny_folder: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.load(replace(VLMSpec(str(tiny_folder)), **change))


def test_every_option_reaches_from_pretrained(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(path: str, **options: Any) -> None:
        seen.update(path=path, **options)
        raise OSError("enough")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", record)
    wanted: dict[str, Any] = {
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "revision": "v1.0",
        "device_map": "auto",
        "local_files_only": True,
        "trust_remote_code": True,
    }
    extra = {"max_memory": {0: "20GiB", "cpu": "60GiB"}, "quantization_config": {"quant_method": "quanto"}}
    with pytest.raises(UserError, match="enough"):
        VLMSpec("somebody/model", **wanted, options=extra).load_model()
    assert seen.items() >= ({"path": "somebody/model", "use_safetensors": True} | wanted | extra).items()


@pytest.mark.parametrize(
    "placement",
    [
        {"device_map": "auto"},
        {"device_map": {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}},
        {"device_map": "auto", "options": {"max_memory": {"cpu": "400KB"}}},
    ],
    ids=["auto", "language model on disk", "little memory"],
)
def test_a_model_spread_by_accelerate(
    tiny_folder: Path, tiny_vlm: VisionLanguageModel, pictures, tmp_path: Path, placement: dict[str, Any]
) -> None:
    options = {"offload_folder": str(tmp_path), **placement.get("options", {})}
    spread = VisionLanguageModel.load(
        VLMSpec(str(tiny_folder), dtype="float32", device_map=placement["device_map"], options=options)
    )
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    trie, batch = encoder.answer_trie(12), encoder([item(pictures, 12, 2)])
    expected = tiny_vlm.evidence(batch, trie, LAYERS)
    got = spread.to(torch.device("cpu")).evidence(batch, trie, LAYERS)
    torch.testing.assert_close(got.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attention, expected.attention, atol=1e-6, rtol=0)
    assert spread.fingerprint() == tiny_vlm.fingerprint()


def test_a_quantised_model(tiny_folder: Path, tiny_vlm: VisionLanguageModel, pictures) -> None:
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    eight_bit = VLMSpec(
        str(tiny_folder), "float32", options={"quantization_config": {"quant_method": "quanto", "weights": "int8"}}
    )
    vlm = VisionLanguageModel.load(eight_bit).to(torch.device("cpu"))
    encoder = vlm.encoder(PromptSpec(image_size=None))
    trie, batch = encoder.answer_trie(4), encoder([item(pictures, 4, 4)])
    exact, rounded = (model.evidence(batch, trie, LAYERS) for model in (tiny_vlm, vlm))
    difference = (exact.attention - rounded.attention).abs().max()
    assert 0 < difference < 0.1
    assert vlm.fingerprint() != tiny_vlm.fingerprint()


def test_weights_with_a_hole_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tiny_folder / "model.safetensors")
    dropped = next(name for name in tensors if name.endswith("layers.3.self_attn.q_proj.weight"))
    save_file({name: value for name, value in tensors.items() if name != dropped}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lack 1 tensors"):
        VLMSpec(str(tmp_path)).load_model()
    save_file({**tensors, dropped: tensors[dropped][:8].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"do not fit .*layers.3.self_attn.q_proj.weight is torch.Size\(\[8, "):
        VLMSpec(str(tmp_path)).load_model()
    for change in (
        {"options": {"ignore_mismatched_sizes": True}},
        {"device_map": "meta"},
        {"device_map": {"": "meta"}},
    ):
        with pytest.raises(UserError, match=r"vlm\.(options|device_map) names"):
            VLMSpec(str(tmp_path), **change)


def test_an_incomplete_folder(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="copy the model's whole repository"):
        VisionLanguageModel.load(VLMSpec(str(tmp_path)))


# ------------------------------------------------------------------------------------- what a failure means, and why

httpx = transformers_hub.httpx
"""The hub's client, whatever version of it is installed."""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, "GatedRepo"), r"gated; accept the terms on its page, https://\S+/owner/model, and log in.*HF_TOKEN"),
        ((401, "GatedRepo"), "gated; accept the terms"),
        (
            (401, "RepoNotFound"),
            "no model of this name, or it is private; check the name, or log in with `hf auth login`",
        ),
        ((404, "RevisionNotFound"), "it has no revision 'v9'; .*leave out --model.vlm.revision"),
        ((404, "EntryNotFound"), "no config.json with a model_type"),
        ((403, ""), r"refuses access \(403\); log in"),
        ((429, ""), r"too many requests from here \(429\)"),
        ((503, ""), r"does not work at present \(503\)"),
        ("ConnectError", r"cannot be reached \(too far\); check the network and HTTPS_PROXY, or download"),
        ("ConnectTimeout", r"cannot be reached \(too far\)"),
        ("RemoteProtocolError", r"cannot be reached \(too far\)"),
        ("ProxyError", r"the proxy refuses \(too far\); correct HTTPS_PROXY"),
    ],
)
def test_what_the_hub_answers(answer, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def respond(request: Any) -> Any:
        if isinstance(answer, str):
            raise getattr(httpx, answer)("too far")
        status, code = answer
        return httpx.Response(status, headers={"X-Error-Code": code} if code else {}, request=request)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_http.time, "sleep", lambda seconds: None)  # it tries again
    hub_http.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(respond)))
    try:
        with pytest.raises(UserError, match=message):
            VLMSpec("owner/model", revision="v9", options={"cache_dir": str(tmp_path)}).load_model()
    finally:
        hub_http.set_client_factory(hub_http.default_client_factory)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no room is left in CACHE; make room, or set HF_HOME"),
        (RuntimeError("IO Error: No space left on device (os error 28)"), "no room is left in CACHE"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/lock"), "/x/lock: Permission denied; .*HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system; .*HF_HOME"),
    ],
)
def test_a_cache_that_cannot_be_written(error, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(transformers_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=message.replace("CACHE", str(tmp_path))):
        VLMSpec("owner/model", options={"cache_dir": str(tmp_path)}).load_model()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (VLMSpec("owner/model"), "HF_HUB_OFFLINE is set, .* has no complete copy of it; unset it"),
        (VLMSpec("owner/model", local_files_only=True), "vlm.local_files_only is set"),
        (VLMSpec("models/of/mine"), "no such folder, and the hub's names are owner/model"),
        (VLMSpec("./nowhere"), "no such folder"),
        (VLMSpec(""), "no such folder"),
    ],
)
def test_names_that_are_nowhere(spec: VLMSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec.load_model()


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _without_second_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def _pointer(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "knows no word: tokenizer.json is missing"),
        (lambda folder: (folder / "processor_config.json").unlink(), r"lacks \*processor_config.json; copy"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"lacks \*.safetensors; copy"),
        (_without_second_shard, "lacks model-00002-of-00002.safetensors; copy"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 999), "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is empty; copy"),
        (_pointer("model.safetensors"), "model.safetensors is a pointer of Git LFS"),
        (_pointer("tokenizer.json"), "tokenizer.json is a pointer of Git LFS"),
        (lambda folder: (folder / "tokenizer.json").write_text("[{"), "tokenizer.json is no valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"a":'), "config.json is no valid JSON"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json holds no settings"),
        (_pointer("chat_template.jinja"), "chat template of .* is a pointer of Git LFS"),
        (_config(text_config={"hidden_size": "many"}), "expected int, got str .*fetch them again"),
        (_config(model_type="vlm_of_tomorrow"), "does not know its model_type 'vlm_of_tomorrow'; install a newer one"),
        (
            _config(model_type="qwen2"),
            "its configuration is a Qwen2Config, which transformers does not read as a model of images",
        ),
        (_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "it runs code of its own"),
    ],
)
def test_a_damaged_folder(tiny_folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.load(VLMSpec(str(folder)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"nonsense": 1}}, "has no option 'nonsense'"),
        ({"options": {"quantization_config": {"quant_method": "vptq"}}}, "correct the options under vlm"),
        ({"attn_implementation": "flash_attention_3"}, "attn_implementation sdpa"),
    ],
)
def test_options_that_do_not_fit(tiny_folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VLMSpec(str(tiny_folder), **change).load_model()
