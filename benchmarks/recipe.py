"""Our training defaults against the reference recipe: held-out quality and steps, on the same features.

    python -m benchmarks.recipe --embeddings DIR [--distributions vmf power_spherical] [--seed 0]

The reference recipe, re-implemented after its published settings: three hidden layers of 1,024 without dropout; SGD
with learning rate 1e-2, momentum 0.9 and weight decay 5e-4, cosine schedule per step down to 1e-6, 200 epochs, batches
of 2048 captions, no masking of other captions of the same image, tau learned from 1.0, the last epoch kept; the
approximate normaliser for vMF. Both are judged by the same validation objective, over the whole split with masking,
which for the reference recipe is also read at its best epoch.
"""

import argparse
import time

import torch

from benchmarks.common import machine, print_table, train_head
from modeling_asymvlm import AsymVLMConfig, AsymVLMModel
from modeling_asymvlm.pairs.layouts import SPLITS
from modeling_asymvlm.reporting.evaluate_model import evaluate_split
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.training.batches import FeaturePairs
from modeling_asymvlm.training.recipes import RECIPES


@torch.no_grad()
def validation_loss(model: AsymVLMModel, split: EmbeddingSplit) -> float:
    """The objective over the whole split at once, other captions of an image masked, with the model's own law."""
    model.eval()
    pairs = FeaturePairs(split)
    output = model(**pairs.__getitems__(range(len(pairs))), return_logits=False)
    loss = model.config.law.loss(
        output.text_embeds,
        output.image_embeds,
        model.logit_scale,
        image_ids=split.text_image_index,
        tile_size=1024,
    )
    return loss.item()


def reference_recipe(splits: dict[str, EmbeddingSplit], distribution: str, seed: int, epochs: int) -> tuple:
    """Trains by the reference recipe; returns the model, its steps and seconds, and the validation loss per epoch."""
    torch.manual_seed(seed)
    model = AsymVLMModel(
        AsymVLMConfig(
            projection_dim=splits["train"].dim,
            distribution=distribution,
            **RECIPES["paper"].head,
        )
    )
    pairs = FeaturePairs(splits["train"])
    loader = torch.utils.data.DataLoader(pairs, batch_size=2048, shuffle=True, collate_fn=FeaturePairs.collate)
    optimizer = torch.optim.SGD(model.text_head.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader), eta_min=1e-6)
    losses, seconds = [], 0.0
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for batch in loader:
            batch.pop("image_ids")
            loss = model(**batch, return_loss=True, return_logits=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds += time.perf_counter() - started
        losses.append(validation_loss(model, splits["validation"]))
    return model.eval(), epochs * len(loader), seconds, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", required=True, help="folder of cached features")
    parser.add_argument("--distributions", nargs="+", default=["vmf", "power_spherical"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference_epochs", type=int, default=200)
    arguments = parser.parse_args()

    store = EmbeddingStore(arguments.embeddings)
    splits = {name: store.split(name) for name in SPLITS}
    print(f"{len(splits['train'].captions)} training captions; {machine()}\n")
    rows = []
    for distribution in arguments.distributions:
        ours, figures = train_head(splits, seed=arguments.seed, config={"distribution": distribution})
        losses = [validation_loss(ours, splits["validation"])]
        runs = [("our defaults", ours, figures["steps"], figures["seconds"], losses)]
        runs.append(
            ("reference recipe", *reference_recipe(splits, distribution, arguments.seed, arguments.reference_epochs))
        )
        for name, model, steps, seconds, losses in runs:
            test = evaluate_split(model, splits["test"])
            recall = test["retrieval"]
            rows.append(
                [
                    f"{distribution}, {name}",
                    str(steps),
                    f"{seconds / runs[0][3]:.1f}",
                    f"{losses[-1]:.4f}",
                    f"{min(losses):.4f}",
                    f"{recall['text_to_image_recall@1']:.4f}",
                    f"{recall['image_to_text_recall@1']:.4f}",
                ]
            )
            print(f"done: {', '.join(rows[-1])}", flush=True)
    header = ["head", "steps", "time / ours", "val. loss", "best val. loss", "test t->i R@1", "test i->t R@1"]
    print()
    print_table(header, rows)


if __name__ == "__main__":
    main()
