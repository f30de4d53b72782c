"""A chat template that writes the date: the calibration's day holds, whenever a command runs."""

from __future__ import annotations

import pickle
import shutil
from datetime import datetime
from pathlib import Path

import pytest
import torch
from commands import fails, noise_options, stops_after
from PIL import Image
from tiny_models import item, load
from tiny_vlm import CHAT_TEMPLATE
from transformers.utils import chat_template_utils

from lad_pl import PromptSpec, debiasing
from lad_pl.calibrate import load_calibration
from lad_pl.cli import main
from lad_pl.evidence.store import read_prompts, read_settings
from lad_pl.vlm.encoder import PromptEncoder

MISTRAL = CHAT_TEMPLATE.replace("helpful assistant.", "helpful assistant. Today is {{ strftime_now('%Y-%m-%d') }}.")
LLAMA = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + (
    CHAT_TEMPLATE.replace("helpful assistant.", "helpful assistant. Today is {{ date_string }}.")
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Sets the day that chat templates see."""

    def turn_to(day: str) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.fromisoformat(f"{day}T14:05")

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    turn_to("2026-02-28")
    return turn_to


@pytest.fixture
def dated_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(MISTRAL)
    return folder


@pytest.fixture
def options(dated_folder: Path, fitted: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(fitted / "data", tmp_path / "data")
    return [*noise_options(dated_folder, tmp_path), "--data.num_permutations=2", "--data.batch_size=1"]


def broken(command: str, options: list[str], batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stops_after(patch, batches)
        with pytest.raises(RuntimeError, match="went down"):
            main([command, *options])


def test_every_command_takes_the_calibrations_day(options, dated_folder, clock, tmp_path, monkeypatch, capsys) -> None:
    """fit and test break off before midnight and go on after it."""
    run = tmp_path / "run"
    shown: list[str] = []
    original = PromptEncoder._batch
    monkeypatch.setattr(
        PromptEncoder,
        "_batch",
        lambda self, *args: (
            shown.append(self.tokenizer.decode(original(self, *args).tokens["input_ids"][0])) or original(self, *args)
        ),
    )
    broken("fit", options, 1, monkeypatch)
    clock("2026-03-01")
    assert main(["fit", *options]) == 0
    assert load_calibration(run / "calibration.ckpt")[1]["date"] == "2026-02-28"
    broken("test", options, 2, monkeypatch)
    clock("2027-01-01")
    for command in ("fit", "test"):
        assert main([command, *options]) == 0
    other, calibration = tmp_path / "other", run / "calibration.ckpt"
    for command in ("test", "test", "predict"):
        folder = run / command if command == "predict" else other
        assert main([command, *options, f"--trainer.default_root_dir={folder}", f"--ckpt_path={calibration}"]) == 0
    assert len(shown) > 16
    assert {text.partition("Today is ")[2][:11] for text in shown} == {"2026-02-28."}
    for stored in (*run.glob("*evidence.parquet"), *run.glob("*/evidence.parquet")):
        assert read_settings(stored)["date"] == "2026-02-28"
    ours, theirs = (read_prompts(folder / "evidence.parquet").evidence for folder in (run, other))
    torch.testing.assert_close(ours.log_probs, theirs.log_probs)
    # A calibration of another day, in a folder that has both a calibration and results of its own.
    assert main(["fit", *options, f"--trainer.default_root_dir={tmp_path / 'new'}"]) == 0
    assert load_calibration(tmp_path / "new" / "calibration.ckpt")[1]["date"] == "2027-01-01"
    message = fails(capsys, "test", *options, f"--ckpt_path={tmp_path / 'new' / 'calibration.ckpt'}")
    assert "evidence of another configuration (date: '2026-02-28' there, '2027-01-01' here)" in message
    check_debiasing(dated_folder, calibration, tmp_path / "data" / "noise_000.png")


def check_debiasing(folder: Path, calibration: Path, picture: Path) -> None:
    """Prompts of encode, and of the user's own use of the processor."""
    vlm = load(folder)
    pictures = [Image.open(picture).convert("RGB").resize((84, 84))] * 3
    chat = [{"type": "image", "image": picture} for picture in pictures]
    with debiasing(vlm.model, vlm.processor, calibration) as debias:
        encoded = debias.encode(pictures, "Noise")["input_ids"]
        chat.append({"type": "text", "text": debias.text("Noise")})
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        by_hand = vlm.processor.apply_chat_template([{"role": "user", "content": chat}], **options)["input_ids"]
    assert torch.equal(encoded, by_hand)
    assert "Today is 2026-02-28." in vlm.processor.decode(encoded[0])
    assert "Today is 2027-01-01." in vlm.processor.apply_chat_template([{"role": "user", "content": chat}])


def test_workers_and_variables(tiny_vlm, clock, monkeypatch) -> None:
    """An encoder in another process writes the same day; a date that the prompt sets comes first."""
    picture = Image.new("RGB", (56, 56))
    monkeypatch.setattr(tiny_vlm.processor, "chat_template", LLAMA)
    asks, told = PromptSpec(image_size=None), PromptSpec(chat_template_kwargs={"date_string": "1 May 1999"})
    encoder, other = tiny_vlm.encoder(asks), tiny_vlm.encoder(told)
    sent = pickle.dumps(encoder)
    clock("2026-03-01")
    chat_template_utils._compile_jinja_template.cache_clear()  # as in a process of its own
    there = pickle.loads(sent)
    for one in (encoder, there):
        tokens = one([item([picture] * 3, 3, 1)]).tokens["input_ids"][0]
        assert "Today is 28 Feb 2026." in one.tokenizer.decode(tokens)
        assert "Today is 28 Feb 2026." in one.chat(one.turns([], "x"))
    assert there.fingerprint() == encoder.fingerprint() != tiny_vlm.encoder(asks).fingerprint()
    assert (encoder.date, other.date) == ("2026-02-28", None)
    assert "Today is 1 May 1999." in other.chat(other.turns([], "x"))
    assert other.fingerprint() == tiny_vlm.encoder(told).fingerprint()
    own_system = PromptSpec(system="You judge photographs.")
    assert tiny_vlm.encoder(own_system).date is None
    assert "Today" not in tiny_vlm.encoder(own_system).chat(tiny_vlm.encoder(own_system).turns([], "x"))
