"""AsymVLMModel and its head: forward, dtypes, freezing, distributions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel, ProbabilisticTextHead
from modeling_asymvlm.model.distributions import PowerSpherical, VonMisesFisher
from modeling_asymvlm.model.objective import unified_loss
from tests.support.training import learned


def compose(vlm, **arguments) -> AsymVLMModel:
    torch.manual_seed(3)
    return AsymVLMModel.from_vlm_pretrained(vlm, **learned(**{"hidden_size": 48, **arguments}))


def test_the_reference_head_has_the_parameters_of_the_reference_head():
    head = ProbabilisticTextHead(AsymVLMConfig(**learned(projection_dim=512, num_hidden_layers=3)))
    assert sum(parameter.numel() for parameter in head.parameters()) == 3_149_312 + 1  # and the temperature


def test_the_head_is_the_multilayer_perceptron_of_the_paper():
    torch.manual_seed(0)
    head = ProbabilisticTextHead(
        AsymVLMConfig(**learned(projection_dim=8, hidden_size=16, num_hidden_layers=2))
    ).eval()
    layers = [*head.hidden_layers, head.output_layer]
    reference = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    features = torch.randn(5, 8)
    torch.testing.assert_close(head(features), reference(features))


def test_the_backbone_direction_is_kept_and_starts_at_the_initial_concentration():
    head = ProbabilisticTextHead(
        AsymVLMConfig(**learned(projection_dim=8, mean_direction="backbone", initial_concentration=25.0))
    )
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(features), 25.0 * F.normalize(features, dim=-1))
    nn.init.normal_(head.output_layer.weight)
    moved = head(features)
    torch.testing.assert_close(F.normalize(moved, dim=-1), F.normalize(features, dim=-1))
    assert moved.norm(dim=-1).std() > 0.01


def test_the_backbone_direction_is_refined_from_where_it_is_and_its_concentration_is_free():
    torch.manual_seed(4)
    refined = learned(mean_direction="refined", initial_concentration=25.0, num_hidden_layers=0)
    config = AsymVLMConfig(projection_dim=8, **refined)
    head = ProbabilisticTextHead(config).eval()
    features = torch.randn(5, 8)
    torch.testing.assert_close(head(features), 25.0 * F.normalize(features, dim=-1))
    nn.init.normal_(head.output_layer.weight)
    nn.init.normal_(head.output_layer.bias)
    offset, log_ratio = head.output_layer(features).split([8, 1], dim=-1)
    torch.testing.assert_close(head(features).norm(dim=-1, keepdim=True), 25.0 * log_ratio.exp())
    expected = F.normalize(features * (8 / features.square().sum(-1, keepdim=True)).sqrt() + offset, dim=-1)
    torch.testing.assert_close(F.normalize(head(features), dim=-1), expected)


@pytest.mark.parametrize("mean_direction", ["learned", "refined", "backbone"])
def test_a_head_on_normalised_features_does_not_see_their_length(mean_direction):
    torch.manual_seed(5)
    arguments = {"projection_dim": 8, "hidden_size": 16, "mean_direction": mean_direction}
    features, lengths = torch.randn(5, 8), torch.logspace(-2, 2, 5)[:, None]
    heads = {}
    for normalizes in (False, True):
        head = ProbabilisticTextHead(AsymVLMConfig(normalize_text_features=normalizes, **arguments)).eval()
        nn.init.normal_(head.output_layer.weight)
        heads[normalizes] = head
    torch.testing.assert_close(heads[True](lengths * features), heads[True](features))
    assert not torch.allclose(heads[False](lengths * features), heads[False](features))


def test_input_dropout_is_of_training_alone():
    torch.manual_seed(6)
    config = AsymVLMConfig(**learned(projection_dim=64, num_hidden_layers=0, input_dropout_prob=0.5))
    head = ProbabilisticTextHead(config)
    features = torch.randn(3, 64)
    assert not torch.equal(head.train()(features), head(features))
    torch.testing.assert_close(head.eval()(features), head.output_layer(features))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_computes_in_float32_whatever_its_weights_and_autocast(dtype):
    torch.manual_seed(2)
    head = ProbabilisticTextHead(AsymVLMConfig(projection_dim=64, hidden_size=64)).to(dtype).eval()
    features = torch.randn(5, 64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = head(features)
    expected = head.double()(features.double())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distribution", ["vmf", "power_spherical", "deterministic"])
def test_cached_features_give_what_pixels_and_tokens_give(tiny_clip, batch, distribution):
    model = compose(tiny_clip, distribution=distribution)
    whole = model(**batch, return_loss=True)
    pixel_values = batch.pop("pixel_values")
    cached = model(
        text_features=model.backbone_text_features(**batch),
        image_features=model.backbone_image_features(pixel_values),
        return_loss=True,
    )
    for name in ("loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "concentration"):
        assert torch.equal(whole[name], cached[name]), name
    assert whole.logits_per_image.shape == (4, 4)
    assert torch.equal(whole.logits_per_image, whole.logits_per_text.T)
    torch.testing.assert_close(whole.concentration, whole.text_embeds.norm(dim=-1))
    torch.testing.assert_close(whole.image_embeds.norm(dim=-1), torch.ones(4))
    law = {"distribution": distribution}
    torch.testing.assert_close(
        whole.loss, unified_loss(whole.text_embeds, whole.image_embeds, model.logit_scale, **law)
    )


@pytest.mark.parametrize("backbone", ["tiny_clip", "tiny_siglip"])
def test_padding_on_the_left_changes_nothing(backbone, batch, request):
    model = compose(request.getfixturevalue(backbone), text_pad_token_id=1)
    right = model.backbone_text_features(batch["input_ids"], batch["attention_mask"])
    order = batch["attention_mask"].argsort(dim=1, stable=True)  # padding first
    left = model.backbone_text_features(batch["input_ids"].gather(1, order), batch["attention_mask"].gather(1, order))
    assert torch.equal(left, right)


@pytest.mark.parametrize("backbone", ["tiny_clip", "tiny_siglip"])
def test_raw_features_are_the_backbones_own(backbone, batch, request):
    vlm = request.getfixturevalue(backbone)
    model = compose(vlm, text_pad_token_id=1)
    with torch.no_grad():
        images = vlm.get_image_features(batch["pixel_values"]).pooler_output
        padded = F.pad(batch["input_ids"], (0, 6), value=1)
        if backbone == "tiny_clip":
            texts = vlm.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        else:
            texts = vlm.get_text_features(padded).pooler_output
    torch.testing.assert_close(model.backbone_image_features(batch["pixel_values"]), images, rtol=0, atol=1e-6)
    pixel_values = batch.pop("pixel_values")
    assert pixel_values is not None
    torch.testing.assert_close(model.backbone_text_features(**batch), texts, rtol=0, atol=1e-6)


def test_a_siglip_text_gives_the_same_embedding_however_it_was_padded(tiny_siglip, batch):
    model = compose(tiny_siglip, text_pad_token_id=1)
    batch.pop("pixel_values")
    together = model.get_text_features(**batch).pooler_output
    for row, length in enumerate((10, 7, 5, 3)):
        alone = model.get_text_features(batch["input_ids"][row : row + 1, :length]).pooler_output
        torch.testing.assert_close(alone, together[row : row + 1])


def test_one_modality_alone(tiny_clip, batch):
    model = compose(tiny_clip)
    pixel_values = batch.pop("pixel_values")
    texts, images = model(**batch), model(pixel_values=pixel_values)
    assert texts.image_embeds is None and texts.logits_per_image is None and texts.text_embeds.shape == (4, 24)
    assert images.text_embeds is None and images.concentration is None and images.image_embeds.shape == (4, 24)
    assert torch.equal(model.get_text_features(**batch).pooler_output, texts.text_embeds)
    assert torch.equal(model.get_image_features(pixel_values).pooler_output, images.image_embeds)


def test_return_dict_false_gives_a_tuple_in_the_order_of_the_fields(tiny_clip, batch):
    model = compose(tiny_clip)
    named, positional = model(**batch, return_loss=True), model(**batch, return_loss=True, return_dict=False)
    for one, other in zip(named.to_tuple(), positional, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(positional[0], named.loss) and torch.equal(positional[1], named.logits_per_image)


@pytest.mark.parametrize(("distribution", "law"), [("vmf", VonMisesFisher), ("power_spherical", PowerSpherical)])
def test_logits_are_tau_times_the_log_likelihood_ratio_of_the_distribution(tiny_clip, batch, distribution, law):
    model = compose(tiny_clip, distribution=distribution, logit_scale_init=3.0)
    output = model(**batch)
    pixel_values = batch.pop("pixel_values")
    texts = model.get_text_distribution(**batch)
    assert isinstance(texts, law) and texts.batch_shape == (4,) and texts.event_shape == (24,)
    log_density = texts.log_prob(model(pixel_values=pixel_values).image_embeds[:, None])  # (images, texts)
    uniform = law(torch.eye(24)[0], torch.tensor(0.0)).log_prob(torch.eye(24)[1])
    torch.testing.assert_close(output.logits_per_image, 3.0 * (log_density - uniform), rtol=1e-4, atol=1e-5)


def test_only_the_head_learns_and_the_backbone_stays_in_evaluation_mode(tiny_clip, batch):
    model = compose(tiny_clip)
    for call in (lambda: None, model.train, lambda: model.requires_grad_(True), model.eval, model.train):
        call()
        assert all(
            parameter.requires_grad == name.startswith("text_head.") for name, parameter in model.named_parameters()
        )
        assert not any(module.training for module in model.vlm.modules())
    before = {name: tensor.clone() for name, tensor in model.vlm.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    head_before = model.text_head.output_layer.weight.detach().clone()
    model(**batch, return_loss=True).loss.backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.vlm.state_dict().items())
    assert all(parameter.grad is None for parameter in model.vlm.parameters())
    assert not torch.equal(model.text_head.output_layer.weight, head_before)
    model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_other_captions_of_the_image_are_no_negatives(tiny_clip, batch):
    model = compose(tiny_clip)
    batch["pixel_values"] = batch["pixel_values"][[0, 0, 1, 2]]
    masked = model(**batch, image_ids=torch.tensor([0, 0, 1, 2]), return_loss=True).loss
    assert masked < model(**batch, return_loss=True).loss


def test_a_head_without_a_backbone_takes_cached_features_only():
    model = AsymVLMModel(AsymVLMConfig(projection_dim=8, hidden_size=16)).train()
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    assert model(text_features=features, image_features=features, return_loss=True).loss.requires_grad
    with pytest.raises(ValueError, match="a head without a backbone: pass cached text_features"):
        model(input_ids=torch.ones(1, 3).long())
    with pytest.raises(ValueError, match="Set vlm_config, or projection_dim"):
        AsymVLMModel(AsymVLMConfig())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Pass texts .*, images .* or both"),
        ({"text_features": torch.zeros(4, 23)}, r"text_features must have shape \(batch, 24\).*got \(4, 23\)"),
        ({"image_features": torch.zeros(4, 2, 24)}, r"image_features must have shape \(batch, 24\).*\(4, 2, 24\)"),
        ({"text_features": torch.zeros(4, 24), "return_loss": True}, "loss needs matching texts and images"),
        ({"text_features": torch.zeros(4, 24), "input_ids": torch.ones(4, 3).long()}, "either input_ids or text_feat"),
    ],
)
def test_wrong_inputs_are_named(tiny_clip, inputs, message):
    with pytest.raises(ValueError, match=message):
        compose(tiny_clip)(**inputs)


def test_a_deterministic_model_has_no_distributions(tiny_clip, batch):
    model = compose(tiny_clip, distribution="deterministic")
    batch.pop("pixel_values")
    with pytest.raises(ValueError, match="gives points, not distributions"):
        model.get_text_distribution(**batch)
