"""A checkpoint with its code, its processor and a model card, as one commit on the Hub."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers import CONFIG_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..model.checkpoint_code import AUTO_MAP, copy_code
from ..model.checkpoint_weights import shard_names
from ..model.configuration_asymvlm import AsymVLMConfig
from ..model.modeling_asymvlm import AsymVLMModel
from ..reporting.model_card import PLOTS, model_card, model_facts, write_model_card
from ..reporting.results import RESULTS_FILE, read_json, read_results, write_json, write_results
from ..reporting.run_files import CALIBRATION_FILE, TENSORS_FILE, check_run_files
from ..reporting.usage_example import run_example_isolated, usage_example


# Of a checkpoint's folder only these travel, beside the weights: never a cache of captions, a state of the optimiser
# or anything pickled.
VOCABULARY_NAMES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
SETTINGS_NAMES = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def check_publishable(folder: Path, repo_id: str) -> None:
    """
    Everything that can be known to be wrong before anything is loaded.

    Raises:
        ValueError: for a malformed `repo_id`, a folder that holds no checkpoint of ours or no measured results, and a
            head-only checkpoint whose backbone has no commit on the Hub.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = ""
    if repo_id.count("/") != 1:
        raise ValueError("repo_id= must be `organisation/name`, of letters, digits, `-`, `_` and `.`.")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}.")
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{str(folder)!r} is no checkpoint: it has no {CONFIG_NAME}.")
    config = read_json(folder / CONFIG_NAME)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != AsymVLMConfig.model_type:
        raise ValueError(f"{str(folder)!r} holds a model of type {model_type!r}, not 'asymvlm'.")
    vlm_config = config.get("vlm_config")
    if vlm_config is not None and vlm_config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"the backbone {vlm_config.get('model_type')!r} is no part of transformers, and publishing runs no code "
            "but AsymVLM's own: load the model with trust_remote_code=True and call its push_to_hub."
        )
    missing = [name for name in weight_files(folder) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{str(folder)!r} is incomplete: it has no {', '.join(missing)}.")
    if not (folder / RESULTS_FILE).is_file():
        raise ValueError(
            f"{str(folder)!r} has no {RESULTS_FILE}, and a card states measured figures only: train or evaluate with "
            "this folder as the output, which writes it."
        )
    head_only = config.get("vlm_config") is not None and config.get("save_backbone") is False
    if head_only and config.get("base_model_revision") is None:
        raise ValueError(
            f"the checkpoint holds the head alone, and its backbone {config.get('base_model_name_or_path')!r} is not "
            "at a commit on the Hub: load it and save it whole with save_pretrained(..., save_backbone=True)."
        )


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a checkpoint's weights, with their index if there are several."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file() or not index.is_file():
        return [SAFE_WEIGHTS_NAME]
    return [SAFE_WEIGHTS_INDEX_NAME, *shard_names(index)]


def prepare_upload(folder: Path, output: Path, repo_id: str, license: str | None = None) -> None:
    """
    Writes to `output` the files that a published checkpoint consists of, and nothing else: configuration and weights,
    processor, code, results and the card made from them. The example in the card is executed on these very files, in
    a process that cannot import this package, and the card shows what it printed.

    Args:
        folder (`Path`): of the checkpoint, as training leaves it; not changed.
        output (`Path`): an empty folder.
        repo_id (`str`): `organisation/name`.
        license (`str`, *optional*): of the weights, as the Hub names it; defaults to what the results say.

    Raises:
        ValueError: if the checkpoint is not to be published, with the reason and the remedy.
    """
    check_publishable(folder, repo_id)
    results = read_results(folder / RESULTS_FILE)
    try:
        model = AsymVLMModel.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{str(folder)!r} cannot be loaded: {error}") from error
    check_run_files(folder, model)
    for name in (*weight_files(folder), *VOCABULARY_NAMES, *PLOTS, CALIBRATION_FILE, TENSORS_FILE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)
    for name in (CONFIG_NAME, *SETTINGS_NAMES):
        if (folder / name).is_file():
            settings = _without_names_of_folders(read_json(folder / name))
            write_json(output / name, {**settings, "auto_map": AUTO_MAP} if name == CONFIG_NAME else settings)
    results.pop("broken_images", None)  # they are named by their paths
    write_results(output / RESULTS_FILE, results)
    check_no_local_path(output)
    copy_code(output)

    facts = model_facts(model.config)
    if license is not None:
        results["training"] = {**results.get("training", {}), "license": license}
    results["model"] = facts
    texts = results.get("example_texts", ())
    example = usage_example(facts, str(output.resolve()), texts=texts, published=True)
    results["example_output"] = run_example_isolated(example)
    write_results(output / RESULTS_FILE, results)
    plots = [name for name in PLOTS if (output / name).is_file()]
    try:
        card = model_card(results, model_name=repo_id.split("/")[1], location=repo_id, published=True, plots=plots)
    except KeyError as error:
        raise ValueError(f"{RESULTS_FILE} lacks {error}: make it anew by training or evaluating.") from error
    write_model_card(output / "README.md", card)
    check_no_local_path(output)


def _without_names_of_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the entries in which transformers notes where they were read from."""
    kept = {}
    for name, value in settings.items():
        if name not in ("name_or_path", "_name_or_path"):
            kept[name] = _without_names_of_folders(value) if isinstance(value, dict) else value
    return kept


def check_no_local_path(folder: Path) -> None:
    """Raises `ValueError` for a path of this machine in what is to be published."""
    for name in (CONFIG_NAME, *SETTINGS_NAMES, CALIBRATION_FILE, RESULTS_FILE, "README.md"):
        text = (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else ""
        for path in re.findall(r"""(?<![\w.:/<])(?:/|~/|[A-Za-z]:\\)[^\s"'`,;]+""", text):
            if os.path.exists(os.path.expanduser(path)) or len(re.split(r"[/\\]+\w", path)) > 2:
                raise ValueError(f"{name} names {path!r}, a path of a machine: take it out of the checkpoint.")


def upload(
    folder: Path, repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> str:
    """
    Uploads the files of a folder as one commit and returns its address: the repository shows all of them or none.

    Args:
        folder (`Path`): of [`prepare_upload`].
        repo_id (`str`): created if need be.
        private (`bool`, *optional*): whether a new repository is private; by default, as the organisation has it.
        revision (`str`, *optional*): branch to commit to, created if need be; the main one by default.
        token (`str`, *optional*): defaults to that of `hf auth login` or `HF_TOKEN`.

    Raises:
        ValueError: if `private` is asked of a repository that is public.
        OSError, HTTPError or RuntimeError: if the Hub cannot be reached, refuses, or the connection breaks.
    """
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise ValueError(f"the repository {repo_id!r} exists and is public: nothing was uploaded.")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in sorted(folder.iterdir())
    ]
    # Not upload_folder, which may split its files into several commits.
    commit = api.create_commit(
        repo_id, operations, commit_message=f"Publish {repo_id.split('/')[1]}", revision=revision
    )
    return str(commit.commit_url)


def explain(error: BaseException, repo_id: str) -> str:
    """One sentence on why an upload failed and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on: unset HF_HUB_OFFLINE to publish."
    if status == 401:
        return "the Hub does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN."
    if status == 403:
        return f"this token may not write to {repo_id!r} (403): use one with write access, or another repo_id=."
    if isinstance(error, ValueError) and status is None:
        return str(error)
    cause = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
    return f"the upload to {repo_id!r} did not finish ({cause}): no partial version is shown; run the command again."
