"""torch.compile, torch.export and ONNX: every graph gives what the model gives, whatever the batch and the padding."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.publishing.export import TextTower, export_text_tower, export_text_tower_to_onnx


BACKBONES = ("tiny_clip", "tiny_siglip")
CONTEXT = 16

# Of torch itself: its tracer instantiates an autograd function, inductor scripts a method, the ONNX exporter copies
# pytrees of its own and remarks on the name of an axis that two inputs share.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance\\(treespec, LeafSpec\\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used, since it shares:UserWarning"),
]


@pytest.fixture(params=BACKBONES)
def model(request) -> AsymVLMModel:
    torch.manual_seed(3)
    vlm = request.getfixturevalue(request.param)
    distribution = "vmf" if request.param == "tiny_clip" else "power_spherical"
    return AsymVLMModel.from_vlm_pretrained(vlm, hidden_size=48, text_pad_token_id=1, distribution=distribution)


def texts(batch: int, length: int, padding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of `length` tokens and fewer, each closed by the end-of-text token."""
    input_ids = torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(100 * batch + length))
    attention_mask = torch.ones_like(input_ids)
    for row in range(batch):
        own = max(1, length - row)
        input_ids[row, own - 1] = 98
        input_ids[row, own:] = 1
        attention_mask[row, own:] = 0
        if padding == "left":
            input_ids[row] = input_ids[row].roll(length - own)
            attention_mask[row] = attention_mask[row].roll(length - own)
    return input_ids, attention_mask


BATCHES = [(1, 1), (1, 5), (2, 8), (3, CONTEXT), (7, 2), (5, 12)]


def assert_close(actual, expected) -> None:
    (direction, concentration), (expected_direction, expected_concentration) = actual, expected
    assert concentration.shape == expected_concentration.shape and direction.shape == expected_direction.shape
    assert np.abs(np.asarray(direction) - np.asarray(expected_direction)).max() <= 1e-5
    assert np.abs(np.asarray(concentration) / np.asarray(expected_concentration) - 1).max() <= 1e-5


def test_a_compiled_model_has_one_graph_equal_outputs_and_equal_gradients(model, batch):
    torch.compiler.reset()
    outputs, gradients = [], []
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.zero_grad()
        outputs.append(run(**batch, return_loss=True))
        outputs[-1].loss.backward()
        gradients.append([parameter.grad for parameter in model.text_head.parameters()])
    for name in ("loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "concentration"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], rtol=1e-5, atol=1e-5)
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("length", [9, CONTEXT + 4])
def test_a_compiled_text_tower_has_one_graph_even_where_it_truncates(model, length):
    torch.compiler.reset()
    tower = torch.compile(TextTower(model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for padding in ("right", "left"):
            inputs = texts(4, length, padding)
            assert_close(tower(*inputs), TextTower(model)(*inputs))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_the_text_tower(tiny_clip):
    tower = TextTower(AsymVLMModel.from_vlm_pretrained(tiny_clip, hidden_size=48))
    torch.compiler.reset()
    with torch.no_grad():
        inputs = texts(4, 9, "left")
        assert_close(torch.compile(tower, fullgraph=True, backend="inductor")(*inputs), tower(*inputs))


def test_the_exported_program_takes_any_batch_and_length(model):
    program = export_text_tower(model.train())
    assert model.text_head.training and not model.vlm.training
    model.eval()
    run = program.module()
    with torch.no_grad():
        for size in BATCHES:
            for padding in ("right", "left"):
                inputs = texts(*size, padding)
                assert_close(run(*inputs), TextTower(model)(*inputs))
    with pytest.raises(AssertionError, match="Guard failed.*<= 16"):
        run(*texts(2, CONTEXT + 1, "right"))


def test_onnx_gives_what_the_model_gives(model, tmp_path):
    path = export_text_tower_to_onnx(model, tmp_path / "new" / "tower.onnx")
    assert [file.name for file in path.parent.iterdir()] == ["tower.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [node.name for node in session.get_outputs()] == ["mean_direction", "concentration"]

    def run(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[np.ndarray]:
        return session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})

    with torch.no_grad():
        for size in BATCHES:
            for padding in ("right", "left"):
                inputs = texts(*size, padding)
                assert_close(run(*inputs), TextTower(model)(*inputs))
    weights = [initializer.name for initializer in onnx.load(path).graph.initializer]
    assert any("text_head" in name for name in weights) and any("text_model" in name for name in weights)
    assert not any("vision_model" in name or "visual_projection" in name for name in weights)
    with pytest.raises(InvalidArgument, match=f"invalid index found, index = {CONTEXT}"):
        run(*texts(2, CONTEXT + 1, "right"))


def test_a_failure_leaves_what_was_there(tiny_clip, tmp_path, monkeypatch):
    path = tmp_path / "tower.onnx"
    path.write_bytes(b"an earlier export")

    class FullDisk:
        def save(self, destination):
            destination.write_bytes(b"half of")
            raise OSError("No space left on device")

    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: FullDisk())
    with pytest.raises(OSError, match="No space left"):
        export_text_tower_to_onnx(AsymVLMModel.from_vlm_pretrained(tiny_clip), path)
    assert path.read_bytes() == b"an earlier export"
    assert [file.name for file in tmp_path.iterdir()] == ["tower.onnx"]


def test_a_head_without_a_backbone_has_no_text_tower():
    with pytest.raises(ValueError, match="has no text tower"):
        export_text_tower(AsymVLMModel(AsymVLMConfig(projection_dim=8)))
