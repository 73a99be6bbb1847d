"""What transformers' common tests need to know of AsymVLM: a tiny configuration, inputs, and what does not apply."""

import unittest
from typing import Any

import torch

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from tests.support.tiny_backbones import TOWER, tiny_backbone, tiny_images, tiny_texts


FAMILIES = ["clip", "siglip", "blip", "vision-text-dual-encoder"]
TWO_TOWERS = "two towers: their hidden states stand in text_model_output and vision_model_output"
FROZEN = "frozen backbone: its hidden states have no gradients"
STRICT = "loading refuses missing weights, as tests/model/test_checkpoint_saving.py asserts"
NOT_APPLICABLE = {
    "test_hidden_states_output": TWO_TOWERS,
    "test_retain_grad_hidden_states_attentions": FROZEN,
    "test_model_weights_reload_no_missing_tied_weights": STRICT,
}


class ModelTester:
    """A configuration of a tiny backbone of the family with a head, and a batch of both modalities."""

    is_training = True
    batch_size = 4
    hidden_size = TOWER["hidden_size"]
    num_hidden_layers = TOWER["num_hidden_layers"]
    num_attention_heads = TOWER["num_attention_heads"]

    def __init__(self, family: str):
        self.family = family

    def get_config(self) -> AsymVLMConfig:
        backbone = tiny_backbone(self.family)
        backbone.config.architectures = [type(backbone).__name__]  # as a checkpoint of it says
        return AsymVLMConfig(backbone.config, hidden_size=32, text_pad_token_id=1)

    def prepare_config_and_inputs_for_common(self) -> tuple[AsymVLMConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {**tiny_texts(self.family), **tiny_images(self.family)}


def case_of(family: str, modeling: Any, configuration: Any) -> type[unittest.TestCase]:
    """The common tests of models and configurations for AsymVLM on a backbone of this family."""

    class AsymVLMTest(modeling.ModelTesterMixin, unittest.TestCase):
        all_model_classes = (AsymVLMModel,)
        test_resize_embeddings = False
        test_attention_outputs = False
        additional_model_inputs = ["pixel_values"]
        _is_composite = True

        def setUp(self) -> None:
            if self._testMethodName in NOT_APPLICABLE:
                self.skipTest(f"not applicable: {NOT_APPLICABLE[self._testMethodName]}")
            self.model_tester = ModelTester(family)
            self.config_tester = configuration.ConfigTester(
                self, config_class=AsymVLMConfig, has_text_modality=False, vlm_config=None, projection_dim=24
            )

        def _prepare_for_class(self, inputs: dict, model_class: type, return_labels: bool = False) -> dict:
            inputs = super()._prepare_for_class(inputs, model_class, return_labels=return_labels)
            return {**inputs, "return_loss": True} if return_labels else inputs

        def test_config(self) -> None:
            self.config_tester.run_common_tests()

    return AsymVLMTest
