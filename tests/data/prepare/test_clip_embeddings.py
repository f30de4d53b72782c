import logging
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from safetensors.torch import load_file
from tiny_clip import CONFIG, build_tiny_clip
from tiny_vlm import write_noise_images

from lad_pl.data.prepare import clip_embeddings
from lad_pl.data.prepare.clip_embeddings import Clip, ClipSpec, embed, load_clip
from lad_pl.errors import UserError


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return build_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def spec(clip_folder) -> ClipSpec:
    return ClipSpec(f"local-dir:{clip_folder}")


@pytest.fixture
def photos(tmp_path) -> Path:
    write_noise_images(tmp_path / "photos", 10, sizes=((40, 60), (90, 30)))
    return tmp_path / "photos"


def captions(photos: Path) -> dict[str, str]:
    return {path.name: f"A picture called {path.stem}" for path in sorted(photos.iterdir())}


def test_equal_to_open_clip_itself(tmp_path, photos, spec):
    found = embed(captions(photos), photos, tmp_path / "store", spec, batch_size=3, shard_size=4)
    model, preprocess = open_clip.create_model_from_pretrained(spec.model)
    tokenize = open_clip.get_tokenizer(spec.model)
    model.eval()
    for row, (name, caption) in enumerate(captions(photos).items()):
        with torch.no_grad():
            image = model.encode_image(preprocess(Image.open(photos / name).convert("RGB"))[None], normalize=True)
            text = model.encode_text(tokenize([caption]), normalize=True)
        torch.testing.assert_close(found.images[row], image[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.texts[row], text[0], atol=1e-5, rtol=1e-5)
    assert found.names == tuple(captions(photos)) and found.computed == 10 and not found.broken


def test_taken_up_after_an_interruption_and_used_again(tmp_path, photos, spec, monkeypatch):
    whole = embed(captions(photos), photos, tmp_path / "whole", spec, batch_size=2, shard_size=4)
    seen: list[int] = []
    plain = Clip.embed

    def watched(self, images, texts):
        seen.append(len(texts))
        if sum(seen) == 6 and not (tmp_path / "resumed").exists():
            (tmp_path / "resumed").touch()
            raise KeyboardInterrupt
        return plain(self, images, texts)

    monkeypatch.setattr(Clip, "embed", watched)
    store = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        embed(captions(photos), photos, store, spec, batch_size=2, shard_size=4)
    assert sorted(path.name for path in store.iterdir()) == ["manifest.json", "shard-00000.safetensors"]
    seen.clear()
    resumed = embed(captions(photos), photos, store, spec, batch_size=2, shard_size=4)
    assert sum(seen) == 6 == resumed.computed
    assert torch.equal(resumed.images, whole.images) and torch.equal(resumed.texts, whole.texts)

    monkeypatch.setattr(clip_embeddings, "load_clip", None)  # nothing is left to compute, so that no model is needed
    fewer = dict(reversed(list(captions(photos).items())[2:7]))
    again = embed(fewer, photos, store, spec)
    assert again.computed == 0 and again.names == tuple(fewer)
    assert torch.equal(again.images, whole.images[2:7].flip(0)) and torch.equal(again.texts, whole.texts[2:7].flip(0))


def test_only_what_changed_is_computed_again(tmp_path, photos, spec):
    requested = captions(photos)
    before = embed(requested, photos, tmp_path / "store", spec)
    requested["noise_003.png"] = "Something else"
    write_noise_images(photos, 1, sizes=((33, 33),), seed=9)  # another noise_000.png
    after = embed(requested, photos, tmp_path / "store", spec)
    assert after.computed == 2
    changed = (before.texts != after.texts).any(1) | (before.images != after.images).any(1)
    assert changed.nonzero()[:, 0].tolist() == [0, 3]
    torch.testing.assert_close(before.images[3], after.images[3])


def test_workers_give_the_same(tmp_path, photos, spec):
    one = embed(captions(photos), photos, tmp_path / "one", spec, batch_size=4)
    two = embed(captions(photos), photos, tmp_path / "two", spec, batch_size=4, num_workers=2)
    assert torch.equal(one.images, two.images) and torch.equal(one.texts, two.texts)


def test_broken_images_are_named_and_the_others_kept(tmp_path, photos, spec):
    content = (photos / "noise_004.png").read_bytes()
    (photos / "noise_004.png").write_bytes(content[: len(content) // 2])
    for name in ("noise_008.png", "noise_009.png"):  # a shard of broken images alone
        (photos / name).write_text("no picture")
    found = embed(captions(photos), photos, tmp_path / "store", spec, batch_size=2, shard_size=4)
    assert list(found.broken) == ["noise_004.png", "noise_008.png", "noise_009.png"]
    assert "noise_004.png cannot be read" in found.broken["noise_004.png"]
    assert len(found.names) == len(found.images) == len(found.texts) == 7 == found.computed
    (photos / "noise_004.png").write_bytes(content)
    assert embed(captions(photos), photos, tmp_path / "store", spec).computed == 1


def test_a_missing_image_and_a_damaged_shard(tmp_path, photos, spec):
    with pytest.raises(UserError, match=r"nothing.png cannot be read \(No such file"):
        embed({"nothing.png": "x"}, photos, tmp_path / "store", spec)
    embed(captions(photos), photos, tmp_path / "store", spec)
    shard = tmp_path / "store" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"shard-00000.safetensors are damaged .*; delete the file"):
        embed(captions(photos), photos, tmp_path / "store", spec)


def test_a_store_of_another_model_is_refused_or_rebuilt(tmp_path, photos, spec):
    other = ClipSpec(f"local-dir:{build_tiny_clip(tmp_path / 'other', seed=1)}")
    first = embed(captions(photos), photos, tmp_path / "store", spec, shard_size=4)
    with pytest.raises(UserError, match=r"of another model \(model: .*--rebuild true"):
        embed(captions(photos), photos, tmp_path / "store", other)
    second = embed(captions(photos), photos, tmp_path / "store", other, rebuild=True)
    assert second.computed == 10 and not torch.allclose(first.images, second.images, atol=0.01)

    build_tiny_clip(tmp_path / "other", seed=2)  # other weights under the same name
    with pytest.raises(UserError, match=r"of another model \(sha256: "):
        embed(captions(photos), photos, tmp_path / "store", other)
    (tmp_path / "store" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"of another model \(manifest.json cannot be read"):
        embed(captions(photos), photos, tmp_path / "store", spec)


def test_a_model_that_did_not_load_leaves_the_store_to_others(tmp_path, photos, spec):
    with pytest.raises(UserError, match="open_clip has no model"):
        embed(captions(photos), photos, tmp_path / "store", ClipSpec("ViT-Z-14"))
    assert embed(captions(photos), photos, tmp_path / "store", spec).computed == 10


# ------------------------------------------------------------------------------------------------------ the model


def test_a_local_checkpoint_of_a_model_that_open_clip_knows(clip_folder, tmp_path, monkeypatch):
    """Where weights cannot be downloaded: the model's name and a file."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", CONFIG)
    checkpoint = clip_folder / "open_clip_model.safetensors"
    network = load_clip(ClipSpec("tiny", str(checkpoint))).network
    assert not network.training
    torch.testing.assert_close(network.state_dict(), load_file(checkpoint), atol=0, rtol=0)
    torch.save({"state_dict": load_file(checkpoint)}, tmp_path / "epoch_1.pt")
    torch.testing.assert_close(
        load_clip(ClipSpec("tiny", str(tmp_path / "epoch_1.pt"))).network.state_dict(), network.state_dict()
    )
    with pytest.raises(UserError, match=r"epoch_2.pt' is neither a checkpoint file nor weights of tiny"):
        load_clip(ClipSpec("tiny", str(tmp_path / "epoch_2.pt")))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ClipSpec("ViT-L14"), r"no model 'ViT-L14' \(similar: .*ViT-L-14"),
        (ClipSpec("ViT-L-14", "closedai"), "neither a checkpoint file nor weights of ViT-L-14; open_clip has openai, "),
        (ClipSpec("local-dir:nowhere"), "local-dir:nowhere cannot be loaded"),
    ],
)
def test_unknown_models(spec, message):
    with pytest.raises(UserError, match=message) as error:
        load_clip(spec)
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_says_how_to_name_a_file(monkeypatch):
    def unreachable(*arguments, **keywords):
        raise OSError("no route to host")

    monkeypatch.setattr(factory, "download_pretrained", unreachable)
    handlers = list(logging.root.handlers)
    with pytest.raises(UserError) as error:
        load_clip(ClipSpec())
    assert str(error.value) == (
        "The weights 'openai' of ViT-L-14 cannot be downloaded (Failed to download weights for tag 'openai': no route "
        "to host); fetch them elsewhere and name the file: --pretrained open_clip_model.safetensors with --model "
        "ViT-L-14-quickgelu."
    )
    assert logging.root.handlers == handlers and logging.root.manager.disable == logging.NOTSET


def test_openai_weights_get_their_activation(monkeypatch, clip_folder):
    """open_clip would only warn that ViT-L-14 has another one, and compute something else."""
    forced = {}

    def create(model, pretrained, **keywords):
        forced[model, pretrained] = keywords["force_quick_gelu"]
        return torch.nn.Identity(), None

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    load_clip(ClipSpec("ViT-L-14", "openai"))
    load_clip(ClipSpec("ViT-L-14", "laion2b_s32b_b82k"))
    load_clip(ClipSpec("ViT-L-14", str(clip_folder / "open_clip_model.safetensors")))
    assert list(forced.values()) == [True, False, False]


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_nothing(tmp_path):
    torch.save({"state_dict": Harmful(tmp_path / "harmed")}, tmp_path / "harm.pt")
    (tmp_path / "harm.pkl").write_bytes(pickle.dumps(Harmful(tmp_path / "harmed")))
    for name in ("harm.pt", "harm.pkl"):
        with pytest.raises(UserError, match=r"cannot be loaded as RN50 from plain tensors"):
            load_clip(ClipSpec("RN50", str(tmp_path / name)))
    assert not (tmp_path / "harmed").exists()
