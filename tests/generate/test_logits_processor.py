"""Corrected answers in a plain transformers pipeline, from pixels through generate, against the toolkit's own way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from tiny_vlm import write_noise_images
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lad_pl import READOUTS, PromptSpec, ReadoutSettings, UserError, VisionLanguageModel, VLMSpec
from lad_pl.calibrate import calibrate, pack
from lad_pl.cli import main
from lad_pl.data.images import resize
from lad_pl.data.permutations import cyclic_shifts
from lad_pl.evidence.table import as_stored
from lad_pl.generate.logits_processor import Debiasing, candidate_logits, debiasing
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.readouts import log_probabilities
from lad_pl.types import Calibration, Evidence, PermutedSample, Sample

CAPTIONS = ("A dog lies on the grass.", "Two giraffes in a room, with people looking at them.")
SETTINGS = ReadoutSettings()


@dataclass
class Subject:
    """One family's tiny checkpoint: a calibration, and what the toolkit itself makes of two prompts."""

    folder: Path
    calibration_file: Path
    pictures: list[Image.Image]
    vlm: VisionLanguageModel
    trie: AnswerTrie
    calibration: Calibration
    n: int

    def shown(self, number: int) -> list[Image.Image]:
        start = number + 3
        return (self.pictures[start:] + self.pictures[:start])[: self.n]

    @cached_property
    def evidence(self) -> Evidence:
        encoder = self.vlm.encoder(PromptSpec(image_size=None))
        layers = torch.load(self.calibration_file, weights_only=True)["provenance"]["layers"]
        entries = [entry(self.shown(number), number, CAPTIONS[number], False) for number in range(2)]
        return as_stored(self.vlm.evidence(encoder(entries), self.trie, layers))

    def log_probs(self, readout: str) -> Tensor:
        scores = READOUTS[readout](self.evidence, self.calibration, SETTINGS)
        return log_probabilities(readout, scores, SETTINGS)

    def model(self, **options: Any) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32, **options).eval()

    @cached_property
    def sdpa(self) -> Any:
        return self.model()

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folder)

    def debiased(self, model: Any = None, **options: Any) -> Any:
        return debiasing(model or self.sdpa, self.processor, self.calibration_file, **options)

    def inputs(self, debias: Debiasing, *numbers: int, **options: Any) -> Any:
        """What a user of transformers writes: images, then words, through the processor."""
        chats = [chat(self.shown(number), debias.text(CAPTIONS[number])) for number in numbers]
        return encoded(self.processor, chats, **options)


def entry(pictures: list[Image.Image], number: int, caption: str, shifts: bool) -> PermutedSample:
    n = len(pictures)
    orders = cyclic_shifts(n) if shifts else (tuple(range(n)),)
    return PermutedSample(Sample(str(number), tuple(map(str, range(n))), caption, 0), number, orders, tuple(pictures))


def chat(pictures: list[Image.Image], text: str) -> list[dict[str, Any]]:
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def encoded(processor: Any, chats: list[Any], **options: Any) -> Any:
    return processor.apply_chat_template(
        chats,
        **{"add_generation_prompt": True} | options,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def subject_of(name: str, n: int, folder: Path) -> Subject:
    family = next(family for family in FAMILIES if family.name == name)
    checkpoint = family.build(folder / "model")
    pictures = [Image.open(path).convert("RGB") for path in write_noise_images(folder / "i", 12, sizes=family.sizes)]
    vlm = VisionLanguageModel.load(VLMSpec(str(checkpoint), dtype="float32"))
    prompt = PromptSpec(image_size=None)
    encoder = vlm.encoder(prompt)
    trie, layers = encoder.answer_trie(n), vlm.layers.choose("1-3" if name in ("internvl", "smolvlm") else "1-5")
    batch = encoder([entry((pictures[k:] + pictures[:k])[:n], k, "A cat", True) for k in range(2)])
    calibration = calibrate(vlm.evidence(batch, trie, layers), batch.targets, batch.permutations, batch.sample_index)
    provenance = {
        "weights": vlm.fingerprint(),
        "processor": encoder.fingerprint(),
        "prompt": prompt.settings(),
        "layers": list(layers),
        "calibration_samples": [],
    }
    torch.save(pack(calibration, provenance), folder / "calibration.ckpt")
    return Subject(checkpoint, folder / "calibration.ckpt", pictures, vlm, trie, calibration, n)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl", "gemma3"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(request.param, 4, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of("qwen2_5_vl", 4, tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Twelve candidates: "1" begins "10", "11" and "12"."""
    return subject_of("qwen2_5_vl", 12, tmp_path_factory.mktemp("twelve"))


def first_tokens(subject: Subject, log_probs: Tensor) -> list[int]:
    return [subject.trie.sequences[best][0] for best in log_probs.argmax(-1).tolist()]


# ------------------------------------------------------------------------------------------------ the corrected answer


@pytest.mark.parametrize("readout", ["agd", "head_information", "purified_attention", "vanilla", "caption_attention"])
def test_generate_answers_as_predict_does(subject: Subject, readout: str) -> None:
    """Two prompts of different length in one batch, so padding on the left."""
    expected = subject.log_probs(readout)
    with subject.debiased(readout=readout) as debias:
        inputs = subject.inputs(debias, 0, 1)
        assert (inputs["attention_mask"] == 0).any()
        output = subject.sdpa.generate(
            **inputs,
            logits_processor=[debias],
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    assert debias.evidence is not None and debias.log_probs is not None
    assert (debias.evidence.log_probs - subject.evidence.log_probs).abs().max() < 1e-5
    assert (debias.evidence.layer_attention - subject.evidence.layer_attention).abs().max() < 1e-6
    assert debias.evidence.caption_attention is not None and subject.evidence.caption_attention is not None
    assert (debias.evidence.caption_attention - subject.evidence.caption_attention).abs().max() < 1e-3
    assert (debias.log_probs - expected).abs().max() < 1e-3
    assert output.sequences[:, -1].tolist() == first_tokens(subject, expected)
    candidates = [sequence[0] for sequence in subject.trie.sequences]
    # Nothing else can follow, and relative to one another the candidates are the readout's probabilities.
    assert (output.scores[0].double().log_softmax(-1)[:, candidates] - expected).abs().max() < 1e-3


def test_the_correction_changes_answers(subject: Subject) -> None:
    """The tests above could not fail if the corrected answers were the model's own."""
    assert first_tokens(subject, subject.log_probs("agd")) != first_tokens(subject, subject.log_probs("vanilla"))


@pytest.mark.parametrize("options", [{"attn_implementation": "eager"}, {"use_cache": False}])
def test_the_backend_and_the_cache_do_not_matter(qwen: Subject, options: dict[str, Any]) -> None:
    backend = {name: value for name, value in options.items() if name == "attn_implementation"}
    model = qwen.model(**backend) if backend else qwen.sdpa
    with qwen.debiased(model) as debias:
        generated = model.generate(
            **qwen.inputs(debias, 0, 1),
            logits_processor=[debias],
            max_new_tokens=3,
            do_sample=False,
            **({} if backend else options),
        )
    expected = qwen.log_probs("agd")
    assert debias.log_probs is not None
    assert (debias.log_probs - expected).abs().max() < 1e-3
    assert generated[:, -3].tolist() == first_tokens(qwen, expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_identifiers_of_several_tokens_are_written_whole(twelve: Subject, use_cache: bool) -> None:
    expected = twelve.log_probs("agd")
    with twelve.debiased() as debias:
        inputs = twelve.inputs(debias, 0, 1)
        for best in (0, 6, 9, 11):  # whichever candidate is best
            with forced(debias, best):
                sequences = twelve.sdpa.generate(
                    **inputs, logits_processor=[debias], max_new_tokens=2, do_sample=False, use_cache=use_cache
                )
            path = twelve.trie.sequences[best]
            for row in sequences[:, inputs["input_ids"].shape[1] :].tolist():
                assert tuple(row[: len(path)]) == path
        twelve.sdpa.generate(**inputs, logits_processor=[debias], max_new_tokens=1, use_cache=use_cache)
    assert debias.evidence is not None and debias.log_probs is not None
    assert (debias.evidence.log_probs - twelve.evidence.log_probs).abs().max() < 1e-5
    assert (debias.log_probs - expected).abs().max() < 1e-3


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_the_template_writes_before_an_answer(tmp_path: Path, use_cache: bool) -> None:
    """``Assistant:`` and ``Assistant: 1``: a blank comes before the digit, in the evidence and in the answer."""
    subject = subject_of("smolvlm", 4, tmp_path)
    assert len({sequence[0] for sequence in subject.trie.sequences}) == 1
    expected = subject.log_probs("agd")
    with subject.debiased() as debias:
        assert debias.answer_length == 2
        output = subject.sdpa.generate(
            **subject.inputs(debias, 0, 1),
            logits_processor=[debias],
            max_new_tokens=debias.answer_length,
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
    assert debias.evidence is not None and debias.log_probs is not None
    assert (debias.evidence.log_probs - subject.evidence.log_probs).abs().max() < 1e-5
    best = expected.argmax(-1).tolist()
    assert [tuple(row[-2:]) for row in output.sequences.tolist()] == [subject.trie.sequences[b] for b in best]
    assert [subject.processor.decode(row[-2:]) for row in output.sequences] == [f" {b + 1}" for b in best]
    digits = [sequence[1] for sequence in subject.trie.sequences]
    assert (output.scores[1].double().log_softmax(-1)[:, digits] - expected).abs().max() < 1e-3


class forced:
    """Give one candidate the highest corrected score, by a readout of the test's own."""

    def __init__(self, debias: Debiasing, best: int) -> None:
        self.debias, self.best = debias, best

    def __enter__(self) -> None:
        self.readout, self.debias.readout = self.debias.readout, "forced"
        READOUTS["forced"] = lambda evidence, calibration, settings: (
            0.1 * torch.nn.functional.one_hot(torch.full((len(evidence),), self.best), 12).double()
        )

    def __exit__(self, *_: object) -> None:
        self.debias.readout = self.readout
        del READOUTS["forced"]


def test_other_words_keep_their_probability(qwen: Subject) -> None:
    with qwen.debiased(only_candidates=False) as debias:
        output = qwen.sdpa.generate(
            **qwen.inputs(debias, 0, 1),
            logits_processor=[debias],
            max_new_tokens=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
    candidates = [sequence[0] for sequence in qwen.trie.sequences]
    others = [token for token in range(output.logits[0].shape[1]) if token not in candidates]
    raw, put = output.logits[0], output.scores[0]
    assert torch.equal(put[:, others], raw[:, others])
    assert torch.allclose(put[:, candidates].logsumexp(-1), raw[:, candidates].logsumexp(-1), atol=1e-5)
    assert (put[:, candidates].double().log_softmax(-1) - qwen.log_probs("agd")).abs().max() < 1e-3
    assert not torch.allclose(put[:, candidates], raw[:, candidates], atol=1e-2)
    for later in (1, 2):
        assert torch.equal(output.scores[later], output.logits[later])


def test_what_follows_the_answer_is_the_models_own(qwen: Subject) -> None:
    """After the first token, the logits are those of one plain pass over the prompt with that token."""
    with qwen.debiased() as debias:
        inputs = qwen.inputs(debias, 0)
        output = qwen.sdpa.generate(
            **inputs,
            logits_processor=[debias],
            max_new_tokens=2,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    first = output.sequences[:, inputs["input_ids"].shape[1]][:, None]
    more = {"input_ids": first, "attention_mask": torch.ones_like(first), "mm_token_type_ids": torch.zeros_like(first)}
    longer = {name: torch.cat([value, more[name]], 1) if name in more else value for name, value in inputs.items()}
    with torch.no_grad():
        plain = qwen.sdpa(**longer).logits[:, -1]
    assert (output.scores[1] - plain).abs().max() < 1e-4


def test_beams_and_several_sequences(qwen: Subject) -> None:
    expected = qwen.log_probs("agd")
    tokens = [sequence[0] for sequence in qwen.trie.sequences]
    with qwen.debiased() as debias:
        inputs = qwen.inputs(debias, 0, 1)
        beams = qwen.sdpa.generate(**inputs, logits_processor=[debias], num_beams=3, max_new_tokens=1, do_sample=False)
        assert beams[:, -1].tolist() == first_tokens(qwen, expected)
        drawn = qwen.sdpa.generate(
            **qwen.inputs(debias, 1),
            logits_processor=[debias],
            num_return_sequences=5,
            max_new_tokens=1,
            do_sample=True,
            return_dict_in_generate=True,
            output_scores=True,
            top_k=0,
            temperature=1.0,
            top_p=1.0,
        )
    assert set(drawn.sequences[:, -1].tolist()) <= set(tokens)
    assert drawn.scores[0].shape[0] == 5
    assert (drawn.scores[0].double().log_softmax(-1)[:, tokens] - expected[1]).abs().max() < 1e-3


def test_a_prompt_made_by_encode_is_the_users_own(qwen: Subject) -> None:
    with qwen.debiased() as debias:
        ours, theirs = debias.encode(qwen.shown(0), CAPTIONS[0]), qwen.inputs(debias, 0)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        qwen.sdpa.generate(**ours, logits_processor=[debias], max_new_tokens=1)
        with pytest.raises(UserError, match="calibration is for 4 images, the prompt has 3"):
            debias.encode(qwen.shown(0)[:3], CAPTIONS[0])


def test_encode_takes_paths_arrays_and_tensors(qwen: Subject, tmp_path: Path) -> None:
    """All the same pictures; what is transparent and deep gray too."""
    images = qwen.shown(0)
    arrays = [np.asarray(image) for image in images]
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    ways = [
        [str(paths[0]), paths[1], arrays[2], images[3]],
        [array / 255 for array in arrays],
        [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays],
        [torch.from_numpy(array / 255).permute(2, 0, 1).requires_grad_() for array in arrays],
        np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays,
    ]
    hidden = Image.fromarray(np.dstack([arrays[0], np.zeros(arrays[0].shape[:2], np.uint8)]))
    deep = Image.fromarray((np.asarray(images[1].convert("L")).astype(np.uint16)) * 257)
    with qwen.debiased() as debias:
        expected = debias.encode(images, CAPTIONS[0])["pixel_values"]
        for way in ways:
            assert torch.equal(debias.encode(way, CAPTIONS[0])["pixel_values"], expected)
        plain = [Image.new("RGB", hidden.size, "white"), images[1].convert("L").convert("RGB"), *images[2:]]
        seen = debias.encode([hidden, deep, *images[2:]], CAPTIONS[0])["pixel_values"]
        assert torch.equal(seen, debias.encode(plain, CAPTIONS[0])["pixel_values"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", r"images\[1\]: image file nowhere.png does not exist"),
        (7, r"images\[1\] cannot be used \(a value of type int\); give a path, a PIL image, an array"),
        (None, "a value of type NoneType"),
        (torch.zeros(8, 8, 3), r"its shape is 8 x 8 x 3"),
        (torch.full((3, 8, 8), 200.0), "its floats are from 200 to 200"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "its values are int64"),
        (np.full((8, 8, 3), np.nan), "its floats are from nan"),
        (Image.new("F", (8, 8), 300.0), "floats from 300 to 300, without a range"),
    ],
)
def test_encode_says_what_it_takes(qwen: Subject, image: Any, message: str) -> None:
    with qwen.debiased() as debias:
        first, _, *others = qwen.shown(0)
        with pytest.raises(UserError, match=message) as error:
            debias.encode([first, image, *others], CAPTIONS[0])
        assert "\n" not in str(error.value)
        for images in ("abcd", first, 7):
            with pytest.raises(UserError, match="Give encode a list of 4 images"):
                debias.encode(images, CAPTIONS[0])


def test_a_data_workers_prompt_is_handed_over(qwen: Subject) -> None:
    with qwen.debiased() as debias:
        text = debias.text(CAPTIONS[0])
    worker = AutoProcessor.from_pretrained(qwen.folder)  # as if in another process
    inputs = worker.apply_chat_template(
        chat(qwen.shown(0), text),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"return_text_replacement_offsets": True},
    )
    with qwen.debiased() as debias:
        debias.remember(inputs)
        inputs.pop("text_replacement_offsets")
        generated = qwen.sdpa.generate(**inputs, logits_processor=[debias], max_new_tokens=1, do_sample=False)
    assert generated[:, -1].tolist() == first_tokens(qwen, qwen.log_probs("agd")[:1])


def test_the_calibration_of_fit_is_taken(tiny_folder: Path, tmp_path: Path) -> None:
    """fit and test on the command line, then the same prompts by hand: the same choices and scores."""
    paths = write_noise_images(tmp_path / "images", 8, sizes=((60, 90), (90, 60)))
    names = [path.name for path in paths]
    samples = [{"id": i, "image_ids": names[i : i + 3], "index": i % 3, "caption": f"Noise {i}"} for i in range(5)]
    (tmp_path / "images" / "set.json").write_text(json.dumps(samples))
    options = [
        f"--model.vlm.path={tiny_folder}",
        "--model.vlm.dtype=float32",
        "--model.prompt.image_size=84",
        "--model.layers=2-5",
        f"--data.annotations={tmp_path / 'images' / 'set.json'}",
        "--data.num_calibration=3",
        "--data.num_permutations=1",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", *options]) == 0
    assert main(["test", *options]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_folder)
    assert len(records) == 2
    with debiasing(model, processor, tmp_path / "run" / "calibration.ckpt") as debias:
        for record in records:
            pictures = [Image.open(tmp_path / "images" / name) for name in record["images"]]
            inputs = debias.encode(pictures, record["caption"])
            answer = model.generate(**inputs, logits_processor=[debias], max_new_tokens=1, do_sample=False)
            assert processor.decode(answer[0, -1:]) == str(record["choices"]["agd"] + 1)
            stored = torch.tensor(record["scores"]["agd"]).double().log_softmax(-1)
            assert debias.log_probs is not None
            assert (debias.log_probs[0] - stored).abs().max() < 1e-3
        squares = [resize(picture.convert("RGB"), 84) for picture in pictures]
        by_hand = encoded(processor, [chat(squares, debias.text(record["caption"]))])
        assert all(torch.equal(by_hand[name], inputs[name]) for name in inputs)
        unresized = [Image.new("RGB", (200, 100)) for _ in range(3)]
        wrong = encoded(processor, [chat(unresized, debias.text("Noise"))])
        with pytest.raises(UserError, match="resize them to 84 x 84"):
            model.generate(**wrong, logits_processor=[debias], max_new_tokens=1)


# ------------------------------------------------------------------------------------------------- nothing is left over


def state(subject: Subject) -> tuple[object, ...]:
    model = subject.sdpa
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    return hooks, dict(ALL_ATTENTION_FUNCTIONS), vars(model).get("forward"), type(subject.processor)


def test_nothing_is_left_behind(qwen: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(qwen)
    with qwen.debiased() as debias:
        inputs = qwen.inputs(debias, 0)
        qwen.sdpa.generate(**inputs, logits_processor=[debias], max_new_tokens=2)
        assert state(qwen)[:2] == before[:2]  # hooks are there in the pass alone
    assert state(qwen) == before

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    def answer() -> None:
        with qwen.debiased() as debias:
            qwen.sdpa.generate(**qwen.inputs(debias, 0), logits_processor=[debias], max_new_tokens=1)

    with monkeypatch.context() as patch:
        patch.setattr(qwen.sdpa.get_output_embeddings(), "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            answer()
    assert state(qwen) == before
    with pytest.raises(UserError, match="not known"):
        qwen.sdpa.generate(**inputs, logits_processor=[debias], max_new_tokens=1)


def test_other_prompts_are_left_alone(qwen: Subject) -> None:
    """Generation without the processor is as outside the block, whatever the prompt."""
    words = [{"role": "user", "content": [{"type": "text", "text": "Think step by step."}]}]
    chats = ([words], [chat(qwen.shown(0)[:2], "Which one?")])
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    plain = [qwen.sdpa.generate(**encoded(qwen.processor, turns), **options) for turns in chats]
    with qwen.debiased():
        inside = [qwen.sdpa.generate(**encoded(qwen.processor, turns), **options) for turns in chats]
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def refused(qwen: Subject) -> Iterator[Any]:
    """Generate on a prompt that must not be debiased, inside one block."""
    with qwen.debiased() as debias:

        def generate(match: str, inputs: Any, **options: Any) -> None:
            with pytest.raises(UserError, match=match):
                qwen.sdpa.generate(**inputs, logits_processor=[debias], max_new_tokens=2, do_sample=False, **options)

        generate.debias = debias  # type: ignore[attr-defined]
        yield generate


def test_prompts_that_do_not_fit_are_refused(qwen: Subject, refused: Any) -> None:
    debias, pictures = refused.debias, qwen.shown(0)
    refused("is for 4 images, the prompt has 3", encoded(qwen.processor, [chat(pictures[:3], debias.text("x"))]))
    refused("text is not the calibration's", encoded(qwen.processor, [chat(pictures, "Which image shows a dog?")]))
    refused("text is not the calibration's", qwen.inputs(debias, 0, add_generation_prompt=False))
    upside_down = [{"role": "user", "content": chat(pictures, debias.text("x"))[0]["content"][::-1]}]
    refused("text is not the calibration's", encoded(qwen.processor, [upside_down]))
    elsewhere = encoded(AutoProcessor.from_pretrained(qwen.folder), [chat(pictures, debias.text("never seen"))])
    refused("make it with this processor inside", elsewhere)
    refused("without assisted decoding", qwen.inputs(debias, 0), prompt_lookup_num_tokens=2)
    right = AutoProcessor.from_pretrained(qwen.folder)
    right.tokenizer.padding_side = "right"
    with debiasing(qwen.sdpa, right, qwen.calibration_file) as other:
        inputs = encoded(right, [chat(qwen.shown(n), other.text(CAPTIONS[n])) for n in range(2)])
        assert (inputs["attention_mask"][:, -1] == 0).any()
        with pytest.raises(UserError, match="pad it on the left"):
            qwen.sdpa.generate(**inputs, logits_processor=[other], max_new_tokens=1)


def test_a_second_turn_is_refused(qwen: Subject, refused: Any) -> None:
    """It begins with the prompt that was debiased, but it is not one."""
    inputs = qwen.inputs(refused.debias, 0)
    first = qwen.sdpa.generate(**inputs, logits_processor=[refused.debias], max_new_tokens=1)
    more = torch.cat([first, first[:, -2:]], 1)
    longer = {**inputs, "input_ids": more, "attention_mask": torch.ones_like(more)}
    longer["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 3))
    refused("not known", longer)


def test_a_static_cache_is_refused(qwen: Subject, refused: Any) -> None:
    """Its keys run on beyond the prompt."""
    refused("default cache", qwen.inputs(refused.debias, 0), cache_implementation="static")


def test_foreign_calibrations_are_refused(qwen: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = torch.load(qwen.calibration_file, weights_only=True)

    def refused(match: str, changes: dict[str, Any] | None = None, **options: Any) -> None:
        provenance = {name: value for name, value in (stored["provenance"] | (changes or {})).items() if value != ""}
        torch.save({**stored, **pack(qwen.calibration, provenance)}, tmp_path / "other.ckpt")
        path = options.pop("path", tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=match), debiasing(qwen.sdpa, qwen.processor, path, **options):
            pass

    refused("another model or processor .weights", {"weights": "0123456789abcdef"})
    refused("another model or processor .processor", {"processor": "0123456789abcdef"})
    refused("does not record its prompt", {"prompt": ""})
    refused("There is no calibration", path=tmp_path / "none.ckpt")
    refused("'adg' is not a readout", readout="adg")
    refused("only 5 layers are captured", settings=ReadoutSettings(top_layers=6))
    refused("all tested prompts at once", readout="batch_calibration", settings=ReadoutSettings(batch="test"))
    monkeypatch.setattr(type(qwen.sdpa), "generate", lambda self: None)
    refused("generate of its own")


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("only_candidates", [True, False])
def test_output_that_is_not_finite_is_refused(qwen: Subject, value: float, only_candidates: bool) -> None:
    """As an overflow in half precision makes it: greedy decoding would take the first token of the vocabulary."""
    with qwen.debiased(only_candidates=only_candidates) as debias:
        inputs = debias.encode(qwen.shown(0), CAPTIONS[0])
        inputs["pixel_values"][0, 0] = value
        with pytest.raises(UserError, match=r"Prompt 1: the model's output is not finite; .*float32"):
            qwen.sdpa.generate(**inputs, logits_processor=[debias], max_new_tokens=1, do_sample=False)


def test_a_prompt_longer_than_the_context_is_refused(qwen: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with qwen.debiased() as debias:
        inputs = debias.encode(qwen.shown(0), CAPTIONS[0])
        length = inputs["input_ids"].shape[1]
        monkeypatch.setattr(qwen.sdpa.config.get_text_config(), "max_position_embeddings", length - 1)
        with pytest.raises(UserError, match=f"prompt of 4 images has {length} tokens, .* positions for {length - 1};"):
            qwen.sdpa.generate(**inputs, logits_processor=[debias], max_new_tokens=1, do_sample=False)


# ------------------------------------------------------------------------------------------------------------ the maths


def test_tokens_follow_their_best_candidate() -> None:
    """Candidates (1, 0), (1, 2) and (3,): P is 0.3, 0.3 and 0.4, so that greedy decoding must go to 3."""
    trie = AnswerTrie(((1, 0), (1, 2), (3,)))
    log_probs = torch.tensor([[0.3, 0.3, 0.4]] * 2).log()
    scores = torch.tensor([[0.0, 5.0, 1.0, 2.0], [0.5, 0.0, 0.0, 7.0]])
    first = candidate_logits(scores, torch.empty(2, 0, dtype=torch.long), trie, log_probs, only_candidates=False)
    assert first.argmax(-1).tolist()[0] == 3
    assert torch.equal(first[:, [0, 2]], scores[:, [0, 2]])
    assert torch.allclose(first[:, [1, 3]].logsumexp(-1), scores[:, [1, 3]].logsumexp(-1))
    assert torch.allclose((first[:, 3] - first[:, 1]).exp(), torch.tensor(4 / 3))
    second = candidate_logits(scores, torch.tensor([[1], [3]]), trie, log_probs)
    assert second[0].isinf().tolist() == [False, True, False, True]
    assert torch.equal(second[1], scores[1])  # complete
    elsewhere = torch.tensor([[torch.nan, 5.0, 1.0, 2.0]] * 2)
    for ruled_out in (torch.full((2, 4), -torch.inf), torch.full((2, 4), torch.nan), elsewhere):
        with pytest.raises(UserError, match="Prompt 1: the model's output is not finite"):
            candidate_logits(ruled_out, torch.empty(2, 0, dtype=torch.long), trie, log_probs)
    third = candidate_logits(scores, torch.tensor([[2], [2]]), trie, log_probs)
    assert torch.equal(third, scores)  # the answer is no candidate
