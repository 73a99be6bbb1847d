"""The zero-shot classifier against the model's own logits and the pipeline, its files, and what it refuses."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import pipeline

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.model.log_normalizers import uniform_log_density
from modeling_asymvlm.zero_shot.classifier import ZeroShotClassifier
from modeling_asymvlm.zero_shot.fusion import FUSIONS
from tests.support.training import learned


DIM = 16
# The tiny CLIP pools at the end-of-text token, which its tokenizer leaves to the text.
PROMPTS = {
    "one": ["red 1 <end>", "picture 1 <end>", "a red picture 1 <end>"],
    "two": ["picture 2 <end>"],
    "any": ["picture <end>", "red 3 <end>"],
}


def make_model(seed: int = 0, distribution: str = "power_spherical", **options) -> AsymVLMModel:
    torch.manual_seed(seed)
    head = learned(hidden_size=32, distribution=distribution, logit_scale_init=3.0)
    return AsymVLMModel(AsymVLMConfig(projection_dim=DIM, **{**head, **options})).eval()


def make_features(*sizes: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"class {number}": 5 * torch.randn(size, DIM, generator=generator) for number, size in enumerate(sizes)}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(7, DIM, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def classifier() -> ZeroShotClassifier:
    return ZeroShotClassifier.from_features(make_model(), make_features(3, 1, 2))


@pytest.fixture
def composed(tiny_clip) -> AsymVLMModel:
    torch.manual_seed(0)
    return AsymVLMModel.from_vlm_pretrained(
        tiny_clip, **learned(distribution="vmf", hidden_size=32, logit_scale_init=20.0)
    ).eval()


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), colour) for colour in ((200, 30, 60), (10, 200, 10), (0, 0, 0))]


@pytest.mark.parametrize(
    ("distribution", "fusion"),
    [
        *((law, fusion) for law in ("vmf", "power_spherical") for fusion in FUSIONS),
        ("deterministic", "mean_direction"),
        ("deterministic", "mean_log_likelihood"),
    ],
)
@pytest.mark.parametrize("normalizer", ["exact", "paper"])
def test_single_prompts_reproduce_the_logits_of_the_model(distribution, fusion, normalizer, images):
    model, features = make_model(distribution=distribution, normalizer=normalizer), make_features(1, 1, 1, 1)
    classifier = ZeroShotClassifier.from_features(model, features, fusion=fusion)
    with torch.no_grad():
        logits = model(text_features=torch.cat(list(features.values())), image_features=images).logits_per_image
    output = classifier.predict(image_features=images)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.log_likelihood, logits / 3)
    torch.testing.assert_close(output.posterior, logits.softmax(dim=1))


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical"])
@pytest.mark.parametrize("fusion", ["product", "mean_direction"])
def test_scores_are_the_densities_of_the_classes(distribution, fusion, images):
    model = make_model(distribution=distribution)
    classifier = ZeroShotClassifier.from_features(model, make_features(3, 1, 4), fusion=fusion)
    units = F.normalize(images, dim=-1)
    expected = classifier.class_distribution.log_prob(units[:, None]) - uniform_log_density(DIM)
    for vectors in (images, units, units.numpy(), 9 * units.double()):
        found = classifier.predict(image_features=vectors).log_likelihood
        torch.testing.assert_close(found.float(), expected, atol=2e-5, rtol=2e-5)


def test_the_order_of_classes_does_not_matter(images):
    model, features = make_model(), make_features(3, 1, 4)
    straight = ZeroShotClassifier.from_features(model, features)
    turned = ZeroShotClassifier.from_features(model, dict(reversed(features.items())))
    torch.testing.assert_close(
        straight.predict(image_features=images).posterior, turned.predict(image_features=images).posterior.flip(1)
    )
    assert straight.prompt_weights == {name: turned.prompt_weights[name] for name in features}


def test_results_have_the_format_of_the_pipeline(classifier, images):
    posterior = classifier.predict(image_features=images).posterior
    results = classifier(image_features=images)
    for row, result in enumerate(results):
        assert [set(entry) for entry in result] == [{"score", "label"}] * 3
        scores = [entry["score"] for entry in result]
        assert scores == sorted(scores, reverse=True) and abs(sum(scores) - 1) < 1e-6
        for entry in result:
            assert entry["score"] == posterior[row, classifier.class_names.index(entry["label"])].item()
    assert classifier(image_features=images, top_k=2) == [result[:2] for result in results]


def test_one_template_gives_the_scores_of_the_pipeline(composed, tiny_processor, tmp_path):
    composed.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    labels, template = ["1", "red 2 3 4 5", "9"], "red picture {} <end>"
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "model"))
    classifier = ZeroShotClassifier.from_prompts(composed, tiny_processor, labels, [template])
    expected = classify(pictures(), candidate_labels=labels, hypothesis_template=template)
    found = classifier(pictures(), batch_size=2)
    assert [[entry["label"] for entry in one] for one in found] == [
        [entry["label"] for entry in one] for one in expected
    ]
    scores = torch.tensor([[entry["score"] for entry in one] for one in expected])
    assert (scores.diff(dim=1).abs() > 1e-3).all()  # something to compare
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose([e["score"] for e in one], [e["score"] for e in other], rtol=1e-4)
    pictures()[0].save(tmp_path / "picture.png")
    for single in (pictures()[0], str(tmp_path / "picture.png")):
        assert [entry["label"] for entry in classifier(single)] == [entry["label"] for entry in expected[0]]


def test_prompts_may_be_embedded_in_any_batches(composed, tiny_processor):
    together = ZeroShotClassifier.from_prompts(composed, tiny_processor, PROMPTS)
    assert together.num_prompts == [3, 1, 2] and together.class_names == list(PROMPTS)
    assert torch.pdist(together.prompt_embeds).min() > 1e-3
    for batch_size in (1, 4):
        apart = ZeroShotClassifier.from_prompts(composed, tiny_processor, PROMPTS, batch_size=batch_size)
        torch.testing.assert_close(apart.prompt_embeds, together.prompt_embeds, atol=1e-5, rtol=1e-5)
    texts = [text for own in PROMPTS.values() for text in own]
    features = composed.backbone_text_features(**tiny_processor(text=texts, padding=True, return_tensors="pt"))
    parts = dict(zip(PROMPTS, features.split([3, 1, 2]), strict=True))
    cached = ZeroShotClassifier.from_features(composed, parts)
    torch.testing.assert_close(cached.prompt_embeds, together.prompt_embeds, atol=1e-5, rtol=1e-5)


def test_names_and_templates_make_the_prompts_of_each_class(composed, tiny_processor):
    templates = ["picture {} <end>", "red picture {} <end>", "{} <end>"]
    from_names = ZeroShotClassifier.from_prompts(composed, tiny_processor, ["1", "2"], templates)
    spelled = {name: [template.format(name) for template in templates] for name in ("1", "2")}
    from_prompts = ZeroShotClassifier.from_prompts(composed, tiny_processor, spelled)
    assert torch.equal(from_names.prompt_embeds, from_prompts.prompt_embeds)
    bare = ZeroShotClassifier.from_prompts(composed, tiny_processor, ["red", "picture"])
    assert bare.num_prompts == [1, 1]


def test_options_can_be_changed_and_nothing_else_changes(classifier, images):
    plain = classifier.with_options(prompt_correlation=0.0, logit_scale=0.5)
    direct = ZeroShotClassifier.from_features(
        classifier.model, make_features(3, 1, 2), prompt_correlation=0.0, logit_scale=0.5
    )
    assert torch.equal(plain.predict(image_features=images).posterior, direct.predict(image_features=images).posterior)
    assert classifier.prompt_correlation == 1.0 and classifier.logit_scale == 3.0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_saved_classifier_is_the_same(fusion, classifier, images, tmp_path):
    classifier = classifier.with_options(fusion=fusion, prompt_correlation=0.25)
    folder = tmp_path / "saved" / "classifier"
    for _ in range(2):  # also in place of an older one
        classifier.save(folder)
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    assert [file.name for file in folder.parent.iterdir()] == ["classifier"]
    for options in ({}, {"model": make_model()}):
        loaded = ZeroShotClassifier.load(folder, **options)
        assert loaded(image_features=images) == classifier(image_features=images)
        assert loaded.prompt_weights == classifier.prompt_weights


def test_classifiers_of_other_models_and_damaged_ones_are_refused(classifier, tmp_path):
    with pytest.raises(FileNotFoundError, match="no zero-shot classifier at"):
        ZeroShotClassifier.load(tmp_path)
    classifier.save(tmp_path / "it")
    for other in (make_model(seed=1), make_model(normalize_text_features=True)):
        with pytest.raises(ValueError, match="was made by another model"):
            ZeroShotClassifier.load(tmp_path / "it", model=other)
    manifest = (tmp_path / "it" / "classifier.json").read_text()
    changes = ({"classes": [["class 0", 3]]}, {"format": 0}, {"options": {"fusion": "product"}}, {"classes": 3})
    for change in changes:
        (tmp_path / "it" / "classifier.json").write_text(json.dumps({**json.loads(manifest), **change}))
        with pytest.raises(ValueError, match="incomplete, damaged or of another format"):
            ZeroShotClassifier.load(tmp_path / "it")
    (tmp_path / "it" / "classifier.json").write_text(manifest)
    weights = tmp_path / "it" / "prompts.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="incomplete, damaged"):
        ZeroShotClassifier.load(tmp_path / "it")


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ({}, None, "no class to choose from"),
        ([], None, "no class to choose from"),
        ({"one": []}, None, "Class 'one' has an empty prompt, or none"),
        ({"one": ["red", " "]}, None, "Class 'one' has an empty prompt, or none"),
        ({"one": ["red " * 20]}, None, "has 21 tokens, but the context of the backbone is 16"),
        ({"one": ["red"]}, ["{}"], "have prompts of their own"),
        (["red", "red"], None, "Class 'red' is named more than once"),
        (["red"], ["picture"], "Template 'picture' has no {}"),
        (["red"], [], "Class 'red' has an empty prompt, or none"),
    ],
)
def test_bad_prompts_are_refused(composed, tiny_processor, classes, templates, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier.from_prompts(composed, tiny_processor, classes, templates)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([1, 2], None, "Class 0 is of type int: pass a string"),
        ({"one": ["red"], 2: ["red"]}, None, "Class 1 is of type int: pass a string"),
        ({"one": ["red", None]}, None, "Class 'one': prompt 1 is of type NoneType: pass a string"),
        ({"one": None}, None, "Class 'one': prompt 0 is of type NoneType: pass a string"),
        (["red"], [3], "Template 0 is of type int: pass a string"),
        (7, None, "Class 0 is of type int: pass a string"),
    ],
)
def test_names_and_prompts_that_are_no_strings_are_refused(composed, tiny_processor, classes, templates, message):
    with pytest.raises(TypeError, match=message):
        ZeroShotClassifier.from_prompts(composed, tiny_processor, classes, templates)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({}, {}, "no class to choose from"),
        (make_features(2), {"fusion": "sum"}, "Unknown fusion 'sum': choose one of product, mean_direction"),
        (make_features(2), {"prompt_correlation": 1.5}, "prompt_correlation is 1.5, but must be from 0"),
        (make_features(2), {"logit_scale": 0.0}, "logit_scale is 0.0, but must be positive"),
        ({"one": torch.zeros(0, DIM)}, {}, r"class 'one' must have shape \(n, 16\) with n at least 1"),
        ({"one": torch.ones(2, 5)}, {}, "Another width is that of another model"),
        ({"one": torch.ones(DIM)}, {}, "class 'one' must have shape"),
        ({"one": torch.ones(2, DIM), "two": torch.full((1, DIM), torch.nan)}, {}, "class 'two' must be finite"),
        ({"one": torch.ones(2, DIM, dtype=torch.long)}, {}, "must be finite floating-point numbers"),
    ],
)
def test_bad_features_and_options_are_refused(features, options, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier.from_features(make_model(), features, **options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Pass either images or image_features"),
        ({"images": [], "image_features": torch.ones(1, DIM)}, "Pass either images or image_features"),
        ({"images": pictures()}, "no model and processor to embed images"),
        ({"image_features": torch.ones(2, DIM + 1)}, "image_features must have shape"),
        ({"image_features": torch.full((2, DIM), torch.nan)}, "image_features must be finite"),
        ({"image_features": torch.zeros(2, DIM)}, "are zero and so have no direction"),
        (
            {"image_features": torch.ones(2, DIM), "top_k": 4},
            "top_k is 4, but must be from 1 to the number of classes, 3",
        ),
        ({"image_features": torch.ones(2, DIM), "top_k": 0}, "top_k is 0"),
    ],
)
def test_bad_images_are_refused(classifier, inputs, message):
    with pytest.raises(ValueError, match=message):
        classifier(**inputs)


def test_an_empty_list_of_images_and_classes_without_a_mapping_are_refused(composed, tiny_processor):
    classifier = ZeroShotClassifier.from_prompts(composed, tiny_processor, PROMPTS)
    with pytest.raises(ValueError, match="no image to classify"):
        classifier([])
    with pytest.raises(TypeError, match="a mapping from each class to its prompts, got Tensor"):
        ZeroShotClassifier.from_features(composed, torch.ones(2, 24))


def test_what_has_no_distribution_says_so(classifier):
    with pytest.raises(ValueError, match="are no distributions"):
        _ = classifier.with_options(fusion="mean_log_likelihood").class_distribution
    deterministic = make_model(distribution="deterministic")
    with pytest.raises(ValueError, match="points without a concentration.*pass fusion='mean_direction'"):
        ZeroShotClassifier.from_features(deterministic, make_features(2))
    points = ZeroShotClassifier.from_features(deterministic, make_features(2), fusion="mean_direction")
    with pytest.raises(ValueError, match="are no distributions"):
        _ = points.class_distribution
