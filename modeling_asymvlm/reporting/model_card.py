"""Model cards, made from measured results and an executed example only."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..model.backbone_code import needs_code
from ..model.configuration_asymvlm import AsymVLMConfig
from ..model.objective import Likelihood
from .results import with_nan
from .tables import NUM_BINS, format_table
from .usage_example import usage_example


PAPER = "https://arxiv.org/abs/2505.11029"

PIPELINE_TAG = "zero-shot-image-classification"

LAWS = {"vmf": "a von Mises–Fisher", "power_spherical": "a Power Spherical", "deterministic": "a deterministic"}
DIRECTIONS = {
    "learned": "learned",
    "refined": "that of the backbone, refined",
    "backbone": "that of the backbone",
}

# Files beside a card, and what it calls them.
PLOTS = {
    "reliability.png": "R@1 against uncertainty level",
    "risk_coverage.png": "Risk against coverage",
    "calibration.png": "Reliability diagram of the posterior",
}


def model_facts(config: AsymVLMConfig) -> dict[str, Any]:
    """What a card says of a model: the entry `model` of its results."""
    known_base = config.base_model_revision is not None  # a folder of some machine is no name for others
    return {
        "distribution": config.distribution,
        "mean_direction": config.mean_direction,
        "projection_dim": config.projection_dim,
        "takes_features": config.vlm_config is None,
        "base_model": config.base_model_name_or_path if known_base else None,
        "base_model_revision": config.base_model_revision,
        **({"backbone_code": True} if config.vlm_config is not None and needs_code(config.vlm_config) else {}),
    }


def model_card(
    results: dict[str, Any], *, model_name: str, location: str, published: bool = False, plots: Sequence[str] = ()
) -> str:
    """
    Model card with YAML metadata, as Markdown. What `results` does not hold is not claimed.

    Args:
        results (`dict`): as in `all_results.json`: `model` of [`model_facts`]; `test` of [`evaluate_split`],
            with `time`; if known `training`, with any of `dataset`, `dataset_id` (its name on the Hub),
            `num_images`, `num_captions`, `command`, `license` (of the weights, as the Hub names it) and, all or none,
            `steps`, `epochs`, `machine` and `time` (seconds of `features` and `training`); `evaluation`, with
            `dataset`, `dataset_id` and `command`, where the figures are of a later evaluation on its own;
            `example_texts` of [`choose_texts`]; and `example_output`, what [`usage_example`] printed.
        model_name (`str`): title of the card.
        location (`str`): repository or folder of the model, for the example.
        published (`bool`, *optional*, defaults to `False`): whether the model's code lies there too.
        plots (`Sequence[str]`, *optional*): which files of `PLOTS` lie beside the card.
    """
    facts, test, training = results["model"], with_nan(results["test"]), results.get("training", {})
    evaluation = results.get("evaluation", training)
    direction = DIRECTIONS[facts["mean_direction"]]
    sections = [
        f"# {model_name}",
        f"A probabilistic text head on a frozen vision–language model, after [AsymVLM]({PAPER}): a text is "
        f"{LAWS[facts['distribution']]} distribution on the unit hypersphere, an image a point. The mean direction is "
        f"{direction}.",
        *_backbone(facts),
        "## Use",
        *_use(results, location, published),
        *_warnings(results.get("warnings", [])),
        "## Test results",
        *_test_results(test, evaluation, plots),
        *_training(training),
        "## Intended use and limits",
        _limits(facts),
        "## Citation",
        f"Ju et al., *Exploiting the asymmetric uncertainty structure of pre-trained VLMs on the unit hypersphere*, "
        f"NeurIPS 2025, {PAPER}.",
    ]
    metadata = _metadata(facts, test, training, evaluation, model_name)
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(
    facts: dict[str, Any],
    test: dict[str, Any],
    training: dict[str, Any],
    evaluation: dict[str, Any],
    model_name: str,
) -> ModelCardData:
    dataset, dataset_id = evaluation.get("dataset"), evaluation.get("dataset_id")
    figures = [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Image-text retrieval",
            dataset_type=dataset_id or re.sub(r"[^\w.]+", "-", (dataset or "unnamed").lower()).strip("-"),
            dataset_name=dataset or "unnamed",
            dataset_split="test",
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 5),
        )
        for name, value in test["retrieval"].items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        license=training.get("license"),
        tags=["asymvlm", "uncertainty", "image-text-retrieval"],
        base_model=facts["base_model"],
        base_model_relation="adapter" if facts["base_model"] else None,
        datasets=[training["dataset_id"]] if training.get("dataset_id") else None,
        model_name=model_name,
        metrics=["recall"],
        eval_results=figures,
    )


def _backbone(facts: dict[str, Any]) -> list[str]:
    if facts["base_model"]:
        return [f"Backbone: `{facts['base_model']}` at commit `{facts['base_model_revision']}`, unchanged."]
    if facts["takes_features"]:
        return [f"The head alone: it takes the backbone's features, {facts['projection_dim']} wide."]
    return ["The backbone's weights are part of the checkpoint."]


def _use(results: dict[str, Any], location: str, published: bool) -> list[str]:
    example = usage_example(results["model"], location, texts=results.get("example_texts", ()), published=published)
    sections = [f"```python\n{example}```"]
    if "example_output" in results:
        sections.append(f"prints\n\n```\n{results['example_output'].rstrip()}\n```")
    if published:
        sections.append(
            "`trust_remote_code=True` runs the `.py` files of this repository: read them, and pass the commit that "
            "you read as `revision=`."
        )
    return sections


def _test_results(test: dict[str, Any], evaluation: dict[str, Any], plots: Sequence[str]) -> list[str]:
    source = f"{evaluation['dataset']}: " if evaluation.get("dataset") else ""
    sizes = f"{source}{test['num_images']} images, {test['num_captions']} captions."
    command = ""
    if "command" in evaluation:
        command = f" Every figure was measured by\n\n```bash\n{evaluation['command']}\n```"
    sections = [sizes + command, format_table(test)]
    if "uncertainty" in test:
        sections.append(
            f"S is the Spearman correlation between uncertainty level and R@1 in {NUM_BINS} equal-count bins, R² that "
            "of their straight-line fit. Queries are binned by the caption (text -> image) and by the retrieved "
            "caption (image -> text)."
        )
    if "posterior" in test:
        sections.append(
            "1/kappa says how ambiguous a text is, without a gallery; the posterior, the largest softmax(tau · "
            "log-likelihood) over this gallery, whether this first result is right. AUROC: how often a wrong first "
            "result is the less certain of a wrong and a right one. AURC: share of wrong first results, averaged over "
            "all shares of queries that are answered, most certain first. ECE: mean difference between stated "
            "probability and R@1 in equal-count bins; several captions of an image share its posterior. NLL: of the "
            "right answer under the posterior. In square brackets, 95 % bootstrap intervals, "
            f"{test['intervals']['num_resamples']} resamples of the images."
        )
    return sections + [f"![{PLOTS[name]}]({name})" for name in plots]


def _warnings(sentences: Sequence[str]) -> list[str]:
    return ["## Warnings", "\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []


def _training(training: dict[str, Any]) -> list[str]:
    sentences = []
    if "num_captions" in training:
        sentences.append(
            f"Data: the training split of {training['dataset']}, {training['num_images']} images with "
            f"{training['num_captions']} captions. Only the head was trained; the backbone is frozen."
        )
    if "steps" in training:
        seconds = training["time"]
        sentences.append(
            f"Cost: {training['steps']} steps ({training['epochs']:g} epochs), {seconds['training']:.0f} s, after "
            f"{seconds['features']:.0f} s for the backbone's features, on {training['machine']}."
        )
    return ["## Training", " ".join(sentences)] if sentences else []


def _limits(facts: dict[str, Any]) -> str:
    if not Likelihood(facts["distribution"]).has_concentration:
        return "Retrieval and zero-shot classification. This head gives a point for each text and no uncertainty."
    return (
        "Retrieval, zero-shot classification, and ordering texts by how specific they are. 1/kappa says how "
        "unspecific a text is, compared with other texts of this model; it does not say whether a gallery holds a "
        "match, nor does the posterior, which takes for granted that it does. kappa is ordinal: it is neither "
        "calibrated nor comparable between models. Texts unlike the training captions, in language, length or topic, "
        "get an uncertainty that nothing has tested."
    )


def write_model_card(path: str | Path, content: str) -> None:
    """Saves a card after checking that its metadata parse."""
    ModelCard(content).save(path)
