"""A calibration on disk: `calibration.json`, which names the head and what each confidence is worth, and
`calibration.safetensors`, whose checksum it holds."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..model.checkpoint_fingerprints import head_fingerprint
from ..model.configuration_asymvlm import AsymVLMConfig
from ..model.modeling_asymvlm import AsymVLMModel
from ..utils.disk_errors import disk_errors_named
from ..utils.durable_files import SECONDS_TO_WAIT, write_file
from ..utils.json_files import read_record, write_record
from ..utils.locks import exclusive
from .checkpoint_files import checkpoint_file
from .confidences import CalibratedConfidence, MeasuredConfidence
from .corpus import ReferenceCorpus
from .evidence import EvidenceCorrection
from .presence import Presence
from .reference import UncertaintyReference
from .regression import LogisticRegression, RidgeRegression
from .text_probe import TextProbe
from .typicality import Typicality


CALIBRATION_FILE, TENSORS_FILE = "calibration.json", "calibration.safetensors"
LOCK_FILE = ".calibration.lock"
FORMAT = 1
SECONDS_BETWEEN_LOOKS = 0.05
LOOKS = 40
HEAD_PREFIX = "text_head."
HEAD_FIELDS = (
    "distribution",
    "mean_direction",
    "normalizer",
    "hidden_size",
    "num_hidden_layers",
    "hidden_act",
    "normalize_text_features",
    "initial_concentration",
    "projection_dim",
)
REMEDY = "Make it anew with Calibration.fit."


def write_calibration(calibration: Any, folder: Path) -> None:
    """
    Writes both files; the record comes last, and an old one goes before new tensors come. Who reads meanwhile waits.

    Raises:
        OSError: if the disk is full or refuses, or another process writes there for ten minutes.
    """
    content = tensor_file(calibration)
    record = _record(calibration, content)
    busy = f"Another process has been writing to {str(folder)!r} for ten minutes: wait for it or end it."
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / LOCK_FILE, busy, timeout=SECONDS_TO_WAIT):
            (folder / CALIBRATION_FILE).unlink(missing_ok=True)
            write_file(folder / TENSORS_FILE, content)
            write_record(folder / CALIBRATION_FILE, record, format=FORMAT)


def tensor_file(calibration: Any) -> bytes:
    """What `calibration.safetensors` holds."""
    tensors = {f"{HEAD_PREFIX}{name}": tensor for name, tensor in calibration.model.text_head.state_dict().items()}
    tensors |= {
        "corpus.text_embeds": calibration.corpus.text_embeds.half(),
        "corpus.image_embeds": calibration.corpus.image_embeds.half(),
        "corpus.text_image_index": calibration.corpus.text_image_index,
        "typical.mean": calibration.typical.mean,
        "typical.whitening": calibration.typical.whitening,
        "typical.distances": calibration.typical.distances,
        "of_text.rates": torch.from_numpy(calibration.of_text.rates),
        "of_result.rates": torch.from_numpy(calibration.of_result.rates),
    }
    tensors |= {f"{name}.weights": regression.weights for name, regression in _regressions(calibration).items()}
    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _regressions(calibration: Any) -> dict[str, RidgeRegression | LogisticRegression]:
    found = {
        "text_probe.of_features": calibration.text_probe.of_features,
        "text_probe.of_all": calibration.text_probe.of_all,
        "of_text": calibration.of_text.regression,
        "of_result": calibration.of_result.regression,
        "present.own_cosine": calibration.present.own_cosine,
        "present.regression": calibration.present.regression,
    }
    return {name: regression for name, regression in found.items() if regression is not None}


def _record(calibration: Any, content: bytes) -> dict[str, Any]:
    return {
        "head": calibration.head,
        "sha256": hashlib.sha256(content).hexdigest(),
        "head_fields": {name: getattr(calibration.model.config, name) for name in HEAD_FIELDS},
        "sigma": calibration.correction.sigma,
        "beta": calibration.correction.beta,
        "sharpening": calibration.correction.sharpening,
        "intercepts": {name: regression.intercept for name, regression in _regressions(calibration).items()},
        "backbone_scale": calibration.backbone_scale,
        "gallery_size": calibration.gallery_size,
        "reference_texts": len(calibration.corpus.text_embeds),
        "reference_images": len(calibration.corpus.image_embeds),
        "measured": {name: worth.to_dict() for name, worth in calibration.measured.items()},
        "reference": None if calibration.reference is None else calibration.reference.to_dict(),
    }


def read_calibration(name_or_path: str | os.PathLike, **hub_arguments: Any) -> dict[str, Any]:
    """
    The parts of a saved calibration, as its constructor takes them; arguments and errors as of
    [`Calibration.from_pretrained`].
    """
    for _ in range(LOOKS):
        try:
            return _read(name_or_path, **hub_arguments)
        except (FileNotFoundError, ValueError):
            if not (Path(name_or_path) / LOCK_FILE).exists():  # nobody is writing it
                break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return _read(name_or_path, **hub_arguments)


def _read(name_or_path: str | os.PathLike, **hub_arguments: Any) -> dict[str, Any]:
    file = checkpoint_file(name_or_path, CALIBRATION_FILE, **hub_arguments)
    record = read_record(file, format=FORMAT, remedy=REMEDY)
    try:
        content = checkpoint_file(name_or_path, TENSORS_FILE, **hub_arguments).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{file} is there without {TENSORS_FILE}. {REMEDY}") from error
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise ValueError(f"{TENSORS_FILE} beside {file} is damaged, or of another calibration. {REMEDY}")
    try:
        parts = _parts(record, load_tensors(content))
        damaged = head_fingerprint(parts["model"]) != record["head"]
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({error}). {REMEDY}") from error
    if damaged:
        raise ValueError(f"{file} names another head than {TENSORS_FILE} beside it holds. {REMEDY}")
    return parts


def _parts(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    intercepts, measured = record["intercepts"], record["measured"]
    model = AsymVLMModel(AsymVLMConfig(**record["head_fields"]))
    head = {name.removeprefix(HEAD_PREFIX): each for name, each in tensors.items() if name.startswith(HEAD_PREFIX)}
    model.text_head.load_state_dict(head)

    def ridge(name: str) -> RidgeRegression:
        return RidgeRegression(tensors[f"{name}.weights"], intercepts[name])

    def logistic(name: str) -> LogisticRegression:
        return LogisticRegression(tensors[f"{name}.weights"], intercepts[name])

    def worth(name: str) -> MeasuredConfidence | None:
        return MeasuredConfidence.from_dict(measured[name]) if name in measured else None

    def confidence(name: str, measured_as: str) -> CalibratedConfidence:
        return CalibratedConfidence(
            logistic(name), MeasuredConfidence.from_dict(measured[measured_as]), tensors[f"{name}.rates"].numpy()
        )

    return {
        "model": model.eval(),
        "corpus": ReferenceCorpus(
            tensors["corpus.text_embeds"].float(),
            tensors["corpus.image_embeds"].float(),
            tensors["corpus.text_image_index"],
        ),
        "correction": EvidenceCorrection(*(float(record[name]) for name in ("sigma", "beta", "sharpening"))),
        "typical": Typicality(*(tensors[f"typical.{name}"] for name in ("mean", "whitening", "distances"))),
        "text_probe": TextProbe(
            ridge("text_probe.of_features"), ridge("text_probe.of_all") if "text_probe.of_all" in intercepts else None
        ),
        "of_text": confidence("of_text", "text_confidence"),
        "of_result": confidence("of_result", "confidence"),
        "present": Presence(ridge("present.own_cosine"), logistic("present.regression")),
        "of_presence": MeasuredConfidence.from_dict(measured["presence"]),
        "reference": None if record["reference"] is None else UncertaintyReference.from_dict(record["reference"]),
        "concentration": worth("concentration"),
        "backbone_scale": float(record["backbone_scale"]),
        "gallery_size": int(record["gallery_size"]),
    }
