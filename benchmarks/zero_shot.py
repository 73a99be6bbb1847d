"""Zero-shot classification: the fused distributions of prompts against averages and the backbone's own softmax.

    python -m benchmarks.zero_shot [--embeddings DIR] [--hierarchy DIR] [--seeds 0 1 2]

Without DIR on Scenes: a class is a scene, or a colour and a shape, and its prompts are captions that name some of its
attributes; the test images show scenes that neither backbone nor heads have seen. With DIR, a folder of cached
features: a class is an image of the split, its prompts are its captions, and each image is classified among all of the
split. The hierarchy is a folder whose test captions go from general to specific; half of its images serve as
validation.

Each seed draws prompts and trains heads. All methods see the same prompts, and each takes the temperature of lowest
negative log-likelihood on the validation images with prompts of their own; "own tau" is the one that the head learned.
The prompt correlation of the last row is the one of 0, 0.1, ..., 1 of lowest negative log-likelihood on validation.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from transformers import AutoProcessor

from benchmarks.common import REPOSITORY, machine, mean_and_deviation, print_table, scenes_features, train_head
from benchmarks.small_data import EVERY_SPECIFICITY, recipe
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.evaluation import calibration_metrics, retrieval_posterior
from modeling_asymvlm.model.distributions import PowerSpherical
from modeling_asymvlm.model.log_normalizers import uniform_log_density
from modeling_asymvlm.model.objective import pair_scores
from modeling_asymvlm.pairs.layouts import SPLITS
from modeling_asymvlm.scenes.places import BACKBONE, data_folder
from modeling_asymvlm.scenes.scenes import (
    ATTRIBUTES,
    NUM_VALUES,
    all_scenes,
    draw_named,
    held_out_scenes,
    write_caption,
)
from modeling_asymvlm.store.embedding_store import EmbeddingSplit, EmbeddingStore
from modeling_asymvlm.zero_shot.classifier import ZeroShotClassifier
from modeling_asymvlm.zero_shot.fusion import sum_by_class


JUDGED = ("validation", "test")
CORRELATIONS = np.linspace(0, 1, 11)
ALL_ATTRIBUTES = tuple(range(len(ATTRIBUTES)))


@dataclass(frozen=True)
class Task:
    """Features of prompts with the class of each, and of images with the class of each."""

    text_features: torch.Tensor
    prompt_class: torch.Tensor
    image_features: torch.Tensor
    labels: np.ndarray

    def by_class(self) -> dict[str, torch.Tensor]:
        order = self.prompt_class.argsort(stable=True)
        parts = self.text_features[order].split(torch.bincount(self.prompt_class).tolist())
        return {str(number): part for number, part in enumerate(parts)}


def fitted_scale(scores: torch.Tensor, labels: np.ndarray) -> tuple[float, float]:
    """The scale of lowest negative log-likelihood, from 0.001 to 1000, and that likelihood."""
    targets = torch.from_numpy(labels)
    found = minimize_scalar(
        lambda log_scale: F.cross_entropy(float(np.exp(log_scale)) * scores, targets).item(),
        bounds=(np.log(1e-3), np.log(1e3)),
        options={"xatol": 1e-3},
    )
    return float(np.exp(found.x)), float(found.fun)


def judged(scores: torch.Tensor, scale: float, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, negative log-likelihood and expected calibration error (15 bins) of scores (images, classes)."""
    posterior = retrieval_posterior(scores, labels, logit_scale=scale, num_images=scores.shape[1]).text_to_image
    right = posterior.top == labels
    calibration = calibration_metrics(posterior.top_probability, right, num_bins=15)
    return {
        "accuracy": float(right.mean()),
        "nll": float(-posterior.own_log_probability.mean()),
        "ece": calibration["expected_calibration_error"],
    }


def backbone_scores(task: Task) -> torch.Tensor:
    """Cosines with the mean of the unit embeddings of each class's prompts, as CLIP ensembles prompts."""
    units = F.normalize(task.text_features, dim=-1)
    means = sum_by_class(units, task.prompt_class, int(task.prompt_class.max()) + 1)
    return pair_scores(means, task.image_features, distribution="deterministic").T


def methods(model: AsymVLMModel, tasks: dict[str, Task]) -> dict[str, tuple[dict[str, torch.Tensor], float | None]]:
    """Scores of both splits by method, and the prompt correlation where it was chosen."""
    classifiers = {name: ZeroShotClassifier.from_features(model, task.by_class()) for name, task in tasks.items()}

    def scores(**options: Any) -> dict[str, torch.Tensor]:
        return {
            name: classifiers[name]
            .with_options(**options)
            .predict(image_features=task.image_features)
            .log_likelihood.cpu()
            for name, task in tasks.items()
        }

    products = {correlation: scores(prompt_correlation=correlation) for correlation in CORRELATIONS}
    validation = tasks["validation"].labels
    chosen = min(products, key=lambda correlation: fitted_scale(products[correlation]["validation"], validation)[1])
    return {
        "mean direction": (scores(fusion="mean_direction"), None),
        "mean log-likelihood": (scores(fusion="mean_log_likelihood"), None),
        "plain product, correlation 0": (products[0.0], None),
        "product, correlation 1 (default)": (products[1.0], None),
        "product, correlation chosen": (products[chosen], chosen),
    }


@torch.no_grad()
def projection_error(model: AsymVLMModel, task: Task, num_classes: int = 100, num_samples: int = 4000) -> list[float]:
    """
    Means over some classes of KL(product ‖ projection) and of KL(product ‖ uniform) in nats, by importance sampling of
    the product from its projection.
    """
    generator = torch.Generator().manual_seed(0)
    divergences = []
    for features in list(task.by_class().values())[:num_classes]:
        classifier = ZeroShotClassifier.from_features(model, {"class": features})
        law = classifier.class_distribution.expand((1,))
        samples = law.sample((num_samples,), generator=generator)[:, 0]
        prompts = PowerSpherical.from_natural_parameter(classifier.prompt_embeds)
        temper = classifier.prompt_embeds.sum(0).norm() / law.concentration[0]
        log_ratio = prompts.log_prob(samples[:, None]).sum(1) / temper - law.log_prob(samples[:, None])[:, 0]
        log_weights = log_ratio - log_ratio.logsumexp(0)
        weights = log_weights.exp()
        from_projection = weights @ (log_weights + np.log(num_samples))
        excess = weights @ law.log_prob(samples[:, None])[:, 0] - uniform_log_density(law.dim)
        divergences.append([from_projection.item(), (from_projection + excess).item()])
    return np.mean(divergences, axis=0).tolist()


def report(title: str, laws: dict[str, list[AsymVLMModel]], tasks: list[dict[str, Task]]) -> None:
    """Prints the table of one kind of prompts, over seeds."""
    rows = []

    def add(name: str, runs: list[dict[str, float]]) -> None:
        shown = (("accuracy", 3), ("nll", 3), ("ece", 3), ("own", 3), ("correlation", 2))
        columns = [([run[key] for run in runs if key in run], digits) for key, digits in shown]
        rows.append([name, *(mean_and_deviation(values, digits) if values else "" for values, digits in columns)])

    def run(scores: dict[str, torch.Tensor], task: dict[str, Task]) -> dict[str, float]:
        scale, _ = fitted_scale(scores["validation"], task["validation"].labels)
        return judged(scores["test"], scale, task["test"].labels)

    add(
        "backbone, mean of embeddings", [run({n: backbone_scores(t) for n, t in task.items()}, task) for task in tasks]
    )
    for law, models in laws.items():
        by_method: dict[str, list[dict[str, float]]] = {}
        for model, task in zip(models, tasks, strict=True):
            for name, (scores, correlation) in methods(model, task).items():
                own = judged(scores["test"], model.logit_scale.item(), task["test"].labels)["nll"]
                figures = {**run(scores, task), "own": own}
                if correlation is not None:
                    figures["correlation"] = correlation
                by_method.setdefault(name, []).append(figures)
        for name, runs in by_method.items():
            add(f"{law}, {name}", runs)
    counts = f"{len(tasks[0]['test'].by_class())} classes, {len(tasks[0]['test'].labels)} images"
    print(f"\n{title}: {counts}\n")
    print_table(["method", "accuracy", "NLL", "ECE", "NLL, own tau", "correlation"], rows)


class ScenesPrompts:
    """Tasks on Scenes; features of every text are computed once."""

    def __init__(self, splits: dict[str, EmbeddingSplit]):
        self.splits = splits
        self.model = AsymVLMModel.from_vlm_pretrained(BACKBONE)
        self.processor = AutoProcessor.from_pretrained(BACKBONE)
        self.features: dict[str, torch.Tensor] = {}
        self.scenes = {}
        for name in JUDGED:
            data = datasets.Dataset.from_parquet(str(data_folder() / f"{name}.parquet"))
            self.scenes[name] = np.stack([np.array(data[attribute]) for attribute in ATTRIBUTES], axis=1)

    def tasks(self, seed: int, attributes: tuple[int, ...], draw: Callable) -> dict[str, Task]:
        """
        Classes are the combinations of values of the attributes; `draw` gives the prompts of one as pairs of a scene
        and of what is named, from a generator.
        """
        found = {}
        for name in JUDGED:
            random = np.random.default_rng([seed, JUDGED.index(name)])
            allowed = all_scenes()[held_out_scenes() == (name == "test")]
            classes = np.unique(allowed[:, attributes], axis=0)
            texts, owner = [], []
            for number, values in enumerate(classes):
                scene = np.zeros(len(ATTRIBUTES), dtype=int)
                scene[list(attributes)] = values
                own = [write_caption(described, named, random) for described, named in draw(random, scene, attributes)]
                texts += own
                owner += [number] * len(own)
            matches = (self.scenes[name][:, None, attributes] == classes).all(-1)
            images = self.splits[name].image_features[:]
            found[name] = Task(self.embed(texts), torch.tensor(owner), images, matches.argmax(axis=1))
        return found

    @torch.no_grad()
    def embed(self, texts: list[str]) -> torch.Tensor:
        new = sorted(set(texts) - self.features.keys())
        for start in range(0, len(new), 512):
            some = new[start : start + 512]
            inputs = self.processor(text=some, padding=True, return_tensors="pt")
            self.features.update(zip(some, self.model.backbone_text_features(**inputs), strict=True))
        return torch.stack([self.features[text] for text in texts])


def naming(random: np.random.Generator, attributes: tuple[int, ...], count: int) -> np.ndarray:
    """A random choice of so many of the attributes."""
    named = np.zeros(len(ATTRIBUTES), dtype=bool)
    named[random.permutation(attributes)[:count]] = True
    return named


def any_subsets(random, scene, attributes):
    """One to nine prompts, each naming none, some or all of the attributes, every number alike."""
    for _ in range(random.integers(1, 10)):
        yield scene, naming(random, attributes, random.integers(len(attributes) + 1))


def five_captions(random, scene, attributes):
    """Five captions as they are written for pictures."""
    for named in draw_named(random, 5):
        yield scene, named


def one_to_nine_captions(random, scene, attributes):
    for named in draw_named(random, random.integers(1, 10)):
        yield scene, named


def one_precise(random, scene, attributes):
    """One prompt that names everything and four that leave something out, or all."""
    yield scene, naming(random, attributes, len(attributes))
    for _ in range(4):
        yield scene, naming(random, attributes, random.integers(len(attributes)))


def wrong_details(random, scene, attributes):
    """Three prompts that name everything, each second one with a value drawn anew for one attribute."""
    for _ in range(3):
        described = scene.copy()
        if random.random() < 0.5:
            attribute = random.choice(attributes)
            described[attribute] = random.integers(NUM_VALUES[attribute])
        yield described, naming(random, attributes, len(attributes))


def captions_as_prompts(split: EmbeddingSplit, seed: int, kind: str) -> Task:
    """The images of a split as classes; `kind` is "all", "some" (one to all of them) or "wrong" (three in ten)."""
    random = np.random.default_rng(seed)
    features, owner = split.text_features[:], split.text_image_index
    if kind == "wrong":
        foreign = torch.from_numpy(random.random(len(owner)) < 0.3)
        features = torch.where(foreign[:, None], features[torch.from_numpy(random.permutation(len(owner)))], features)
    if kind == "some":
        order = torch.from_numpy(random.permutation(len(owner)))
        limit = torch.from_numpy(random.integers(1, 6, len(split.image_ids)))
        rank = torch.empty_like(owner)
        for image in range(len(split.image_ids)):
            own = order[owner[order] == image]
            rank[own] = torch.arange(len(own))
        kept = rank < limit[owner]
        features, owner = features[kept], owner[kept]
    return Task(features, owner, split.image_features[:], np.arange(len(split.image_ids)))


def halves(split: EmbeddingSplit, seed: int) -> dict[str, Task]:
    """Half of the images, drawn at random, as validation."""
    shuffled = np.random.default_rng(seed).permutation(len(split.image_ids))
    found = {}
    for name, images in zip(JUDGED, np.array_split(shuffled, 2), strict=True):
        place = torch.full((len(shuffled),), -1)
        place[torch.from_numpy(images)] = torch.arange(len(images))
        owner = place[split.text_image_index]
        rows = (owner >= 0).nonzero()[:, 0]
        pictures = split.image_features[torch.from_numpy(images)]
        found[name] = Task(split.text_features[rows], owner[rows], pictures, np.arange(len(images)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="folder of cached features")
    parser.add_argument("--hierarchy", type=Path, help="folder of cached features whose captions have levels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "outputs" / "scenes-embeddings")
    arguments = parser.parse_args()

    if arguments.embeddings is None:
        arguments.cache.parent.mkdir(parents=True, exist_ok=True)
        splits, (config, training) = scenes_features(arguments.cache)[0], EVERY_SPECIFICITY
    else:
        store = EmbeddingStore(arguments.embeddings)
        splits, (config, training) = {name: store.split(name) for name in SPLITS}, recipe("default")
    print(f"{len(splits['train'].captions)} training captions, {len(arguments.seeds)} seeds; {machine()}", flush=True)
    laws: dict[str, list[AsymVLMModel]] = {}
    for law in ("vmf", "power_spherical"):
        for seed in arguments.seeds:
            model, _ = train_head(splits, seed=seed, config={"distribution": law, **config}, training=training)
            laws.setdefault(law, []).append(model)
    if arguments.embeddings is None:
        prompts = ScenesPrompts(splits)
        for title, attributes, draw in (
            ("Colour and shape, 1 to 9 prompts that name any of both", (0, 2), any_subsets),
            ("Scenes, 5 captions each", ALL_ATTRIBUTES, five_captions),
            ("Scenes, 1 to 9 captions each", ALL_ATTRIBUTES, one_to_nine_captions),
            ("Scenes, one precise prompt and four vague ones", ALL_ATTRIBUTES, one_precise),
            ("Scenes, 3 precise prompts, half of them with a wrong detail", ALL_ATTRIBUTES, wrong_details),
        ):
            tasks = [prompts.tasks(seed, attributes, draw) for seed in arguments.seeds]
            report(title, laws, tasks)
            if draw is five_captions:
                error, whole = projection_error(laws["power_spherical"][0], tasks[0]["test"])
                print(
                    f"\nPower Spherical: KL(product ‖ projection) {error:.4f}, KL(product ‖ uniform) {whole:.4f} nats"
                )
        return
    for title, kind in (
        ("Images, all captions as prompts", "all"),
        ("Images, 1 to 5 captions as prompts", "some"),
        ("Images, three in ten captions taken from other images", "wrong"),
    ):
        tasks = [{name: captions_as_prompts(splits[name], seed, kind) for name in JUDGED} for seed in arguments.seeds]
        report(title, laws, tasks)
    if arguments.hierarchy is not None:
        hierarchy = EmbeddingStore(arguments.hierarchy).split("test")
        report(
            "Hierarchy, four captions from general to specific", laws, [halves(hierarchy, s) for s in arguments.seeds]
        )


if __name__ == "__main__":
    main()
