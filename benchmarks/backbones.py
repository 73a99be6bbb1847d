"""Every backbone family through every way in and out, on tiny random models built from their configurations.

    python -m benchmarks.backbones [--families clip siglip ...]

A cell is the largest absolute difference: of the composed features to the family's own `get_*_features` for compose,
save/load, where the logits must be bit-equal too (but for ALIGN, as the code says), AutoModel and remote code (an
interpreter where this package cannot be imported); to the model's own logits for the zero-shot pipeline, also by
remote code, as a probability; to its own embeddings for sentence-transformers; and of the text tower in onnxruntime to
the model, relative to the concentration. Needs the extra `dev`. Exits with 1 if a difference is above 1e-5 or anything
fails.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, pipeline

from benchmarks.common import machine, print_table
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.model.checkpoint_code import published
from modeling_asymvlm.publishing.export import TextTower, export_text_tower_to_onnx
from tests.support.tiny_backbones import FAMILIES, native_features, tiny_backbone, tiny_images, tiny_texts
from tests.support.tiny_models import make_tiny_processor


COLUMNS = ["compose", "save/load", "AutoModel", "remote code", "pipeline", "sentence-transformers", "ONNX"]
LARGEST = 1e-5
# torch's convolutions take other paths for weights mapped from a file, which are not aligned in memory: AlignModel
# itself is not bit-equal across saving and loading.
NOT_BIT_EQUAL = ("align",)
LABELS = ["red 1", "picture 2 3"]

ISOLATED = """
import sys
sys.modules["modeling_asymvlm"] = None  # any import of the package fails
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

for folder in sys.argv[2:]:
    try:
        texts, images = load_file(folder + "/texts.safetensors"), load_file(folder + "/images.safetensors")
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        outputs = {"text": model.backbone_text_features(**texts), "image": model.backbone_image_features(**images)}
        classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
        scores = classify(Image.open(folder + "/picture.png"), candidate_labels=sys.argv[1].split("|"))
        outputs["scores"] = torch.tensor([each["score"] for each in sorted(scores, key=lambda each: each["label"])])
        save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, folder + "/outputs.safetensors")
    except Exception as error:
        print(f"{folder}: {type(error).__name__}: {error}", file=sys.stderr)
"""


def processor_for(family: str):
    processor = make_tiny_processor()
    if family == "siglip2":
        return transformers.Siglip2Processor(transformers.Siglip2ImageProcessor(), processor.tokenizer)
    return processor


def difference(found, expected) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))


def features(model, texts, images):
    return model.backbone_text_features(**texts), model.backbone_image_features(**images)


class Family:
    """A tiny model of one family, saved as a published checkpoint with its processor and a batch."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder / name
        self.texts, self.images, self.vlm = tiny_texts(name), tiny_images(name), tiny_backbone(name)
        self.native = native_features(self.vlm, self.texts, self.images)
        self.processor = processor_for(name)
        pad = self.processor.tokenizer.pad_token_id
        torch.manual_seed(0)
        self.model = AsymVLMModel.from_vlm_pretrained(self.vlm, hidden_size=32, text_pad_token_id=pad)
        with published(self.model.config):
            self.model.save_pretrained(self.folder)
        self.processor.save_pretrained(self.folder)
        save_file(self.texts, self.folder / "texts.safetensors")
        save_file(self.images, self.folder / "images.safetensors")
        self.picture = Image.new("RGB", (32, 32), (200, 60, 20))
        self.picture.save(self.folder / "picture.png")

    def compose(self) -> float:
        return difference(features(self.model, self.texts, self.images), self.native)

    def save_load(self) -> float:
        loaded = AsymVLMModel.from_pretrained(self.folder)
        logits = [model(**self.texts, **self.images).logits_per_image for model in (loaded, self.model)]
        if self.name not in NOT_BIT_EQUAL and not torch.equal(*logits):
            raise ValueError("the logits are not bit-equal")
        return difference(features(loaded, self.texts, self.images), self.native)

    def auto_model(self) -> float:
        return difference(features(AutoModel.from_pretrained(self.folder), self.texts, self.images), self.native)

    def remote_code(self) -> float:
        outputs = load_file(self.folder / "outputs.safetensors")
        return difference((outputs["text"], outputs["image"]), self.native)

    def zero_shot(self) -> float:
        prompts = [f"This is a photo of {label}." for label in sorted(LABELS)]
        inputs = self.processor.tokenizer(prompts, padding=True, return_tensors="pt")
        pixels = self.processor.image_processor(self.picture, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        expected = self.model(**{name: inputs[name] for name in names}, **pixels).logits_per_image.softmax(-1)[0]
        classify = pipeline("zero-shot-image-classification", model=str(self.folder))
        found = sorted(classify(self.picture, candidate_labels=LABELS), key=lambda each: each["label"])
        remote = load_file(self.folder / "outputs.safetensors")["scores"]
        return difference((torch.tensor([each["score"] for each in found]), remote), (expected, expected))

    def sentence_transformers(self) -> float:
        encoder = SentenceTransformer(str(self.folder), device="cpu")
        found = [encoder.encode(each, convert_to_tensor=True) for each in (LABELS, [self.picture])]
        inputs = self.processor.tokenizer(LABELS, padding=True, return_tensors="pt")
        pixels = self.processor.image_processor([self.picture], return_tensors="pt")
        names = ("input_ids", "attention_mask")
        output = self.model(**{name: inputs[name] for name in names}, **pixels)
        return difference(found, (output.text_embeds, output.image_embeds))

    def onnx(self) -> float:
        import onnxruntime

        path = export_text_tower_to_onnx(self.model, self.folder / "text.onnx")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {name: tensor.numpy() for name, tensor in self.texts.items()})
        direction, concentration = TextTower(self.model)(**self.texts)
        found = [torch.from_numpy(each) for each in found]
        return max(difference(found[:1], [direction]), difference([found[1] / concentration], [torch.ones(4)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)

    with tempfile.TemporaryDirectory() as folder:
        families = [Family(name, Path(folder)) for name in arguments.families]
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(folder, "modules"))}
        command = [sys.executable, "-I", "-c", ISOLATED, "|".join(LABELS), *(str(each.folder) for each in families)]
        isolated = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        rows, failures = [], [line for line in isolated.stderr.splitlines() if line.startswith(folder)]
        for family in families:
            ways: list[Callable[[], float]] = [
                family.compose,
                family.save_load,
                family.auto_model,
                family.remote_code,
                family.zero_shot,
                family.sentence_transformers,
                family.onnx,
            ]
            row = [family.name]
            for column, way in zip(COLUMNS, ways, strict=True):
                try:
                    value = way()
                    row.append("0" if value == 0 else f"{value:.0e}")
                    if not value <= LARGEST:
                        failures.append(f"{family.name}, {column}: {value:.2e}")
                except Exception as error:  # the table is for reading what fails, too
                    row.append("fails")
                    failures.append(f"{family.name}, {column}: {type(error).__name__}: {error}")
            rows.append(row)
    print(f"{machine()}\n")
    print_table(["family", *COLUMNS], rows)
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
