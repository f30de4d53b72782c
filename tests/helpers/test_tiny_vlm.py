"""The tiny checkpoint does what the other tests take for granted."""

import json
import socket
from pathlib import Path

import pytest
import tiny_vlm
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

needs_photos = pytest.mark.skipif(
    not tiny_vlm.PHOTOS.exists(), reason=f"the photographs {tiny_vlm.PHOTOS} are not here"
)


@pytest.fixture(scope="module", autouse=True)
def offline():
    """No network: HF_HUB_OFFLINE is read on import, so the connection itself is refused."""

    def refuse(*_: object) -> None:
        raise AssertionError("the tiny checkpoint reached for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.build_tiny_qwen(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Four images in two sizes, which the processor turns into different numbers of tokens."""
    paths = tiny_vlm.write_noise_images(tmp_path_factory.mktemp("noise"), 4, sizes=[(56, 56), (112, 56)])
    return [Image.open(path) for path in paths]


@pytest.fixture(scope="module")
def processor(folder: Path):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path):
    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()


def prompt(processor, count: int, caption: str) -> str:
    """A chat prompt of `count` images and a caption."""
    text = f"Given {count} images indexed from 1 to {count}.\nCaption: {caption}\nAnswer: "
    content = [{"type": "image"}] * count + [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def last_logits(model, inputs) -> torch.Tensor:
    """Logits (B, vocabulary) after the last token of each left-padded prompt."""
    with torch.inference_mode():
        return model(**inputs, logits_to_keep=1).logits[:, -1]


def test_folder_is_a_plain_checkpoint(folder: Path, model, processor) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.py")) and not list(folder.glob("*.bin"))
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.config.image_token_id == processor.image_token_id


def test_tokenizer_splits_digits_and_keeps_any_text(processor) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("12") == ["1", "2"]
    assert all(len(tokenizer.encode(str(digit))) == 1 for digit in range(10))
    text = "Ünïcode 47 – <think>\n\tok"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.padding_side == "left"
    for token in tiny_vlm.SPECIAL_TOKENS:
        assert tokenizer.tokenize(f"a{token}b") == ["a", token, "b"]


def test_chat_template_has_a_system_turn_and_a_generation_prompt(processor) -> None:
    text = prompt(processor, 2, "x")
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|vision_start|><|image_pad|><|vision_end|>") == 2


def test_eager_and_sdpa_agree_on_images_of_different_size(folder, model, processor, images) -> None:
    inputs = processor(text=[prompt(processor, 2, "a dog")], images=images[:2], return_tensors="pt")
    tokens = (inputs["image_grid_thw"].prod(dim=1) // 4).tolist()
    assert tokens[0] != tokens[1]
    assert (inputs["input_ids"] == processor.image_token_id).sum() == sum(tokens)
    assert "mm_token_type_ids" in inputs
    sdpa = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()
    torch.testing.assert_close(last_logits(sdpa, inputs), last_logits(model, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_left_padded_batch_equals_single_prompts(folder, processor, images, implementation) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=implementation).eval()
    texts = [prompt(processor, 2, "a dog"), prompt(processor, 2, "two giraffes in a room")]
    pairs = [images[:2], [images[1], images[3]]]
    batch = processor(text=texts, images=pairs, padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()
    together = last_logits(model, batch)
    for row, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        single = last_logits(model, processor(text=[text], images=pair, return_tensors="pt"))
        torch.testing.assert_close(together[row], single[0], atol=1e-4, rtol=1e-4)


def test_attention_is_uneven_and_answers_vary(model, processor, tmp_path: Path) -> None:
    """A uniform model would let a wrong attention capture, or a lost image, pass unseen."""
    shown = [Image.open(path) for path in tiny_vlm.write_noise_images(tmp_path, 16, seed=1)]
    digits = [processor.tokenizer.encode(str(digit))[0] for digit in range(1, 5)]
    captions = ["a dog", "a red bus by the sea", "two men on horses", "A cat sleeps."]
    answers, masses = [], []
    for start in range(0, 16, 4):
        text = prompt(processor, 4, captions[start // 4])
        for shift in range(4):
            four = [shown[start + (position + shift) % 4] for position in range(4)]
            inputs = processor(text=[text], images=four, return_tensors="pt")
            with torch.inference_mode():
                output = model(**inputs, output_attentions=True)
            answers.append(int(output.logits[0, -1, digits].argmax()))
            row = torch.stack(output.attentions)[:, 0, :, -1]  # (L, H, prompt tokens)
            is_image = inputs["input_ids"][0] == processor.image_token_id
            per_image = row[..., is_image].unflatten(-1, (4, -1)).sum(-1)
            masses.append(per_image / per_image.sum(-1, keepdim=True))
    assert len(set(answers)) >= 3
    by_order = [set(answers[start : start + 4]) for start in range(0, 16, 4)]
    assert sum(len(chosen) > 1 for chosen in by_order) >= 2  # the order of the images changes the answer
    share = torch.stack(masses)  # (prompts, L, H, N)
    assert share.amax(-1).mean() > 0.4  # 0.25 would be uniform
    assert share.std(0).mean() > 0.03  # and it depends on which images are shown


def test_same_arguments_same_weights(folder: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = tiny_vlm.build_tiny_qwen(tmp_path / "again")
    other = tiny_vlm.build_tiny_qwen(tmp_path / "other", seed=1)
    weights = (folder / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == weights
    assert (other / "model.safetensors").read_bytes() != weights
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


@needs_photos
def test_photo_annotations(tmp_path: Path) -> None:
    path = tiny_vlm.build_photo_annotations(tmp_path, num_samples=12, num_candidates=4, seed=3)
    captions = {
        photo["file_name"]: [caption.strip() for caption in photo["captions"]]
        for photo in json.loads((tiny_vlm.PHOTOS / "coco_captions.json").read_text())
    }
    annotations = json.loads(path.read_text())
    assert [a["id"] for a in annotations] == list(range(12))
    for annotation in annotations:
        names = annotation["image_ids"]
        assert len(set(names)) == 4 and all((tiny_vlm.PHOTOS / "coco" / name).exists() for name in names)
        assert annotation["caption"] in captions[names[annotation["index"]]]
    assert len({a["image_ids"][a["index"]] for a in annotations}) == 12
    assert len({a["index"] for a in annotations}) > 1


def test_noise_images(tmp_path: Path) -> None:
    paths = tiny_vlm.write_noise_images(tmp_path, 3, sizes=[(40, 30), (64, 64)], seed=2)
    assert [Image.open(path).size for path in paths] == [(40, 30), (64, 64), (40, 30)]
    assert len({path.read_bytes() for path in paths}) == 3
