"""The same numbers by every way: attention implementations, batches, copies, checkpointing, lower precision."""

import copy
import warnings

import pytest
import torch
from transformers import AutoModel


def padded(inputs: dict[str, torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """The texts with two more tokens of padding on one side."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    padding = (0, 2) if side == "right" else (2, 0)
    return {
        **inputs,
        "input_ids": torch.nn.functional.pad(ids, padding, value=1),
        "attention_mask": torch.nn.functional.pad(mask, padding, value=0),
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_and_sdpa_agree_whatever_the_padding(whole, side, dtype):
    inputs = whole.inputs if whole.family == "siglip" else padded(whole.inputs, side)
    logits = []
    for arguments in ({"attn_implementation": "eager"}, {}):  # the default is sdpa, but for BLIP, which has none
        model = AutoModel.from_pretrained(whole.folder, dtype=dtype, **arguments)
        with torch.no_grad():
            logits.append(model(**inputs).logits_per_text)
    scale = whole.logits.abs().max().item()
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=(1e-5 if dtype == torch.float32 else 0.05) * scale)
    torch.testing.assert_close(logits[1], whole.logits, rtol=0, atol=(1e-5 if dtype == torch.float32 else 0.1) * scale)


def test_the_attention_of_a_loaded_model_can_be_changed(whole):
    model = AutoModel.from_pretrained(whole.folder)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        whole.check(model)


def test_a_batch_is_its_rows(whole):
    with torch.no_grad():
        for row in range(4):
            one = {name: value[row : row + 1] for name, value in whole.inputs.items()}
            logits = whole.model(**one).logits_per_text
            torch.testing.assert_close(logits[0, 0], whole.logits[row, row], rtol=0, atol=2e-5)


def test_a_copy_shares_nothing_with_the_model(whole):
    model = AutoModel.from_pretrained(whole.folder)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    whole.check(model)


@pytest.mark.parametrize("arguments", [{}, {"use_reentrant": False}, {"use_reentrant": True}])
def test_checkpointing_changes_no_gradient(whole, arguments):
    gradients = []
    for enabled in (False, True):
        model = AutoModel.from_pretrained(whole.folder, hidden_dropout_prob=0.0, input_dropout_prob=0.0).train()
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
        model(**whole.inputs, return_loss=True).loss.backward()
        gradients.append([parameter.grad for parameter in model.text_head.parameters()])
        assert all(parameter.grad is None for parameter in model.vlm.parameters())
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_linear_layers_may_be_quantised_dynamically(whole):
    model = AutoModel.from_pretrained(whole.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.ao.quantization itself, that it will go
        quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        logits = quantised(**whole.inputs).logits_per_text
    assert (logits - whole.logits).abs().max() < 0.15 * whole.logits.abs().max()
    whole.check(model)


def test_a_saved_checkpoint_in_half_precision_keeps_a_head_in_float32(whole, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        AutoModel.from_pretrained(whole.folder, dtype=dtype).save_pretrained(tmp_path)
        model = AutoModel.from_pretrained(tmp_path)
        assert {parameter.dtype for parameter in model.vlm.parameters()} == {dtype}
        assert {parameter.dtype for parameter in model.text_head.parameters()} == {torch.float32}
        assert not set(model._keep_in_fp32_modules or ()) & set(model._keep_in_fp32_modules_strict)
