"""Hierarchies of captions and words that are taken away, against SciPy and brute force."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.evaluation import (
    graded,
    read_hierarchies,
    remove_words,
    specificity_correlation,
    word_removal_metrics,
)
from modeling_asymvlm.reporting.specificity import evaluate_hierarchies, evaluate_word_removal
from modeling_asymvlm.texts.encoding import text_concentration


def test_specificity_correlation_matches_brute_force():
    for seed in range(10):
        generator = np.random.default_rng(seed)
        group = np.repeat(np.arange(30), 5)
        level = np.tile([0, 1, 1, 2, 3], 30)
        concentration = level + generator.uniform(0, 1.5, size=150).round(1)
        concentration[group == 7] = 2.5
        shuffle = generator.permutation(150)
        group, level, concentration = group[shuffle], level[shuffle], concentration[shuffle]

        correlations, ordered, right, pairs = [], 0, 0.0, 0
        for name in range(30):
            members = [caption for caption in range(150) if group[caption] == name]
            if name != 7:
                correlations.append(stats.spearmanr(concentration[members], level[members]).statistic)
            ordered += all(
                concentration[specific] > concentration[general]
                for specific in members
                for general in members
                if level[specific] > level[general]
            )
            for specific, general in itertools.permutations(members, 2):
                if level[specific] > level[general]:
                    pairs += 1
                    right += np.heaviside(concentration[specific] - concentration[general], 0.5)
        assert 0 < ordered < 30 and 0.5 < right / pairs < 1
        names = np.array([f"hierarchy {value}" for value in group])
        for labels in (group, names, torch.tensor(group)):
            metrics = specificity_correlation(concentration, level, labels)
            assert metrics["mean_group_spearman"] == pytest.approx(np.mean(correlations), rel=1e-12)
            assert metrics["ordered_share"] == ordered / 30
            assert metrics["pair_accuracy"] == pytest.approx(right / pairs, rel=1e-12)
            overall = stats.spearmanr(concentration, level).statistic
            assert metrics["overall_spearman"] == pytest.approx(overall, rel=1e-12)
            assert (metrics["num_groups"], metrics["num_constant_groups"]) == (30, 1)


def test_captions_of_graded_groups_are_those_of_groups_with_two_levels():
    generator = np.random.default_rng(0)
    group = generator.choice(["a", "b", "c", "d", "e", "f"], size=14)
    level = generator.integers(0, 2, size=14)
    expected = [len({other for other, own in zip(level, group, strict=True) if own == name}) > 1 for name in group]
    assert graded(level, group).tolist() == expected and 0 < sum(expected) < 14


def test_specificity_at_its_limits():
    level, group = [0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1]
    perfect = specificity_correlation([1, 2, 3, 7, 8, 9], level, group)
    assert perfect["mean_group_spearman"] == perfect["ordered_share"] == 1
    reverse = specificity_correlation([3, 2, 1, 9, 8, 7], level, group)
    assert (reverse["mean_group_spearman"], reverse["ordered_share"]) == (-1, 0)
    constant = specificity_correlation(np.ones(6), level, group)
    assert math.isnan(constant["mean_group_spearman"]) and math.isnan(constant["overall_spearman"])
    assert (constant["ordered_share"], constant["num_constant_groups"]) == (0, 2)
    tied = specificity_correlation([1, 2, 2, 1, 2, 3], level, group)
    assert tied["ordered_share"] == 0.5
    assert tied["pair_accuracy"] == 5.5 / 6 and constant["pair_accuracy"] == 0.5


def test_bad_hierarchies_are_refused():
    with pytest.raises(ValueError, match=r"every caption of group .*4.* has level 1"):
        specificity_correlation([1, 2, 3, 4], [0, 1, 1, 1], [3, 3, 4, 4])
    with pytest.raises(ValueError, match=r"`group` has shape \(3,\); it must be \(4,\)"):
        specificity_correlation([1, 2, 3, 4], [0, 1, 0, 1], [3, 3, 4])
    with pytest.raises(ValueError, match="1 of 2 values of `level` are NaN"):
        specificity_correlation([1, 2], [0, np.nan], [3, 3])


def test_twice_the_pair_accuracy_minus_one_is_the_mean_of_kendalls_tau():
    concentration = np.random.default_rng(0).random((50, 4))
    taus = [stats.kendalltau(row, range(4)).statistic for row in concentration]
    level, group = np.tile(np.arange(4), 50), np.repeat(np.arange(50), 4)
    metrics = specificity_correlation(concentration.ravel(), level, group)
    assert 2 * metrics["pair_accuracy"] - 1 == pytest.approx(np.mean(taus), rel=1e-12)


LISTS = [["animal", "dog", "a brown dog, running"], ["food", "pizza"]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(json.dumps(texts) for texts in LISTS) + "\n\n"),
        ("a.jsonl", "\n".join(json.dumps({"captions": texts, "id": 3}) for texts in LISTS)),
        ("a.json", json.dumps([" => ".join(texts) for texts in LISTS])),
        (
            "a.csv",
            'id,captions,image_url\n0,"animal => dog => a brown dog, running",http://x\n1,food=>pizza,http://y\n',
        ),
    ],
)
def test_hierarchies_are_read_from_every_format(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    hierarchies = read_hierarchies(tmp_path / name)
    assert hierarchies.captions == ["animal", "dog", "a brown dog, running", "food", "pizza"]
    assert hierarchies.level.tolist() == [0, 1, 2, 0, 1] and hierarchies.group.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", "must end in .jsonl, .json or .csv"),
        ("a.json", "{", "is not JSON"),
        ("a.jsonl", "[1", "is not JSONL"),
        ("a.json", "{}", "must hold a list of hierarchies, but holds a dict"),
        ("a.jsonl", "", "holds no hierarchies"),
        ("a.jsonl", '["a", "b"]\n["c"]', r"entry 1 holds \['c'\]; it must hold two texts or more"),
        ("a.jsonl", '["a", " "]', "entry 0 holds"),
        ("a.csv", "id,texts\n0,a => b\n", "entry 0 holds None"),
    ],
)
def test_broken_files_of_hierarchies_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_hierarchies(tmp_path / name)


def test_words_go_in_one_order():
    captions = ["one two three four five six seven eight", "alone", "red cat"]
    shortened = remove_words(captions)
    assert shortened.group.tolist() == [0, 0, 0, 0, 2, 2] and shortened.kept.tolist() == [8, 6, 4, 2, 2, 1]
    assert shortened.captions[0] == captions[0] and shortened.captions[4] == captions[2]
    for longer, shorter in itertools.pairwise(shortened.captions[:4]):
        left = iter(longer.split())
        assert all(word in left for word in shorter.split())  # a subsequence: order is kept
    assert shortened.captions == remove_words(captions).captions
    assert shortened.captions != remove_words(captions, seed=1).captions
    masked = remove_words(captions, mask="[MASK]")
    for text, variant, kept in zip(shortened.captions, masked.captions, masked.kept, strict=True):
        assert [word for word in variant.split() if word != "[MASK]"] == text.split() and len(text.split()) == kept
    assert {len(text.split()) for text in masked.captions[:4]} == {8}


def test_captions_and_shares_without_variants_are_refused():
    for shares in ((), (0.0, 1.0), (1.5,)):
        with pytest.raises(ValueError, match="each share must lie in"):
            remove_words(["a b"], kept_shares=shares)
    with pytest.raises(ValueError, match="none of the 2 captions has variants"):
        remove_words(["alone", "single"])
    with pytest.raises(ValueError, match="none of the 1 captions has variants"):
        remove_words(["a b c"], kept_shares=(0.5,))


def test_uncertainty_that_rises_as_words_go_is_perfect():
    shortened = remove_words(["one two three four five six seven eight", "a red cat on a mat"])
    rising = word_removal_metrics(1 / shortened.kept, shortened.kept, shortened.group)
    assert rising == {"mean_group_spearman": 1, "rising_share": 1, "pair_accuracy": 1, "num_captions": 2}
    falling = word_removal_metrics(shortened.kept, shortened.kept, shortened.group)
    assert (falling["mean_group_spearman"], falling["rising_share"], falling["pair_accuracy"]) == (-1, 0, 0)
    with np.errstate(divide="ignore"):  # the concentration of nothing is 0
        infinite = word_removal_metrics(1 / (shortened.kept - 1.0).clip(0), shortened.kept, shortened.group)
    assert infinite["rising_share"] == 1


def test_a_model_is_asked_for_the_concentration_of_each_text(tmp_path, tiny_clip, tiny_processor):
    torch.manual_seed(0)
    model = AsymVLMModel.from_vlm_pretrained(tiny_clip, distribution="vmf").eval()
    torch.nn.init.normal_(model.text_head.output_layer.weight)

    def processor(text, **options):
        return tiny_processor(text=[f"{words} <end>" for words in text], **options)

    lists = [["red", "red 1", "red 1 2 3"], ["picture", "red picture", "red picture 5 6"]]
    (tmp_path / "a.json").write_text(json.dumps(lists))
    hierarchies = read_hierarchies(tmp_path / "a.json")
    alone = [text_concentration(model, processor, [text]).item() for text in hierarchies.captions]
    assert len(set(alone)) == 6
    expected = specificity_correlation(alone, hierarchies.level, hierarchies.group)
    assert evaluate_hierarchies(model, processor, hierarchies, batch_size=2) == expected
    captions = ["red 1 2 3 4 5", "picture 7 8 9"]
    for mask in (None, "<unk>"):
        shortened = remove_words(captions, mask=mask)
        uncertainty = 1 / text_concentration(model, processor, shortened.captions)
        expected = word_removal_metrics(uncertainty, shortened.kept, shortened.group)
        assert evaluate_word_removal(model, processor, captions, mask=mask) == expected
    points = AsymVLMModel(AsymVLMConfig(projection_dim=8, distribution="deterministic"))
    with pytest.raises(ValueError, match="has no concentration"):
        text_concentration(points, processor, ["red"])
