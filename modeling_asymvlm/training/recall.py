"""How often the first result is right among the pairs of a block, from the scores that an evaluation computes."""

import torch


TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image_recall_at_1", "image_to_text_recall_at_1"


class RecallsAtOne:
    """
    Recall at 1 both ways over blocks of pairs, each among the texts and images of its own block: of a set larger than
    a block it is higher than in the whole gallery.
    """

    def __init__(self) -> None:
        self.num_pairs = 0
        self.hits = {TEXT_TO_IMAGE: 0, IMAGE_TO_TEXT: 0}

    def add(self, scores: torch.Tensor, image_ids: torch.Tensor | None) -> None:
        """
        Adds a block.

        Args:
            scores (`torch.Tensor` of shape `(pairs, pairs)`): of each text with each image; row i belongs to column i.
            image_ids (`torch.Tensor` of shape `(pairs,)`, *optional*):
                Identity of each pair's image: that of another caption of the same image is right too.
        """
        ids = torch.arange(len(scores), device=scores.device) if image_ids is None else image_ids
        self.num_pairs += len(scores)
        self.hits[TEXT_TO_IMAGE] += int((ids[scores.argmax(dim=1)] == ids).sum())
        self.hits[IMAGE_TO_TEXT] += int((ids[scores.argmax(dim=0)] == ids).sum())

    def compute(self) -> dict[str, float]:
        """The recalls, in [0, 1], by name; nothing without pairs."""
        return {name: hits / self.num_pairs for name, hits in self.hits.items()} if self.num_pairs else {}
