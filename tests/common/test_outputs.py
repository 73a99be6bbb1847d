"""Outputs as transformers' dual encoders give them: tuples, hidden states, attentions, one modality, pipelines."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModel, pipeline

from modeling_asymvlm import AsymVLMModel
from tests.support.tiny_backbones import TOWER


LAYERS = TOWER["num_hidden_layers"]


@pytest.mark.parametrize("where", ["call", "configuration"])
def test_hidden_states_and_attentions_are_those_of_both_towers(whole, where):
    model = AutoModel.from_pretrained(whole.folder, attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    if where == "configuration":
        for name, value in asked.items():
            setattr(model.config, name, value)
    with torch.no_grad():
        output = model(**whole.inputs, **(asked if where == "call" else {}))
        texts = model.get_text_features(
            **{name: value for name, value in whole.inputs.items() if "pixel" not in name}, **asked
        )
    for tower in (output.text_model_output, output.vision_model_output, texts):
        assert len(tower.hidden_states) == LAYERS + 1
        assert len(tower.attentions) == LAYERS
        assert tower.last_hidden_state.shape == tower.hidden_states[-1].shape
    assert torch.equal(texts.pooler_output, output.text_embeds)
    raw = model.backbone_image_features(whole.inputs["pixel_values"])
    assert torch.equal(output.vision_model_output.pooler_output, raw)
    whole.check(model)


def test_nothing_of_the_backbone_is_held_unless_it_is_asked_for(whole):
    output = whole.model(**whole.inputs)
    assert output.text_model_output is None and output.vision_model_output is None
    assert all(isinstance(value, torch.Tensor) for value in output.to_tuple())


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, {"output_hidden_states": [0, -1]}])
@pytest.mark.parametrize("where", ["call", "configuration"])
def test_a_tuple_holds_what_the_output_holds(whole, asked, where):
    model = AutoModel.from_pretrained(whole.folder)
    with torch.no_grad():
        output = model(**whole.inputs, return_loss=True, **asked)
        model.config.return_dict = where == "call"
        as_tuple = model(
            **whole.inputs, return_loss=True, **asked, **({"return_dict": False} if where == "call" else {})
        )
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(output)
    for found, expected in zip(as_tuple, output.to_tuple(), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_loss_stands_first_as_the_trainer_of_transformers_expects(whole):
    assert next(iter(whole.model(**whole.inputs, return_loss=True))) == "loss"


def test_one_modality_gives_its_vectors_as_pooled_output(whole):
    texts = {name: value for name, value in whole.inputs.items() if "pixel" not in name}
    with torch.no_grad():
        output = whole.model(**texts)
        assert output.pooler_output is output.text_embeds and output.image_embeds is None
        output = whole.model(pixel_values=whole.inputs["pixel_values"])
        assert output.pooler_output is output.image_embeds and output.text_embeds is None
        assert whole.model(**whole.inputs).pooler_output is None


def test_unknown_arguments_are_refused_and_absent_ones_ignored(whole):
    whole.model(**whole.inputs, inputs_embeds=None)
    with pytest.raises(TypeError, match="no argument 'inputs_embeds'"):
        whole.model(**whole.inputs, inputs_embeds=torch.zeros(4, 10, 32))


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # PEFT's call of transformers
@pytest.mark.parametrize("task_type", ["FEATURE_EXTRACTION", None])
def test_adapters_of_any_task_leave_the_outputs_as_they_are(whole, task_type):
    config = LoraConfig(task_type=task_type, target_modules=["hidden_layers.0", "output_layer"])
    adapted = get_peft_model(AutoModel.from_pretrained(whole.folder), config)
    whole.check(adapted.eval())
    adapted(**whole.inputs, return_loss=True).loss.backward()
    learning = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert learning and all("lora_" in name for name in learning)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("task", ["image-feature-extraction", "feature-extraction", "zero-shot-image-classification"])
def test_pipelines_of_transformers_take_the_model(checkpoint_of, tiny_processor, task, return_dict):
    model = AutoModel.from_pretrained(checkpoint_of("clip", "whole").folder)
    model.config.return_dict = return_dict or task.startswith("zero")  # which reads fields, of CLIP too
    picture = Image.new("RGB", (40, 40), "red")
    use = pipeline(
        task, model=model, tokenizer=tiny_processor.tokenizer, image_processor=tiny_processor.image_processor
    )
    if task == "image-feature-extraction":
        (found,) = use(picture)
        expected = model.get_image_features(
            **tiny_processor.image_processor(picture, return_tensors="pt"), return_dict=True
        )
        torch.testing.assert_close(torch.tensor([found]), expected.pooler_output)
        if return_dict:
            assert use(picture, pool=True) == [found]
    elif task == "feature-extraction":
        (found,) = use("red picture")
        tokens = tiny_processor.tokenizer("red picture", return_tensors="pt")
        torch.testing.assert_close(
            torch.tensor([found]), model.get_text_features(**tokens, return_dict=True).pooler_output
        )
    else:
        scores = use(picture, candidate_labels=["red", "3"], hypothesis_template="picture {}")
        assert sum(score["score"] for score in scores) == pytest.approx(1)


def test_text_uncertainty_does_not_depend_on_the_form_of_outputs(checkpoint_of, tiny_processor):
    model = AutoModel.from_pretrained(checkpoint_of("clip", "whole").folder)
    judge = pipeline("text-uncertainty", model=model, tokenizer=tiny_processor.tokenizer)
    expected = judge("red picture 3")
    model.config.return_dict = False
    assert judge("red picture 3") == expected


def test_token_embeddings_are_those_of_the_text_tower(whole):
    model = AsymVLMModel.from_pretrained(whole.folder)
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    other = torch.nn.Embedding(99, 32)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert not other.weight.requires_grad
    model.train()
