"""The page: what stands where, and what happens when someone types, clicks or uploads."""

import random
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from .gallery import ALPHAS, MAX_CHARACTERS, Gallery
from .pictures import data_uri, uploaded_picture
from .rendering import captions_html, message, pictures_html, prompt_html


TITLE = "How much does a text leave open?"
PICTURES_SHOWN, CAPTIONS_SHOWN = 12, 8
DEFAULT_ALPHA = 0.1

# Fonts that are there already: nothing is fetched from anywhere.
THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)


class Answers:
    """
    What the page shows for what visitors do, as HTML; whatever is wrong with their input is said in its place.

    Args:
        gallery (`Gallery`): gives the answers.
    """

    def __init__(self, gallery: Gallery):
        self.gallery = gallery

    def prompt(self, text: str, alpha: float) -> tuple[str, str]:
        """The uncertainty of a prompt, and its pictures; in place of these nothing if the prompt is wrong."""
        try:
            reading = self.gallery.read(text)
        except ValueError as error:
            return message(str(error)), ""
        return prompt_html(reading, self.gallery.num_calibration), self.pictures(text, alpha)

    def pictures(self, text: str, alpha: float) -> str:
        """The pictures for a prompt."""
        try:
            found = self.gallery.find_pictures(text, alpha)
        except ValueError as error:
            return message(str(error))
        return pictures_html(found, self.gallery.pictures, PICTURES_SHOWN)

    def upload(self, content: bytes) -> str:
        """The captions for an uploaded file."""
        try:
            return self._captions(uploaded_picture(content))
        except ValueError as error:
            return message(str(error))

    def example(self) -> str:
        """The captions for a picture of the gallery, drawn at random."""
        image_id = random.choice(self.gallery.image_ids)
        try:
            return self._captions(self.gallery.pictures.open(image_id))
        except (KeyError, ValueError):
            return message(f"The picture {image_id!r} is missing or broken: try again.")

    def _captions(self, picture: Image.Image) -> str:
        return captions_html(data_uri(picture), self.gallery.find_captions(picture, CAPTIONS_SHOWN))


def build_page(gallery: Gallery) -> gr.Blocks:
    """The page over a gallery, answered already for its first prompt and one of its pictures."""
    answers = Answers(gallery)
    prompt_answer, pictures_answer = answers.prompt(gallery.first_prompt, DEFAULT_ALPHA)
    html = partial(gr.HTML, apply_default_css=False)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        html(_header(gallery))
        prompt = gr.Textbox(
            gallery.first_prompt, label="Prompt", lines=1, max_lines=4, max_length=MAX_CHARACTERS, elem_id="prompt"
        )
        reading = html(prompt_answer, elem_id="reading")
        html("<h2>Pictures for the prompt</h2>")
        alpha = gr.Radio(
            [(f"{alpha:g}", alpha) for alpha in ALPHAS],
            value=DEFAULT_ALPHA,
            label="α of the conformal set: share of sets that may miss the picture meant",
            elem_id="alpha",
        )
        found = html(pictures_answer, elem_id="pictures")
        html("<h2>Captions for a picture</h2>")
        with gr.Row(elem_id="choose"):
            upload = gr.UploadButton(
                "Upload a picture", type="binary", file_types=["image"], size="md", elem_id="upload"
            )
            example = gr.Button("Take one of the gallery", size="md", visible=len(gallery.pictures) > 0)
        captions = html(answers.example() if len(gallery.pictures) else "", elem_id="captions")

        # One at a time: tokenisers must not be used by two threads at once. While someone types, prompts that were
        # overtaken by newer ones are left out.
        shared: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "model", "concurrency_limit": 1}
        shared |= {"api_visibility": "private", "trigger_mode": "always_last"}
        # Not `input`, which does not tell of Backspace.
        prompt.change(answers.prompt, [prompt, alpha], [reading, found], **shared)
        alpha.change(answers.pictures, [prompt, alpha], found, **shared)
        upload.upload(answers.upload, upload, captions, **shared)
        example.click(answers.example, None, captions, **shared)
    return page


def _header(gallery: Gallery) -> str:
    return (
        f"<header><h1>{TITLE}</h1>{_missing(gallery)}"
        f"<p>To <b>{escape(gallery.name)}</b> a text is a distribution over pictures: the "
        "more it says, the more concentrated. Edit the prompt and watch 1/κ, the concentration that it learned, "
        "and what is known of its answers.</p></header>"
    )


def _missing(gallery: Gallery) -> str:
    """Why ids stand where pictures should; nothing where all are there."""
    found, total = len(gallery.pictures), len(gallery.image_ids)
    if found == total:
        return ""
    if found:
        return message(f"{total - found:,} of {total:,} pictures are not in the data, and are shown by their ids.")
    return message(
        "No pictures are shown but their ids, since nothing says where the pictures are: start the page with "
        "--dataset, the pairs that the features were made from, or with --image_folder."
    )
