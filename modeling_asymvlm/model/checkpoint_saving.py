"""Checkpoints: what `save_pretrained` and `push_to_hub` write, with the backbone or the head alone."""

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

from transformers.utils import CONFIG_NAME

from .backbone_code import is_remote_code, save_code
from .backbone_quantization import is_quantized
from .checkpoint_code import published, unchanged
from .checkpoint_digests import seal_weights
from .checkpoint_fingerprints import check_fingerprint
from .checkpoint_weights import BACKBONE_PREFIX, weight_files, with_prefix
from .frozen_backbone import FrozenBackboneMixin
from .offloading import stored_weights


if TYPE_CHECKING:  # as in frozen_backbone.py
    Mixed = FrozenBackboneMixin
else:
    Mixed = object


class CheckpointSavingMixin(Mixed):
    """Saving and uploading: with the backbone's weights where they are available nowhere else, or the head alone."""

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike, *, save_backbone: bool | None = None, **kwargs
    ) -> None:
        r"""
        Writes the configuration and `model.safetensors`, with or without the backbone's weights, and with a digest in
        its header that loading compares.

        Args:
            save_directory (`str` or `os.PathLike`): folder to write to; created if need be.
            save_backbone (`bool`, *optional*):
                Defaults to `config.save_backbone`, and where that is not set, to writing the backbone's weights unless
                they come from a Hub repository at a known commit. `False` needs `config.base_model_name_or_path`.
            kwargs: the other arguments of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: if a head-only checkpoint is asked for and the backbone has no known source, or a whole one
                while the backbone is quantised.
        """
        save_backbone = self._saves_backbone(save_backbone)
        if self.vlm is not None and not save_backbone and self.config.base_model_name_or_path is None:
            raise ValueError(
                "A head-only checkpoint must name its backbone, but base_model_name_or_path is not known: compose the "
                "model with from_vlm_pretrained and a repository or folder, or pass save_backbone=True."
            )
        if save_backbone and is_quantized(self.vlm):
            raise ValueError(
                "The backbone is quantised, and quantised weights are not written: pass save_backbone=False, which "
                "leaves the backbone to its repository, or save the model whole without quantization_config."
            )
        offloaded = any(parameter.is_meta for parameter in self.parameters())
        if offloaded and kwargs.get("state_dict") is None and not hasattr(self, "hf_device_map"):
            kwargs["state_dict"] = stored_weights(self)  # by accelerate alone, of which transformers does not know
        pushed = kwargs.get("push_to_hub", False)
        if self.vlm is not None and not save_backbone and not is_quantized(self.vlm):
            self._check_base(for_others=pushed)
        # transformers reads both while saving: which weights stay out of the file, and what config.json says of them.
        kept = self._keys_to_ignore_on_save
        try:
            self._keys_to_ignore_on_save = None
            if self.vlm is not None and not save_backbone:
                self._keys_to_ignore_on_save = list(with_prefix(BACKBONE_PREFIX, self.vlm.state_dict()))
            with unchanged(self.config), published(self.config) if pushed else nullcontext():
                self.config.save_backbone = save_backbone
                if save_backbone and self.config.base_model_revision is None:
                    self.config.base_model_name_or_path = None  # a folder of this machine means nothing elsewhere
                if self.vlm is not None and save_backbone and is_remote_code(self.vlm.config):
                    save_code(self.vlm, save_directory)
                super().save_pretrained(save_directory, **kwargs)
        finally:
            self._keys_to_ignore_on_save = kept
        if kwargs.get("is_main_process", True):
            mode = os.stat(os.path.join(save_directory, CONFIG_NAME)).st_mode & 0o777
            seal_weights(weight_files(save_directory, variant=kwargs.get("variant")), mode)

    def _saves_backbone(self, asked: bool | None = None) -> bool:
        if asked is None:
            asked = self.config.save_backbone
        return self.config.base_model_revision is None if asked is None else asked

    def _check_base(self, for_others: bool) -> None:
        """Raises `ValueError` if a head-only checkpoint would not give this model back, here or to others."""
        assert self.vlm is not None
        base = self.config.base_model_name_or_path
        if for_others and self.config.base_model_revision is None:
            raise ValueError(
                f"The checkpoint would hold the head alone, and its backbone {base!r} is not at a commit on the Hub, "
                "where others could find it: save it with save_backbone=True, or set config.save_backbone = True."
            )
        if self.config.backbone_fingerprint is not None:
            source, fixed_length = "The model's present backbone", self.config.fixed_text_length
            check_fingerprint(self.config.backbone_fingerprint, self.vlm, source, text_length=fixed_length)

    def push_to_hub(self, *args, **kwargs) -> str:  # type: ignore[override]
        """
        As in `PreTrainedModel`; the model's code goes along, so that the repository loads with
        `trust_remote_code=True` where this package is not installed. `python -m modeling_asymvlm publish` uploads
        a trained checkpoint with its processor and a model card as well.
        """
        if self.vlm is not None and not self._saves_backbone():
            self._check_base(for_others=True)
        with published(self.config):
            return super().push_to_hub(*args, **kwargs)
