"""Trains the tiny CLIP of the scenes example from scratch, on the training split alone, in minutes on two cores.

    python -m benchmarks.tiny_clip

Each epoch shows the training pictures with newly drawn captions. Besides the contrastive loss, linear read-outs of
both embeddings name the attributes: a model this small would otherwise learn combinations of attributes by heart and
fail on those that the test split holds out. The read-outs are thrown away. The weights with the best validation recall
are saved with their processor, and reported once on the test split beside the best possible recall.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, disable_progress_bars, load_dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from modeling_asymvlm.scenes.generate import generate
from modeling_asymvlm.scenes.oracle import best_recall, expected_recall, split_attributes, split_fits
from modeling_asymvlm.scenes.places import BACKBONE
from modeling_asymvlm.scenes.scenes import NUM_VALUES, PICTURE_SIZE, draw_named, vocabulary, write_caption


# The end token is the fourth: CLIP pools at the largest token id instead of at the end token if that one has id 2.
SPECIAL_TOKENS = ("<pad>", "<start>", "<unknown>", "<end>")
CONTEXT_LENGTH = 24
EMBEDDING_SIZE = 64
BATCH_SIZE = 500
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.1
# Words outside the vocabulary are inserted so that the model learns to read past them.
UNKNOWN_WORDS_PER_CAPTION = 0.1


def make_processor() -> CLIPProcessor:
    """Pictures of 32x32 pixels scaled to [-1, 1]; captions split into lower-case words, punctuation removed."""
    token_ids = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *vocabulary()])}
    pad, start, unknown, end = SPECIAL_TOKENS
    words = Tokenizer(models.WordLevel(token_ids, unk_token=unknown))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    words.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, token_ids[start]), (end, token_ids[end])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        bos_token=start,
        unk_token=unknown,
        eos_token=end,
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    image_processor = CLIPImageProcessor(
        size=size, do_center_crop=False, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


def make_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """A randomly initialised CLIP of about 0.2 million parameters."""
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "hidden_act": "relu",
        "projection_dim": EMBEDDING_SIZE,
        "initializer_range": 0.1,
    }
    text_config = {
        **tower,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision_config = {**tower, "num_hidden_layers": 3, "image_size": PICTURE_SIZE, "patch_size": 8}
    config = CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=EMBEDDING_SIZE)
    return CLIPModel(config)


def draw_captions(scenes: np.ndarray, random: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """
    New captions for `scenes`, int of shape (count, 5), now and then with words that the tokenizer does not know, and
    the attributes that they name, boolean of shape (count, 5).
    """
    captions = []
    named = draw_named(random, len(scenes))
    for scene, of_scene in zip(scenes, named, strict=True):
        words = write_caption(scene, of_scene, random).split()
        for _ in range(random.poisson(UNKNOWN_WORDS_PER_CAPTION)):
            words.insert(int(random.integers(len(words) + 1)), SPECIAL_TOKENS[2])
        captions.append(" ".join(words))
    return captions, named


class ReadOuts(torch.nn.Module):
    """Linear classifiers of the five attributes; the last class of each is "not named"."""

    def __init__(self):
        super().__init__()
        self.classifiers = torch.nn.ModuleList(torch.nn.Linear(EMBEDDING_SIZE, count + 1) for count in NUM_VALUES)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of `labels`, int of shape (batch, 5), given `embeddings` of shape (batch, 64)."""
        losses = [F.cross_entropy(classify(embeddings), labels[:, i]) for i, classify in enumerate(self.classifiers)]
        return torch.stack(losses).mean()


@torch.no_grad()
def cosine_scores(model: CLIPModel, processor: CLIPProcessor, dataset: Dataset) -> np.ndarray:
    """Cosine similarities of all pictures and captions of a split, float32 of shape (num_images, num_captions)."""
    model.eval()
    inputs = processor(images=dataset["image"][:], text=dataset["caption"][:], padding=True, return_tensors="pt")
    output = model(**inputs)
    return (output.image_embeds @ output.text_embeds.T).numpy()


def report(name: str, recall: tuple[float, float], best: tuple[float, float]) -> None:
    """Prints recall in both directions, also as a share of the best possible."""
    shares = [value / limit for value, limit in zip(recall, best, strict=True)]
    text_to_image, image_to_text = (f"{value:.4f} ({share:.1%})" for value, share in zip(recall, shares, strict=True))
    print(f"{name}: text->image {text_to_image}, image->text {image_to_text}", flush=True)


def train(model: CLIPModel, processor: CLIPProcessor, splits: dict[str, Dataset], num_epochs: int, seed: int) -> None:
    """Trains with the symmetric contrastive loss and leaves the best validated weights in `model`."""
    random = np.random.default_rng(seed)
    scenes, _ = split_attributes(splits["train"])
    pixel_values = processor(images=splits["train"]["image"][:], return_tensors="pt")["pixel_values"]
    fits, scene_share = split_fits(splits["validation"], held_out=False)
    best_possible = best_recall(fits, scene_share)
    of_images, of_texts = ReadOuts(), ReadOuts()
    parameters = [*model.parameters(), *of_images.parameters(), *of_texts.parameters()]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
    undecayed = [parameter for parameter in parameters if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
        weight_decay=WEIGHT_DECAY,
    )
    num_steps = num_epochs * (len(scenes) // BATCH_SIZE)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_steps // 20, num_steps)
    best_score, best_weights = -1.0, {}
    for epoch in range(1, num_epochs + 1):
        model.train()
        captions, named = draw_captions(scenes, random)
        tokens = processor(text=captions, padding=True, return_tensors="pt")
        image_labels = torch.from_numpy(scenes)
        text_labels = torch.from_numpy(np.where(named, scenes, NUM_VALUES))
        losses = []
        for rows in torch.from_numpy(random.permutation(len(scenes))).split(BATCH_SIZE):
            images = model.get_image_features(pixel_values[rows]).pooler_output
            texts = model.get_text_features(tokens["input_ids"][rows], tokens["attention_mask"][rows]).pooler_output
            cosines = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
            logits, own = model.logit_scale.exp() * cosines, torch.arange(len(rows))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            loss = loss + of_images(images, image_labels[rows]) + of_texts(texts, text_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        recall = expected_recall(cosine_scores(model, processor, splits["validation"]), fits, scene_share)
        report(f"epoch {epoch}/{num_epochs}, loss {np.mean(losses):.4f}, validation cosine R@1", recall, best_possible)
        score = sum(value / limit for value, limit in zip(recall, best_possible, strict=True))
        if score > best_score:
            best_score = score
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny CLIP of the scenes example.")
    parser.add_argument("--data_dir", type=Path, help="folder of generate.py; default: in the cache")
    parser.add_argument("--output_dir", type=Path, default=BACKBONE, help="where to save the model")
    parser.add_argument("--num_epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    disable_progress_bars()
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)

    data_dir = generate(arguments.data_dir)
    names = ("train", "validation", "test")
    splits = load_dataset("parquet", data_files={name: str(data_dir / f"{name}.parquet") for name in names})
    processor = make_processor()
    model = make_model(processor.tokenizer)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    train(model, processor, splits, arguments.num_epochs, arguments.seed)
    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)

    fits, scene_share = split_fits(splits["test"], held_out=True)
    best_possible = best_recall(fits, scene_share)
    scores = cosine_scores(model, processor, splits["test"])
    own = np.arange(len(scores))
    plain = float((scores.argmax(axis=0) == own).mean()), float((scores.argmax(axis=1) == own).mean())
    report("test, best possible R@1", best_possible, best_possible)
    report("test, expected cosine R@1", expected_recall(scores, fits, scene_share), best_possible)
    report("test, cosine R@1", plain, best_possible)


if __name__ == "__main__":
    main()
