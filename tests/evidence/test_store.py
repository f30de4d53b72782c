"""The evidence store: what goes in comes out, torn ends are left out, foreign and damaged files are refused."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lad_pl import UserError
from lad_pl.evidence.store import EvidenceStore, read_prompts, read_settings, stream_prompts
from lad_pl.evidence.table import HEADER, EvidenceRecords, as_stored, no_evidence, to_record_batch
from lad_pl.types import Evidence

SAMPLES, T, N, LAYERS, HEADS = 7, 3, 4, 2, 5
SETTINGS = {"weights": "abc", "layers": (1, 2), "prompt": {"template": "{caption}"}}


def evidence(prompts: int, seed: int) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(prompts, N, generator=generator).log_softmax(-1)
    decades = torch.rand(2, prompts, LAYERS, HEADS, N, generator=generator) * 8
    return as_stored(Evidence.from_heads(log_probs, *(10**-decades / N)))


def sample(group: int, generated: bool = False) -> EvidenceRecords:
    orders = torch.stack([torch.arange(N).roll(place) for place in range(T)])
    return EvidenceRecords(
        evidence=no_evidence(T) if generated else evidence(T, group),
        targets=(orders == group % N).long().argmax(1) if group else torch.full((T,), -1),
        permutations=orders,
        sample_index=torch.full((T,), group),
        permutation_index=torch.arange(T),
        ids=(f"sample {group}",) * T,
        seconds=torch.full((T,), 0.25).double(),
        forwards=torch.full((T,), 2),
        content_free=None if generated else evidence(T, 100 + group),
        texts=tuple((f"chain {group} {place}", "</think> 3") for place in range(T)) if generated else None,
        icr=None if generated else evidence(T, 200 + group).log_probs,
    )


def of_earlier_version(records: EvidenceRecords) -> EvidenceRecords:
    """As formats 1 and 2 have it: without the attention of the captions' tokens."""
    free = records.content_free
    return replace(
        records,
        evidence=replace(records.evidence, caption_attention=None),
        content_free=None if free is None else replace(free, caption_attention=None),
        icr=None,
    )


def assert_equal(one: EvidenceRecords, other: EvidenceRecords) -> None:
    for name in ("targets", "permutations", "sample_index", "permutation_index", "seconds", "forwards"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.ids == other.ids and one.texts == other.texts
    for ours, theirs in ((one.evidence, other.evidence), (one.content_free, other.content_free)):
        assert (ours is None) == (theirs is None)
        for name in ("log_probs", "attention", "layer_attention", "caption_attention") if ours is not None else ():
            assert same(getattr(ours, name), getattr(theirs, name)), name
    assert same(one.icr, other.icr)


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other is None or (one is not None and other is not None and torch.equal(one, other))


def stored(path: Path, sample_index: list[int], generated: bool = False, rank: int = 0) -> EvidenceStore:
    store = EvidenceStore(path, SETTINGS)
    for group in sample_index:
        store.append(sample(group, generated), rank)
    store.close()
    return store


@pytest.mark.parametrize("generated", [False, True])
def test_what_goes_in_comes_out_in_the_samples_order(tmp_path: Path, generated: bool) -> None:
    path = tmp_path / "evidence.parquet"
    stored(path, [4, 0, 6], generated)
    stored(path, [5, 1], generated, rank=1)
    stored(path, [3, 2, 3], generated).finish(SAMPLES, T)  # a second attempt, which computed one sample twice
    prompts = read_prompts(path)
    assert prompts.sample_index.tolist() == sorted([*range(SAMPLES)] * T)
    for group in range(SAMPLES):
        assert_equal(prompts[torch.arange(group * T, group * T + T)], sample(group, generated))
    assert [path.name] == [entry.name for entry in tmp_path.iterdir()]
    assert read_settings(path) == {**SETTINGS, "layers": [1, 2]}


def test_half_precision_keeps_small_masses() -> None:
    masses = 10 ** -torch.linspace(0, 8.3, 1000).double()
    kept = as_stored(Evidence.from_heads(torch.zeros(1, 4), masses.view(1, 1, 250, 4))).attention.flatten()
    assert ((kept / masses - 1).abs() < 1.1e-3).all()


def test_without_heads_attention_is_their_mean(tmp_path: Path) -> None:
    path = tmp_path / "evidence.parquet"
    stored(path, [*range(SAMPLES)]).finish(SAMPLES, T)
    whole, light = read_prompts(path), read_prompts(path, heads=False)
    assert light.evidence.attention.shape == (SAMPLES * T, LAYERS, 1, N)
    assert whole.evidence.caption_attention is not None and light.evidence.caption_attention is None
    assert torch.equal(light.evidence.layer_attention, whole.evidence.layer_attention)
    np.testing.assert_allclose(light.evidence.attention[:, :, 0], whole.evidence.attention.mean(2), rtol=1e-3)


def test_streams_whole_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lad_pl.evidence.store._ROWS_PER_GROUP", 4)
    path = tmp_path / "evidence.parquet"
    stored(path, [*range(SAMPLES)]).finish(SAMPLES, T)
    assert pq.ParquetFile(path).num_row_groups == 6
    parts = list(stream_prompts(path))
    assert len(parts) > 2
    assert all(len(part) % T == 0 for part in parts)
    assert torch.equal(torch.cat([part.sample_index for part in parts]), read_prompts(path).sample_index)


def test_a_part_torn_anywhere_gives_its_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "evidence.parquet"
    store = stored(path, [0, 1, 2])
    (part,) = store.folder.iterdir()
    content = part.read_bytes()
    seen = set()
    for length in [*range(0, len(content), 97), len(content)]:
        part.write_bytes(content[:length])
        again = EvidenceStore(path, SETTINGS)
        again.check()
        done = again.done(T)
        assert done == set(range(len(done)))
        seen.add(len(done))
    assert seen == {0, 1, 2, 3}


def test_a_sample_with_a_permutation_missing_is_not_done(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path / "evidence.parquet", SETTINGS)
    store.append(sample(0))
    store.append(sample(1)[torch.tensor([0, 2])])
    store.close()
    assert store.done(T) == {0}
    with pytest.raises(UserError, match=r"1 of 6 prompts have no evidence"):
        store.finish(2, T)
    assert store.done(T) == {0}


def test_evidence_of_another_configuration(tmp_path: Path) -> None:
    path = tmp_path / "evidence.parquet"
    finished = stored(path, [0])
    other = {**SETTINGS, "weights": "xyz"}
    for _ in ("parts", "file"):
        with pytest.raises(UserError, match=r"weights: 'abc' there, 'xyz' here.*--model.overwrite true"):
            EvidenceStore(path, other).check()
        EvidenceStore(path, SETTINGS).check()
        finished.finish(1, T)
    store = EvidenceStore(path, other, overwrite=True)
    store.check()
    assert store.done(T) == set()
    store.append(sample(0))
    store.close()
    assert read_settings(path)["weights"] == "abc"  # there until what replaces it is whole
    store.finish(1, T)
    assert read_settings(path)["weights"] == "xyz"
    same = EvidenceStore(path, other, overwrite=True)
    assert same.done(T) == {0}  # overwriting is for what differs


def test_unfinished_evidence_of_another_configuration_never_mixes_in(tmp_path: Path) -> None:
    path = tmp_path / "evidence.parquet"
    stored(path, [0, 1])
    other = EvidenceStore(path, {**SETTINGS, "weights": "xyz"}, overwrite=True)
    assert other.done(T) == set()
    with pytest.raises(UserError, match="3 of 3 prompts have no evidence"):
        other.finish(1, T)
    assert EvidenceStore(path, SETTINGS).done(T) == {0, 1}


def keyed(path: Path, keys: str, settings: dict = SETTINGS, **options) -> EvidenceStore:
    """A store for samples with these keys, which are their numbers: `sample(3)` has the key 3."""
    return EvidenceStore(path, settings, samples={key: f"id {key}" for key in keys}, **options)


def add(store: EvidenceStore, keys: str) -> None:
    order = list(store._keys)
    for key in keys:
        records = sample(int(key))
        store.append(replace(records, sample_index=torch.full((T,), order.index(key))))
    store.close()


def test_evidence_is_known_by_sample(tmp_path: Path) -> None:
    """Whatever the other samples are, and under which index and id."""
    path = tmp_path / "evidence.parquet"
    add(keyed(path, "123"), "312")
    store = keyed(path, "5214")
    store.check()
    assert store.done(T) == {1, 2}
    add(store, "45")
    store.finish(4, T)
    prompts = read_prompts(path)
    assert prompts.ids == tuple(f"id {key}" for key in "5214" for _ in range(T))
    assert prompts.sample_index.tolist() == sorted([*range(4)] * T)
    for index, key in enumerate("5214"):
        assert torch.equal(prompts.evidence.attention[index * T : index * T + T], sample(int(key)).evidence.attention)
    back = keyed(path, "321")  # what was left out has been kept
    assert back.done(T) == {0, 1, 2}
    back.finish(3, T)
    assert keyed(path, "12345").done(T) == {0, 1, 2, 3, 4}
    content = path.read_bytes()
    back.finish(3, T)
    assert path.read_bytes() == content


def test_other_stores_lend_evidence_of_the_same_settings(tmp_path: Path) -> None:
    sources = [tmp_path / f"{name}.parquet" for name in ("finished", "parts", "foreign", "damaged", "nowhere")]
    finished, parts = (keyed(path, "0123") for path in sources[:2])
    foreign = keyed(sources[2], "0123", {"weights": "xyz"})
    add(finished, "0123")
    finished.finish(4, T)
    add(parts, "2")
    parts.append(replace(sample(3)[torch.tensor([0, 1])], sample_index=torch.full((T - 1,), 3)))  # not whole
    parts.close()
    add(foreign, "0123")
    sources[3].write_bytes(sources[0].read_bytes()[:-100])
    store = keyed(tmp_path / "evidence.parquet", "32")
    for chosen, expected in ((sources[2:], set()), (sources[1:2], {1}), (sources, {0, 1})):
        store.adopt(chosen, T)
        assert store.done(T) == expected
    store.finish(2, T)
    prompts = read_prompts(tmp_path / "evidence.parquet")
    assert prompts.ids == ("id 3",) * T + ("id 2",) * T
    assert torch.equal(prompts.evidence.log_probs[T:], sample(2).evidence.log_probs)
    assert parts.done(T) == {2}


def test_what_another_run_wrote_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "evidence.parquet"
    other = {**SETTINGS, "weights": "xyz"}
    first, second = EvidenceStore(path, SETTINGS), EvidenceStore(path, other, overwrite=True)
    first.check()
    second.check()
    for store in (second, first):
        store.append(sample(0))
        store.close()
    waiting = sorted(second.folder.iterdir())
    first.finish(1, T)
    assert sorted(second.folder.iterdir()) == waiting  # the other's parts
    with pytest.raises(UserError, match=r"weights: 'abc' there, 'xyz' here.* this run computed is kept in"):
        second.finish(1, T)
    assert read_settings(path)["weights"] == "abc"
    second.check()  # now it may be known
    second.finish(1, T)
    assert read_settings(path)["weights"] == "xyz"


def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path / "evidence.parquet", [0])
    room = [1500]

    def write(file: int, data: memoryview) -> int:
        taken = min(room[0], len(data), 700)  # a disk that fills up takes a part of what it is given
        room[0] -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sound(file, data[:taken])

    sound = os.write
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(UserError, match=rf"No space left on device: .*is kept in {store.folder}"):
        store.append(sample(1))
    room[0] = 10**6
    again = EvidenceStore(tmp_path / "evidence.parquet", SETTINGS)
    again.append(sample(2))  # in pieces
    again.close()
    assert again.done(T) == {0, 2}


def test_two_processes_of_one_rank_lose_nothing(tmp_path: Path) -> None:
    """A command that was typed twice."""
    stores = [EvidenceStore(tmp_path / "evidence.parquet", SETTINGS) for _ in range(2)]
    for group in range(3):
        for store in stores:
            store.append(sample(group))
    for store in stores:
        store.close()
    assert EvidenceStore(tmp_path / "evidence.parquet", SETTINGS).done(T) == {0, 1, 2}
    stores[0].finish(3, T)
    stores[1].finish(3, T)
    assert len(read_prompts(tmp_path / "evidence.parquet")) == 3 * T


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "evidence.parquet"
    with pytest.raises(UserError, match="There is no evidence at"):
        read_prompts(path)
    stored(path, [*range(SAMPLES)]).finish(SAMPLES, T)
    content = path.read_bytes()
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"evidence.parquet .*truncated"):
            read_prompts(path)
        with pytest.raises(UserError, match="cannot be read"):
            EvidenceStore(path, SETTINGS).check()
    middle = bytearray(content)
    middle[60:160] = bytes(100)
    path.write_bytes(bytes(middle))
    with pytest.raises(UserError, match="is damaged"):
        read_prompts(path)
    table = pq.read_table(_restored(path, content))
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(UserError, match="is no evidence of this toolkit"):
        read_prompts(path)


@pytest.mark.parametrize("generated", [False, True])
def test_a_flipped_byte_never_changes_what_is_read(tmp_path: Path, generated: bool) -> None:
    path = tmp_path / "evidence.parquet"
    stored(path, [*range(SAMPLES)], generated).finish(SAMPLES, T)
    whole, settings = read_prompts(path), read_settings(path)
    refused = 0
    for _ in flips(path, path.read_bytes(), 100):
        try:
            found, its_settings = read_prompts(path), read_settings(path)
        except UserError:
            refused += 1
        else:
            assert its_settings == settings
            assert_equal(found, whole)
    assert refused > 50  # else this would have tested nothing


@pytest.mark.parametrize("generated", [False, True])
def test_a_damaged_record_of_a_part_is_computed_again(tmp_path: Path, generated: bool) -> None:
    path = tmp_path / "evidence.parquet"
    store = stored(path, [*range(3)], generated)
    (part,) = store.folder.iterdir()
    content, recomputed = part.read_bytes(), 0
    for _ in flips(part, content, 40 if generated else 100):
        again = EvidenceStore(path, SETTINGS)
        lost = {*range(3)} - again.done(T)
        recomputed += len(lost)
        for group in lost:
            again.append(sample(group, generated))
        again.close()
        again.finish(3, T)
        found = read_prompts(path)
        for group in range(3):
            assert_equal(found[torch.arange(group * T, group * T + T)], sample(group, generated))
        path.unlink()
        store.folder.mkdir(exist_ok=True)
    assert recomputed > 25


def flips(path: Path, content: bytes, count: int) -> Iterator[None]:
    """The file with one byte changed, ``count`` times."""
    generator = random.Random(0)
    for _ in range(count):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        path.write_bytes(flipped)
        yield


def log_probs(evidence: Evidence) -> None:
    evidence.log_probs[1] += 0.01


def not_finite(evidence: Evidence) -> None:
    evidence.log_probs[1, 1] = -torch.inf
    evidence.log_probs[1, 2] = torch.nan


def negative_mass(evidence: Evidence) -> None:
    evidence.layer_attention[1, 0, 1] = -1e-6


def too_much_mass(evidence: Evidence) -> None:
    evidence.layer_attention[1, 0] += 0.5


def nan_of_the_caption(evidence: Evidence) -> None:
    evidence.caption_attention[1, 0, 2, 1] = torch.nan


def too_much_mass_of_the_caption(evidence: Evidence) -> None:
    evidence.caption_attention[1, 0, 2, 1] = 1.01


def other_mean(evidence: Evidence) -> None:
    evidence.layer_attention[1, 0, 1] += 1e-5 + 0.01 * evidence.layer_attention[1, 0, 1]


@pytest.mark.parametrize(
    "damage",
    [
        *(log_probs, not_finite, negative_mass, too_much_mass, other_mean),
        *(nan_of_the_caption, too_much_mass_of_the_caption),
    ],
)
@pytest.mark.parametrize("content_free", [False, True])
def test_impossible_values_are_refused_without_any_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Evidence], None], content_free: bool
) -> None:
    """As in a damaged file of format 1, which has none."""
    records = [sample(group) for group in range(SAMPLES)]
    evidence = records[1].content_free if content_free else records[1].evidence
    damage(evidence)
    with pytest.raises(UserError, match=r"cannot be used: the .* of sample sample 1 is impossible"):
        EvidenceStore(tmp_path / "evidence.parquet", SETTINGS).append(records[1])
    path = without_digests(tmp_path / "evidence.parquet", EvidenceRecords.concat(records))
    with pytest.raises(UserError, match=r"evidence.parquet is damaged \(the .* of sample sample 1 is impossible\)"):
        read_prompts(path)


def test_impossible_indices_are_refused(tmp_path: Path) -> None:
    for change in (
        {"targets": torch.full((T,), N)},
        {"permutations": torch.zeros(T, N, dtype=torch.long)},
        {"seconds": torch.full((T,), torch.nan).double()},
        {"forwards": torch.full((T,), -1)},
        {"icr": torch.full((T, N), torch.nan).double()},
    ):
        path = without_digests(tmp_path / "evidence.parquet", replace(sample(1), **change))
        with pytest.raises(UserError, match="is damaged"):
            read_prompts(path)


def without_digests(path: Path, records: EvidenceRecords) -> Path:
    """A finished store as format 1 was, but with all columns."""
    batch = to_record_batch(records, SETTINGS)
    header = json.loads(batch.schema.metadata[HEADER]) | {"format": 1}
    table = pa.Table.from_batches([batch]).replace_schema_metadata({HEADER: json.dumps(header)})
    pq.write_table(table, path)
    return path


class EarlierVersion:
    """Writes stores of format 2."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def add(self, store: EvidenceStore, keys: str, finish: bool = False) -> None:
        order = list(store._keys or ())
        with self._monkeypatch.context() as patch:
            patch.setattr("lad_pl.evidence.table.FORMAT", 2)
            for key in keys:
                index = order.index(key)
                records = of_earlier_version(sample(int(key)))
                store.append(replace(records, sample_index=torch.full((T,), index)))
            store.close()
            if finish:
                store.finish(len(order), T)
        assert all(
            b'"format": 2' in path.read_bytes() for path in [*store.folder.glob("*"), store.path] if path.exists()
        )


@pytest.fixture
def earlier(monkeypatch: pytest.MonkeyPatch) -> EarlierVersion:
    return EarlierVersion(monkeypatch)


def rows_of(path: Path) -> int | None:
    """How many prompts of a finished store have the attention of the caption's tokens; None if it holds no such."""
    found = read_prompts(path).evidence.caption_attention
    return None if found is None else len(found)


def test_evidence_of_an_earlier_format_reads_as_it_was(tmp_path: Path, earlier: EarlierVersion) -> None:
    path = tmp_path / "evidence.parquet"
    earlier.add(keyed(path, "12"), "21", finish=True)
    prompts = read_prompts(path)
    for index, key in enumerate("12"):
        expected = replace(of_earlier_version(sample(int(key))), sample_index=torch.full((T,), index))
        assert_equal(prompts[torch.arange(index * T, index * T + T)], replace(expected, ids=(f"id {key}",) * T))
    content = path.read_bytes()
    again = keyed(path, "12")
    again.check()
    assert again.done(T) == {0, 1}
    again.finish(2, T)
    assert path.read_bytes() == content


def test_unfinished_evidence_of_an_earlier_format_is_gone_on_with(tmp_path: Path, earlier: EarlierVersion) -> None:
    """The prompts that are there count; as they lack the captions' attention, so does the whole, and it says so."""
    path = tmp_path / "evidence.parquet"
    earlier.add(keyed(path, "123"), "1")
    store = keyed(path, "123")
    store.check()
    assert store.done(T) == {0}
    add(store, "32")
    store.finish(3, T)
    assert rows_of(path) is None and read_prompts(path).icr is None
    assert torch.equal(read_prompts(path).evidence.attention[T : 2 * T], sample(2).evidence.attention)
    assert keyed(path, "123", overwrite=True, captions=True).done(T) == set()


@pytest.mark.parametrize("finished", [False, True])
def test_overwriting_computes_what_an_earlier_format_lacks_and_a_readout_needs(
    tmp_path: Path, earlier: EarlierVersion, finished: bool
) -> None:
    path = tmp_path / "evidence.parquet"
    earlier.add(keyed(path, "12"), "12", finish=finished)
    for needless in ({"overwrite": True}, {"captions": True}):
        assert keyed(path, "12", **needless).done(T) == {0, 1}  # for what needs it, and where it may be replaced
    store = keyed(path, "12", overwrite=True, captions=True)
    store.check()
    assert store.done(T) == set()
    add(store, "12")
    store.finish(2, T)
    assert rows_of(path) == 2 * T
    assert not [*tmp_path.glob("*.parts-*")]
    assert keyed(path, "12", overwrite=True, captions=True).done(T) == {0, 1}  # overwriting is for what differs


def test_samples_that_come_and_go_take_nothing_from_the_others(tmp_path: Path, earlier: EarlierVersion) -> None:
    """Evidence of an earlier format of a sample that is no longer asked for does not count for those that are."""
    path = tmp_path / "evidence.parquet"
    earlier.add(keyed(path, "12"), "1")
    store = keyed(path, "23")
    add(store, "23")
    store.finish(2, T)
    assert rows_of(path) == 2 * T
    back = keyed(path, "213")
    assert back.done(T) == {0, 1, 2}
    back.finish(3, T)
    assert rows_of(path) is None


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_stores_of_an_earlier_format_lend_too(tmp_path: Path, earlier: EarlierVersion, overwrite: bool) -> None:
    source, path = tmp_path / "source.parquet", tmp_path / "evidence.parquet"
    earlier.add(keyed(source, "12"), "12", finish=True)
    store = keyed(path, "123", overwrite=overwrite, captions=True)
    store.adopt([source], T)
    assert store.done(T) == (set() if overwrite else {0, 1})
    add(store, "123" if overwrite else "3")
    store.finish(3, T)
    assert rows_of(path) == (3 * T if overwrite else None)


def test_one_process_may_come_upon_both_kinds(tmp_path: Path) -> None:
    """A caption without words among others: its batch has no such attention, and no other batch loses anything else."""
    path = tmp_path / "evidence.parquet"
    store = EvidenceStore(path, SETTINGS)
    for records in (sample(0), of_earlier_version(sample(1)), sample(2)):
        store.append(records)
    store.close()
    assert store.done(T) == {0, 1, 2}
    store.finish(3, T)
    assert rows_of(path) is None
    assert torch.equal(read_prompts(path).evidence.attention[2 * T :], sample(2).evidence.attention)
    again = EvidenceStore(path, SETTINGS, overwrite=True, captions=True)
    assert again.done(T) == {0, 1, 2}  # computing it anew would give the same


def _restored(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
