"""What is said of pairs, runs and heads, and what is not."""

import re
from dataclasses import replace

import pytest
import torch

from modeling_asymvlm.training.checks import (
    check_weights,
    comparison_warnings,
    kept_warnings,
    leak_warnings,
    pair_warnings,
    run_warnings,
)
from tests.support.training import head_model, make_pairs


def split(seed: int = 0, images: int = 200, texts: int = 200):
    pairs = make_pairs(seed, images, texts).split
    return replace(pairs, captions=[f"caption {row}" for row in range(texts)])


def one_image(pairs):
    return replace(pairs, text_image_index=torch.zeros_like(pairs.text_image_index))


def zero_rows(pairs):
    features = pairs.text_features.clone()
    features[:3] = 0
    return replace(pairs, text_features=features)


def repeated(pairs):
    index = pairs.text_image_index.clone()
    index[5] = index[4]
    return replace(pairs, captions=["same"] * 6 + list(pairs.captions[6:]), text_image_index=index)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": split(), "validation": split(1)}, []),
        ({"train": split(images=99, texts=99)}, ["There are only 99 training pairs: below 100"]),
        ({"validation": split(images=49, texts=98)}, ["There are only 49 validation images: below 50"]),
        ({"train": one_image(split())}, ["All pairs of the split 'train' are of one image"]),
        ({"validation": one_image(split())}, ["All pairs of the split 'validation' are of one image"]),
        ({"train": zero_rows(split())}, ["3 of 200 text_features of the split 'train' are zero"]),
        ({"test": repeated(split())}, ["1 of 200 pairs of the split 'test' repeat caption and image"]),
        (
            {"train": split(images=20, texts=20), "validation": split(1, 20, 20)},
            ["There are only 20 training pairs", "There are only 20 validation images"],
        ),
    ],
)
def test_what_is_doubtful_about_pairs_is_said(splits, expected):
    found = pair_warnings(splits)
    assert len(found) == len(expected)
    assert all(
        sentence.startswith(start) and sentence.endswith(".") for sentence, start in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("kind", ["text_features", "image_features"])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_features_that_are_all_equal_are_an_error(kind, value):
    broken = replace(split(), **{kind: torch.full((200, 24), value)})
    with pytest.raises(ValueError, match=f"All 200 {kind} of the split 'train' are equal.*make them again"):
        pair_warnings({"train": broken})


def test_test_images_that_are_trained_on_are_counted():
    train, test = split(), split(1)
    assert leak_warnings(train, test) == []
    features = test.image_features.clone()
    features[7:9] = train.image_features[100:102]
    (sentence,) = leak_warnings(train, replace(test, image_features=features))
    assert sentence.startswith("2 of 200 test images have the very features of a training image")


@pytest.mark.parametrize(("steps", "warned"), [(1, True), (59, True), (60, False), (20_000, False)])
def test_few_steps_are_said(steps, warned):
    assert [sentence.startswith(f"Training takes {steps} ") for sentence in run_warnings(steps)] == [True] * warned


@pytest.mark.parametrize(
    ("step", "at_bound", "starts_as_backbone", "expected"),
    [
        (40, False, True, []),
        (0, False, True, ["which is kept: the backbone's own direction with one concentration for all texts"]),
        (0, False, False, ["which is kept: as it began"]),
        (40, True, True, ["All 30 validation pairs are told apart.*validation loss is 1/31"]),
        (0, True, True, ["the backbone's own direction", "are told apart"]),
    ],
)
def test_what_is_doubtful_about_the_kept_head_is_said(step, at_bound, starts_as_backbone, expected):
    found = kept_warnings(step, at_bound, 30, starts_as_backbone=starts_as_backbone)
    assert len(found) == len(expected)
    assert all(re.search(part, sentence) for sentence, part in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "interval", "worse"),
    [
        ("text_to_image_recall@1", [-0.05, -0.01], True),
        ("text_to_image_recall@1", [-0.05, 0.0], False),
        ("image_to_text_recall@1", [0.01, 0.05], False),
        ("text_to_image_negative_log_likelihood", [0.01, 0.05], True),
        ("text_to_image_negative_log_likelihood", [-0.01, 0.05], False),
        ("image_to_text_negative_log_likelihood", [-0.05, -0.01], False),
        ("image_to_text_recall@1", [float("nan"), float("nan")], False),
    ],
)
def test_a_head_that_is_worse_than_its_backbone_is_named(name, interval, worse):
    found = comparison_warnings({name: interval})
    assert len(found) == worse
    if worse:
        assert name.replace("_", " ") in found[0] and f"{interval[0]:+.4f} to {interval[1]:+.4f}" in found[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value):
    model = head_model()
    check_weights(model, 3, 1e-3)
    with torch.no_grad():
        model.text_head.output_layer.weight[3, 4] = value
    message = (
        r"text_head.output_layer.weight is NaN or infinite.* at step 3, at a learning rate of 0.001. Lower learning"
    )
    with pytest.raises(ValueError, match=message):
        check_weights(model, 3, 1e-3)
