"""Pairs of cached features, heads on them and their trainers."""

import torch

from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.store.embedding_store import EmbeddingSplit
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.recipes import RECIPES
from modeling_asymvlm.training.trainer import AsymVLMTrainer, AsymVLMTrainingArguments


# Heads that are compared every epoch at their own temperature, without the untrained one.
EVERY_EPOCH = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "eval_on_start": False,
    "metric_for_best_model": "eval_loss",
    "early_stopping_patience": None,
    "learning_rate": 3e-3,
}


def learned(**arguments) -> dict:
    """Arguments of a head with a learned direction, which differs from text to text before it is trained."""
    return {**RECIPES["learned"].head, **arguments}


def make_pairs(seed: int, images: int, texts: int, dim: int = 24, noise: float = 0.5) -> FeaturePairs:
    """Texts whose features are those of their image with noise: there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    image_features = torch.randn(images, dim, generator=generator)
    index = torch.arange(texts) % images
    text_features = image_features[index] + noise * torch.randn(texts, dim, generator=generator)
    names = [f"image-{row}" for row in range(images)]
    return FeaturePairs(EmbeddingSplit(names, image_features, ["caption"] * texts, text_features, index))


def make_trainer(folder, model, *, train=None, evaluation=None, **arguments) -> AsymVLMTrainer:
    defaults = {**EVERY_EPOCH, "num_train_epochs": 2, "per_device_train_batch_size": 16}
    defaults |= {"disable_tqdm": True, "report_to": "none"}
    return AsymVLMTrainer(
        model=model,
        args=AsymVLMTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=train or make_pairs(0, 32, 64),
        eval_dataset=evaluation or make_pairs(1, 21, 21),
        data_collator=FeaturePairs.collate,
    )


def head_model(**arguments) -> AsymVLMModel:
    torch.manual_seed(5)
    head = {"projection_dim": 24, "hidden_size": 32, "num_hidden_layers": 3, **arguments}
    return AsymVLMModel(AsymVLMConfig(**learned(**head)))


def objective_on(model: AsymVLMModel, pairs: FeaturePairs) -> float:
    batch = pairs.__getitems__(range(len(pairs)))
    with torch.no_grad():
        return model.eval()(**batch, return_loss=True).loss.item()
