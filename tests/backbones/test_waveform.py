"""The waveform pipeline: files of different lengths to padded batches, batched by length."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from recipe import run

from toolkit import testing
from toolkit.bundle import load_bundle
from toolkit.data.sampling import TrainingBatches, evaluation_batches, grouped
from toolkit.data.synthetic.corpus import write_corpus
from toolkit.errors import ConfigError
from toolkit.features.batch import collate, padded
from toolkit.features.cache import Segment
from toolkit.features.dataset import clip_dataset
from toolkit.features.spec import FbankSpec, WaveformSpec
from toolkit.features.waveform import Waveform
from toolkit.inference.predict import predict
from toolkit.registry import BACKBONES, PEFT, PIPELINES

SPEC = WaveformSpec(sample_rate=16000, max_length=40)
SAMPLES = [3000, 8000, 5000, 6399, 6400, 6401]


@pytest.fixture
def clips(tmp_path: Path) -> pd.DataFrame:
    """Files of different lengths; the last ones are about as long as the input in `SPEC`."""
    rng = np.random.default_rng(0)
    rows = []
    for number, samples in enumerate(SAMPLES):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(samples), 16000, subtype="FLOAT")
        rows.append({"id": f"clip {number}", "path": str(path), "label": number % 2, "fold": 1})
    return pd.DataFrame(rows)


def test_batches_hold_samples_and_their_lengths(clips: pd.DataFrame, tmp_path: Path) -> None:
    pipeline = PIPELINES.create("waveform")
    cache = pipeline.cache(clips, SPEC, tmp_path / "cache")
    assert cache.lengths.tolist() == SAMPLES
    rows = pd.Series(range(len(clips)), index=clips["id"])
    dataset = clip_dataset(clips, rows, cache)
    batch = collate(SPEC)([dataset[i] for i in (0, 2, 5)])
    assert batch.ids == ["clip 0", "clip 2", "clip 5"] and batch.labels.tolist() == [0, 0, 1]
    assert batch.lengths.tolist() == [3000, 5000, 6400] and batch.features.shape == (3, 6400, 1)
    for place, number in enumerate((0, 2, 5)):
        samples, _ = soundfile.read(clips["path"][number], dtype="float32")
        length = batch.lengths[place]
        assert torch.equal(batch.features[place, :length, 0], torch.from_numpy(samples[:length]))
        assert (batch.features[place, length:] == 0).all()
    short = collate(SPEC)([dataset[0]])
    assert short.features.shape == (1, 3000, 1)  # as long as its longest clip
    moved = batch.to("cpu")
    assert torch.equal(moved.lengths, batch.lengths)


def test_a_part_of_a_file(clips: pd.DataFrame) -> None:
    samples, _ = soundfile.read(clips["path"][1], dtype="float32")
    found = Waveform().read(Segment(clips["path"][1], 0.1, 0.25), SPEC)
    assert torch.equal(found[:, 0], torch.from_numpy(samples[1600:4000]))


def test_fixed_lengths_have_no_lengths() -> None:
    spec = FbankSpec(sample_rate=16000, max_length=10, mel_bins=4, mean=0.0, std=1.0)
    rows, lengths = padded([np.ones((3, 4), np.float32), np.ones((12, 4), np.float32)], spec)
    assert rows.shape == (2, 10, 4) and lengths is None
    assert rows[0].sum() == 12 and rows[1].sum() == 40


def test_the_wrong_pipeline_names_the_right_one(clips: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--pipeline waveform"):
        PIPELINES.create("fbank").cache(clips, SPEC, tmp_path)


def test_logits_of_a_batch_are_those_of_its_clips(clips: pd.DataFrame) -> None:
    model = testing.tiny_classifier(
        PEFT.create("soft_moa"), family="wav2vec2", noise=0.1, pooling="mean"
    ).eval()
    spec = model.backbone.features
    rows = [Waveform().read(Segment(path), spec).numpy() for path in clips["path"]]
    with torch.no_grad():
        together = model.logits(*padded(rows, spec))
        alone = torch.cat([model.logits(*padded([row], spec)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("clips", "batch_size"), [(1, 4), (8, 4), (103, 10), (1200, 8)])
def test_grouping_keeps_clips_and_sizes(clips: int, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(clips)
    lengths = torch.randint(1, 1000, (clips,), generator=generator).tolist()
    order = torch.randperm(clips, generator=generator).tolist()
    bounds = [(b, min(b + batch_size, clips)) for b in range(0, clips, batch_size)]
    found = grouped(order, lengths, bounds, generator)
    assert sorted(found) == list(range(clips))

    def padding(clips_in_order: list[int]) -> int:
        batches = [[lengths[clip] for clip in clips_in_order[b:e]] for b, e in bounds]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(found) <= padding(order)
    if clips > 2 * batch_size:
        assert padding(found) < padding(order) / 2


def test_training_batches_by_length_differ_from_epoch_to_epoch() -> None:
    lengths = [10 * (1 + clip % 7) for clip in range(50)]
    batches = TrainingBatches(50, 8, seed=3, lengths=lengths)
    first = list(batches)
    assert [len(batch) for batch in first] == batches.sizes
    assert sorted(clip for batch in first for clip in batch) == list(range(50))
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first
    shares = [list(TrainingBatches(50, 8, 3, rank, 2, lengths=lengths)) for rank in (0, 1)]
    joined = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert joined == [sorted(batch) for batch in first]


def test_evaluation_goes_from_the_shortest_to_the_longest() -> None:
    lengths = [5, 1, 4, 2, 3]
    assert evaluation_batches(5, 2, lengths=lengths) == [[1, 3], [4, 2], [0]]
    shares = [evaluation_batches(5, 2, rank, 2, lengths) for rank in (0, 1)]
    clips = [clip for share in shares for batch in share for clip in batch]
    assert sorted(clips) == list(range(5))


def test_the_recipe_trains_and_predicts_on_waveforms(tmp_path: Path) -> None:
    """A complete debug run on synthetic sounds, with a small HuBERT loaded from a folder."""
    corpus = write_corpus(tmp_path / "corpus", clips_per_class=5, seconds=0.5, progress=False)
    source = BACKBONES.get("hubert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = source.model_class(source.config_class(**{**source.tiny_config, **source.options}))
    model.save_pretrained(tmp_path / "hubert")
    options = ["--backbone", "./hubert", "--max_length", 20, "--debug", "true", "--batch_size", 4]
    options += [
        "--data_folder",
        corpus,
        "--output_folder",
        "out",
        "--pooling",
        "weighted",
        "--noprogressbar",
        "true",
    ]
    options += ["--augment", "[]"]
    refused = run("hparams/linear.yaml", *options, "--pipeline.name", "fbank", cwd=tmp_path)
    assert refused.returncode == 2 and "--pipeline waveform" in refused.stderr
    done = run("hparams/linear.yaml", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "out-debug").rglob("bundle"))
    bundle = load_bundle(folder, str(tmp_path / "hubert"))
    noise = np.random.default_rng(0).standard_normal(7000)
    soundfile.write(tmp_path / "a.wav", 0.1 * noise, 16000)
    (prediction,) = predict(bundle, [tmp_path / "a.wav"])
    assert prediction.windows.shape == (3, len(bundle.classes))  # 3200, 3200 and 600 samples
    torch.testing.assert_close(prediction.probabilities.sum(), torch.tensor(1.0))
