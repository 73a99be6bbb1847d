"""`pipeline("zero-shot-image-classification")` on every family: its scores are the model's own, however it pads."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, ProcessorMixin, Siglip2ImageProcessor, pipeline

from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.zero_shot.classifier import ZeroShotClassifier
from tests.support.tiny_backbones import CONTEXT, FAMILIES, VOCABULARY, tiny_backbone
from tests.support.tiny_models import make_tiny_processor


TEMPLATE = "w2 {}"
LABELS = ["w9", "w3 w4 w5 w6 w7 w8 w10", "w20 w30", "w3"]
LONG = " ".join(
    f"w{number}" for number in range(40, 40 + CONTEXT - 2)
)  # fills the context with the template and the end


class TinyProcessor(ProcessorMixin):
    """A tokenizer and an image processor of any family."""

    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)


def make_processor(family: str, pad_token_id: int, padding_side: str) -> TinyProcessor:
    words = {f"w{number}": number for number in range(2, VOCABULARY - 1)}
    words |= {"<pad>": pad_token_id, "<unk>": 1 - pad_token_id, "<end>": VOCABULARY - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", VOCABULARY - 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )
    image_processor = make_tiny_processor().image_processor
    if family == "siglip2":
        image_processor = Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
    return TinyProcessor(image_processor, fast)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_softmax_of_the_models_logits_whatever_the_padding(family):
    vlm = tiny_backbone(family)
    pad_token_id = vlm.config.text_config.pad_token_id or 0
    torch.manual_seed(3)
    options = {"hidden_size": 16, "text_pad_token_id": pad_token_id}
    model = AsymVLMModel.from_vlm_pretrained(vlm, distribution="vmf", **options).eval().double()
    pictures = [Image.linear_gradient("L").resize((48, 40)).convert("RGB"), Image.new("RGB", (32, 32), (200, 30, 60))]
    processors = {side: make_processor(family, pad_token_id, side) for side in ("right", "left")}
    inputs = processors["right"].image_processor(images=pictures, return_tensors="pt").to(torch.float64)

    def logits_without_padding() -> torch.Tensor:
        texts = [TEMPLATE.format(label) for label in [*LABELS, LONG]]
        tokens = [processors["right"].tokenizer(text, return_tensors="pt") for text in texts]
        with torch.no_grad():
            return torch.cat([model(**each, **inputs).logits_per_image for each in tokens], dim=1)

    # Random towers tell texts apart by very little: a temperature that makes it enough, in float64.
    model.logit_scale.data /= logits_without_padding().std(dim=1).mean()
    logits = logits_without_padding()
    assert logits.diff(dim=1).abs().min() > 1e-3

    for processor in processors.values():
        parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
        classify = pipeline("zero-shot-image-classification", model=model, **parts)
        for labels in (LABELS, [*LABELS, LONG], [LONG, *LABELS], LABELS[:1]):
            columns = [[*LABELS, LONG].index(label) for label in labels]
            expected = logits[:, columns].softmax(dim=1)
            results = classify(pictures, candidate_labels=labels, hypothesis_template=TEMPLATE)
            for row, result in enumerate(results):
                scores = {entry["label"]: entry["score"] for entry in result}
                found = torch.tensor([scores[label] for label in labels])
                torch.testing.assert_close(found, expected[row].float(), atol=1e-5, rtol=1e-4)
        classifier = ZeroShotClassifier.from_prompts(model, processor, LABELS, [TEMPLATE])
        posterior = classifier.predict(pictures).posterior
        torch.testing.assert_close(posterior, logits[:, : len(LABELS)].softmax(dim=1), atol=1e-5, rtol=1e-4)
