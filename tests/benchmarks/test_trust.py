"""The parts of the data that the benchmark of trust trains and judges on, and its ablations."""

import numpy as np
import pytest
import torch

from benchmarks.trust.ablations import BANK_SIZES, Ablation
from benchmarks.trust.heads import halves, subset
from modeling_asymvlm import AsymVLMConfig, AsymVLMModel, Calibration
from modeling_asymvlm.calibration.text_probe import FEATURES
from tests.support.training import make_pairs


@pytest.fixture(scope="module")
def splits():
    sizes = {"train": (150, 450), "validation": (60, 120), "test": (70, 140)}
    return {name: make_pairs(seed, *size, noise=1.5).split for seed, (name, size) in enumerate(sizes.items())}


def pairs_of(split):
    """Each caption's vector with the vector of its image."""
    images = split.image_features[:][split.text_image_index]
    return {row.tobytes() for row in torch.cat([split.text_features[:], images], dim=1).numpy()}


def test_halves_are_all_pairs_with_images_that_stay_apart(splits):
    cut = halves(splits, seed=3)
    pairs = [pairs_of(each) for each in cut.values()]
    assert set.union(*pairs) == set.union(*(pairs_of(each) for each in splits.values()))
    assert sum(map(len, pairs)) == len(set.union(*pairs))
    assert [len(each.image_ids) for each in cut.values()] == pytest.approx([105, 35, 140], abs=1)
    images = [{row.tobytes() for row in each.image_features[:].numpy()} for each in cut.values()]
    assert not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])
    assert pairs_of(halves(splits, seed=4)["test"]) != pairs[2]


def test_a_subset_has_whole_images_of_about_so_many_captions(splits):
    train = splits["train"]
    part = subset(train, 100, seed=0)
    counts = np.bincount(np.asarray(train.text_image_index))
    assert 100 <= len(part.captions) < 100 + counts.max()
    assert pairs_of(part) < pairs_of(train)
    kept = {row.tobytes() for row in part.image_features[:].numpy()}
    of_kept = [row.tobytes() in kept for row in train.image_features[:][train.text_image_index].numpy()]
    assert sum(of_kept) == len(part.captions)


def test_ablations_begin_without_and_end_with_the_calibration(splits):
    torch.manual_seed(0)
    model = AsymVLMModel(AsymVLMConfig(projection_dim=splits["train"].dim, hidden_size=16)).eval()
    calibration = Calibration.fit(model, splits["train"], splits["validation"])
    ablation = Ablation(model, splits)
    rows = ablation.of_correction()
    cosines = torch.cosine_similarity(
        splits["test"].text_features[:, None], splits["test"].image_features[:][None], dim=-1
    )
    hits = (cosines.argmax(dim=1) == splits["test"].text_image_index).float().mean()
    assert rows[0][:2] == ["none", ""] and float(rows[0][2]) == pytest.approx(float(hits), abs=1e-4)
    banks = [row for row in rows if row[0].endswith("reference captions")]
    assert [int(row[0].split()[0]) for row in banks] == [*(size for size in BANK_SIZES if size < 450), 450]
    assert float(banks[-1][1]) == pytest.approx(calibration.correction.beta, abs=0.01)
    assert [row[1] for row in rows if row[0] == "beta by rule"] == ["0.50", "1.00"]
    of_probe = ablation.of_probe()
    assert [row[0] for row in of_probe] == ["all features", *FEATURES]
    assert all(0 <= float(cell) <= 1 for row in of_probe[1:] for cell in row[1:])
