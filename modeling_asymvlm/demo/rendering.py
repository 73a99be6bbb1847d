"""Answers as HTML: every text that people or data brought is escaped, every picture is data in the page."""

import math
from html import escape

from ..calibration.typicality import UNLIKE
from ..texts.words import WordUncertainty
from .gallery import PictureSet, PromptConfidence, PromptReading, Ranking
from .pictures import Pictures


NOTHING_BELOW = 0.5  # a gallery with less presence than this is said to hold no match


def message(text: str) -> str:
    """What went wrong, in place of an answer."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def prompt_html(reading: PromptReading, num_captions: int) -> str:
    """What is known of a prompt, its uncertainty, and its words coloured by how much each lowers it."""
    text = reading.text
    words = [_word(word, text.uncertainty, rank) for word, rank in zip(text.words, reading.ranks_so_far, strict=True)]
    vaguer = f"{100 * (1 - reading.rank):.0f} %"
    return (
        f'<div class="reading">{_known(reading.confidence)}'
        '<div class="figure"><span class="label">1/κ, a learned concentration</span>'
        f'<output class="uncertainty">{number(text.uncertainty)}</output>'
        f'<span class="meter"><i style="width:{100 * reading.rank:.1f}%"></i></span>'
        f'<span class="note">more specific than {vaguer} of {num_captions:,} captions</span></div>'
        f'<ol class="words">{"".join(words)}</ol>'
        '<p class="note">Bars: share of captions that are more specific than the prompt up to the word. Colour and '
        'figure: the word <span class="key lowers">lowers</span> or <span class="key raises">raises</span> the '
        "uncertainty by so much, compared with the prompt without it.</p></div>"
    )


def _known(confidence: PromptConfidence | None) -> str:
    """Whether the prompt is like the captions first, then what it foretells; nothing without a calibration."""
    if confidence is None:
        return ""
    unlike = ""
    if confidence.typicality < UNLIKE:
        said = f"Unlike the training captions (p = {confidence.typicality:.2g}): the numbers below say little of it."
        unlike = f'<p class="message unlike" role="status">{said}</p>'
    if confidence.probability is None or confidence.interval is None:
        right = f"How often a first result for such a text is right is not known: {escape(str(confidence.reason))}."
    else:
        low, high = confidence.interval
        right = (
            f"A first result for such a text is right in about <b>{100 * confidence.probability:.0f} %</b> "
            f"({100 * low:.0f}–{100 * high:.0f} %), among {confidence.gallery_size:,} pictures that hold it."
        )
    fits = f"Fits about <b>{confidence.fits_about:,.0f}</b> of {confidence.num_reference_images:,} reference pictures."
    return f'{unlike}<p class="summary known">{right} {fits}</p>'


def _word(word: WordUncertainty, uncertainty: float, rank_so_far: float) -> str:
    change, percent = 0.0, ""
    if word.uncertainty_without is not None and math.isfinite(word.uncertainty_without):
        change = uncertainty / word.uncertainty_without - 1
        percent = f"{100 * change:+.0f} %".replace("-", "−").replace("+0", "0").replace("−0", "0")
    return (
        f'<li class="word {"raises" if change > 0 else "lowers"}" style="--strength:{min(1, 4 * abs(change)):.2f}">'
        f'<span class="so-far"><i style="height:{max(4, 100 * rank_so_far):.0f}%"></i></span>'
        f'<span class="chip">{escape(word.word)}</span><span class="change">{percent}</span></li>'
    )


def pictures_html(answer: PictureSet, pictures: Pictures, shown: int) -> str:
    """The most probable pictures with their posteriors, those of the conformal set marked."""
    ranking, total = answer.ranking, answer.ranking.total
    posterior = ranking.posterior[:shown]
    cards = []
    for place, (image_id, probability) in enumerate(zip(ranking.labels[:shown], posterior, strict=True)):
        state = "inside" if place < answer.size else "outside"
        cards.append(f'<li class="card {state}">{_picture(pictures, image_id)}{_bar(probability, posterior[0])}</li>')
    like = "prompts about as uncertain as this one" if answer.is_stratified else "prompts"
    promise = f"For at least {100 * (1 - answer.alpha):.0f} % of {like}, the set holds the picture meant."
    if answer.size:
        first = f"<b>{answer.size:,} of {total:,} pictures</b> are in the set"
        first += f", of which the first {shown} are shown" if answer.size > shown else ""
    else:
        first = "<b>No picture</b> is probable enough for the set"
    return (
        f'<div class="found">{_presence(ranking)}<p class="summary">{first}. {promise}</p>'
        f'<ol class="cards">{"".join(cards)}</ol>'
        f'<p class="note">Bars and figures: posterior among {total:,} pictures; the longest bar is the first '
        f"picture's. Sets are calibrated on {answer.num_calibration:,} held-out pictures.</p></div>"
    )


def _presence(ranking: Ranking) -> str:
    if ranking.presence is None:
        return ""
    there = f"that the picture meant is here, {100 * ranking.presence:.0f} %"
    if ranking.presence < NOTHING_BELOW:
        said = f"Nothing in this gallery seems to match (probability {there})."
        return f'<p class="message absent" role="status">{said}</p>'
    right = (
        "" if ranking.confidence is None else f"; that, if so, it is the first one, {100 * ranking.confidence:.0f} %"
    )
    return f'<p class="summary">Probability {there}{right}.</p>'


def captions_html(picture_uri: str, ranking: Ranking) -> str:
    """A picture and its most probable captions."""
    rows = [
        f'<li><span class="caption">{escape(caption)}</span>{_bar(probability, ranking.posterior[0])}'
        f'<span class="uncertainty">{number(uncertainty)}</span></li>'
        for caption, probability, uncertainty in zip(
            ranking.labels, ranking.posterior, ranking.uncertainty, strict=True
        )
    ]
    return (
        f'<div class="captioned"><img src="{picture_uri}" alt="The picture">'
        '<div><p class="heads"><span>Caption</span><span>Posterior</span><span>1/κ</span></p>'
        f'<ol class="captions">{"".join(rows)}</ol>'
        f'<p class="note">Ranked by log-likelihood among {ranking.total:,} captions: of those that fit, the '
        "specific come first.</p></div></div>"
    )


def number(value: float) -> str:
    """A figure with four decimals, or with two digits where most of these would be zero."""
    if not math.isfinite(value):
        return "∞"
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def _picture(pictures: Pictures, image_id: str) -> str:
    uri = pictures.data_uri(image_id)
    if uri is None:
        return f'<span class="tile">{escape(image_id)}</span>'
    return f'<img src="{uri}" alt="{escape(image_id)}" title="{escape(image_id)}">'


def _bar(probability: float, largest: float) -> str:
    percent = f"{100 * probability:.1f} %" if probability >= 5e-4 else "&lt; 0.1 %"
    width = 100 * probability / largest if largest > 0 else 0
    return f'<span class="bar"><i style="width:{width:.1f}%"></i></span><span class="percent">{percent}</span>'
