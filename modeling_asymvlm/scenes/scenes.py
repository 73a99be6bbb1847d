"""The world of scenes: pictures of one shape, captions that name some attributes, and how many scenes a caption fits.

A scene is a combination of five attributes (8 * 2 * 6 * 5 * 3 = 1,440 scenes). A caption names a random subset of the
attributes; which subset, and in which words, is drawn without looking at the scene. The number of scenes that a
caption fits is therefore known, and with it the true ambiguity of the text.
"""

import hashlib
import itertools

import numpy as np
from PIL import Image, ImageDraw


ATTRIBUTES = {
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "size": ("small", "large"),
    "shape": ("circle", "square", "triangle", "ring", "cross", "diamond"),
    "position": ("top left", "top right", "centre", "bottom left", "bottom right"),
    "background": ("dark", "grey", "light"),
}
NUM_VALUES = tuple(len(values) for values in ATTRIBUTES.values())

# Probabilities of a caption that names 0, 1, ..., 5 attributes.
NUM_NAMED_PROBABILITIES = (0.05, 0.10, 0.15, 0.22, 0.38, 0.10)

PICTURE_SIZE = 32
SUPERSAMPLING = 4
COLOURS = (
    (215, 40, 40),
    (240, 140, 30),
    (240, 225, 50),
    (40, 160, 60),
    (60, 205, 220),
    (50, 80, 215),
    (140, 55, 185),
    (245, 130, 190),
)
RADII = (5.0, 7.6)
# Corners of the patch grid of the tiny CLIP (8 pixels), so that a shape looks alike in its patches at every position.
CENTRES = ((8.0, 8.0), (24.0, 8.0), (16.0, 16.0), (8.0, 24.0), (24.0, 24.0))
BACKGROUNDS = (35.0, 125.0, 225.0)

OPENINGS = ("", "a picture of ", "an image of ", "a photo of ", "a drawing of ")
BARE_CAPTIONS = ("a picture", "an image", "a photo", "a drawing")
UNNAMED_SHAPES = ("shape", "object", "figure")
WORDS = {
    "colour": (
        ("red",),
        ("orange",),
        ("yellow",),
        ("green",),
        ("cyan", "turquoise"),
        ("blue",),
        ("purple", "violet"),
        ("pink",),
    ),
    "size": (("small", "little", "tiny"), ("large", "big")),
    "shape": (("circle", "disc"), ("square",), ("triangle",), ("ring",), ("cross", "plus"), ("diamond",)),
    "position": (
        ("at the top left", "in the top left corner", "in the upper left corner"),
        ("at the top right", "in the top right corner", "in the upper right corner"),
        ("in the centre", "in the middle"),
        ("at the bottom left", "in the bottom left corner", "in the lower left corner"),
        ("at the bottom right", "in the bottom right corner", "in the lower right corner"),
    ),
    "background": (
        ("on a dark background", "against a dark background"),
        ("on a grey background", "against a grey background", "on a gray background"),
        ("on a light background", "against a light background"),
    ),
}


def all_scenes() -> np.ndarray:
    """Every scene, an int64 array of shape (1440, 5): the index of each attribute's value, ordered as ATTRIBUTES."""
    return np.array(list(itertools.product(*(range(count) for count in NUM_VALUES))))


def held_out_scenes() -> np.ndarray:
    """Which rows of [`all_scenes`] belong to the test split: a boolean array of shape (1440,), half of it true.

    The scenes are visited in the order of a cryptographic hash and each goes to the half in which its pairs and
    triples of values are rarer, so both halves hold every pair and every triple of values about equally often.
    """
    scenes = all_scenes()
    order = sorted(range(len(scenes)), key=lambda row: hashlib.sha256(bytes(scenes[row].tolist())).digest())
    groups = [group for size in (2, 3) for group in itertools.combinations(range(len(NUM_VALUES)), size)]
    surplus = {group: np.zeros([NUM_VALUES[attribute] for attribute in group], dtype=int) for group in groups}
    held_out = np.zeros(len(scenes), dtype=bool)
    for first, second in zip(order[0::2], order[1::2], strict=True):
        # One scene of each two is held out, the one that leaves the smaller sum of squared surpluses.
        balance = sum(
            int(surplus[group][tuple(scenes[first][list(group)])] - surplus[group][tuple(scenes[second][list(group)])])
            for group in groups
        )
        chosen, other = (first, second) if balance <= 0 else (second, first)
        held_out[chosen] = True
        for group in groups:
            surplus[group][tuple(scenes[chosen][list(group)])] += 1
            surplus[group][tuple(scenes[other][list(group)])] -= 1
    return held_out


def ambiguity(named: np.ndarray) -> np.ndarray:
    """Natural logarithm of the number of scenes that a caption fits, in [0, ln 1440].

    Args:
        named: boolean array of shape (..., 5), true where the caption names the attribute.

    Returns:
        A float64 array of shape (...,).
    """
    return np.where(named, 0.0, np.log(NUM_VALUES)).sum(-1)


def draw_named(random: np.random.Generator, count: int) -> np.ndarray:
    """Draws which attributes each of `count` captions names: a boolean array of shape (count, 5)."""
    num_named = random.choice(len(NUM_NAMED_PROBABILITIES), size=count, p=NUM_NAMED_PROBABILITIES)
    ranks = random.random((count, len(NUM_VALUES))).argsort(axis=1)
    return ranks < num_named[:, None]


def write_caption(scene: np.ndarray, named: np.ndarray, random: np.random.Generator) -> str:
    """Words for the named attributes of a scene, for instance "a large blue circle at the top left".

    Args:
        scene: int array of shape (5,), as in [`all_scenes`].
        named: boolean array of shape (5,).
        random: chooses among paraphrases, never by the value of an attribute that is not named.
    """

    def choose(options: tuple[str, ...]) -> str:
        return options[int(random.integers(len(options)))]

    if not named.any() and random.random() < 0.5:
        return choose(BARE_CAPTIONS)
    words = {
        name: choose(WORDS[name][value])
        for name, value, is_named in zip(ATTRIBUTES, scene, named, strict=True)
        if is_named
    }
    noun_phrase = [words[name] for name in ("size", "colour") if name in words]
    noun_phrase.append(words["shape"] if "shape" in words else choose(UNNAMED_SHAPES))
    places = [words[name] for name in ("position", "background") if name in words]
    if random.random() < 0.5:
        places.reverse()
    article = "an" if noun_phrase[0][0] in "aeiou" else "a"
    return choose(OPENINGS) + " ".join([article, *noun_phrase, *places])


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*OPENINGS, *BARE_CAPTIONS, *UNNAMED_SHAPES, "a", "an"]
    phrases += [phrase for values in WORDS.values() for options in values for phrase in options]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _shape_mask(shape: str, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Coverage of each pixel by the shape, float32 of shape (32, 32) in [0, 1]."""
    canvas = Image.new("L", (PICTURE_SIZE * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(canvas)
    x, y, r = (SUPERSAMPLING * value for value in (*centre, radius))

    def box(half_width: float, half_height: float) -> tuple[float, float, float, float]:
        return (x - half_width, y - half_height, x + half_width, y + half_height)

    if shape == "circle":
        draw.ellipse(box(r, r), fill=255)
    elif shape == "square":
        draw.rectangle(box(0.85 * r, 0.85 * r), fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=255)
    elif shape == "ring":
        draw.ellipse(box(r, r), fill=255)
        draw.ellipse(box(0.55 * r, 0.55 * r), fill=0)
    elif shape == "cross":
        draw.rectangle(box(r, 0.32 * r), fill=255)
        draw.rectangle(box(0.32 * r, r), fill=255)
    elif shape == "diamond":
        draw.polygon([(x, y - r), (x + 0.7 * r, y), (x, y + r), (x - 0.7 * r, y)], fill=255)
    else:
        raise ValueError(f"shape is {shape!r}, but must be one of {ATTRIBUTES['shape']}")
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255.0


def render(scene: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A picture of a scene, uint8 of shape (32, 32, 3), with slight jitter of position, size, shade and every pixel.

    Args:
        scene: int array of shape (5,), as in [`all_scenes`].
        random: the source of the jitter.
    """
    colour, size, shape, position, background = (int(value) for value in scene)
    shift_x, shift_y = random.uniform(-1.0, 1.0, size=2)
    radius = RADII[size] * random.uniform(0.94, 1.06)
    foreground = np.asarray(COLOURS[colour], dtype=np.float32) * random.uniform(0.92, 1.08)
    level = BACKGROUNDS[background] + random.uniform(-12.0, 12.0)
    centre = (CENTRES[position][0] + shift_x, CENTRES[position][1] + shift_y)
    mask = _shape_mask(ATTRIBUTES["shape"][shape], centre, radius)[..., None]
    picture = mask * foreground + (1.0 - mask) * level
    picture += random.integers(-7, 8, size=picture.shape, dtype=np.int8)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
