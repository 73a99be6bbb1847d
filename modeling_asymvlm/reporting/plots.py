"""The pictures of an evaluation. Needs Matplotlib, which the extra `plots` installs."""

import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.extras import require


require(__name__, "matplotlib")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402


# Okabe and Ito's palette: told apart under every common colour-vision deficiency, and by marker in grey.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)
LINES = ("-", "--", "-.")
STATISTICS = ("spearman", "r_squared", "neg_spearman_r_squared")


def reliability_plot(
    bins: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """Draw R@1 against the uncertainty level, one panel for each direction of retrieval.

    Every panel shows R@1 in percent with binomial standard errors sqrt(p (1 - p) / n), the least-squares straight
    line, and S, R², -S·R², the number of bins and the queries in a bin. The panels share one vertical axis from 0.

    Args:
        bins: results of [`~evaluation.uncertainty_metrics`] by name, one to four, as
            [`~evaluation.retrieval_uncertainty_metrics`] returns them. The names become the panels' titles.
        path: PNG file to write. Missing folders are made. The file appears whole or not at all.
        title (`str`, *optional*): title of the picture.

    Returns:
        `path`.

    Raises:
        ValueError: if there are no panels or more than four, or `path` does not end in `.png`.
    """
    path = _png_path(path)
    if not 1 <= len(bins) <= 4:
        raise ValueError(f"`bins` has {len(bins)} entries; it must have 1 to 4, one for each panel.")
    figure = _new_figure(max(4.2 * len(bins), 5), 4.6, title)
    panels = figure.subplots(1, len(bins), sharey=True, squeeze=False)[0]
    for axes, (name, metrics), (color, marker) in zip(panels, bins.items(), STYLES, strict=False):
        _draw_panel(axes, name, metrics, color, marker)
    top = max(float(np.add(*_recall_percent(metrics)).max()) for metrics in bins.values())
    panels[0].set_ylim(-0.03 * max(top, 1), 1.08 * max(top, 1))  # so that no marker is cut, not even at 0
    panels[0].set_ylabel("R@1 (%)")
    return write_png(figure, path)


def _recall_percent(metrics: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    recall = np.asarray(metrics["bin_recall"])
    return 100 * recall, 100 * np.sqrt(recall * (1 - recall) / np.asarray(metrics["bin_count"]))


def _draw_panel(axes: Axes, name: str, metrics: Mapping[str, Any], color: str, marker: str) -> None:
    recall, standard_error = _recall_percent(metrics)
    level = np.arange(1, len(recall) + 1)
    fewest, most = min(metrics["bin_count"]), max(metrics["bin_count"])
    queries = f"{fewest}" if fewest == most else f"{fewest}–{most}"
    axes.errorbar(
        level,
        recall,
        yerr=standard_error,
        color=color,
        marker=marker,
        linestyle="none",
        capsize=3,
        label=f"R@1 ± standard error, {len(recall)} bins of {queries} queries",
    )
    axes.plot(
        level,
        np.polyval(np.polyfit(level, recall, 1), level),
        color=color,
        linestyle="--",
        label="least-squares straight line",
    )
    axes.set_title(_readable(name), fontsize="medium")
    axes.set_xlabel("uncertainty level (1 = most certain)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=2))
    axes.grid(alpha=0.3)
    spearman, r_squared, product = (_number(metrics[key]) for key in STATISTICS)
    axes.legend(
        title=f"S = {spearman},  R² = {r_squared},  −S·R² = {product}",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        fontsize="small",
        title_fontsize="small",
        frameon=False,
    )


def risk_coverage_plot(
    curves: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """Draw the share of wrong first results against the share of queries that are answered.

    Each curve is labelled with the area under it (AURC). Dots show the lowest curve that any order of the queries
    could give, once for all methods with the same share of right first results, in the colour of the first of them.

    Args:
        curves: results of [`~evaluation.risk_coverage_curve`] by name, one to seven. Lower is better.
        path: PNG file to write. Missing folders are made. The file appears whole or not at all.
        title (`str`, *optional*): title of the picture.

    Returns:
        `path`.

    Raises:
        ValueError: if there are no curves or more than seven, or `path` does not end in `.png`.
    """
    path = _png_path(path)
    _check_count("curves", curves)
    figure = _new_figure(6.4, 4.8, title)
    axes = figure.subplots()
    optima: list[np.ndarray] = []
    for place, (name, curve) in enumerate(curves.items()):
        color, marker = STYLES[place]
        coverage, risk = 100 * np.asarray(curve["coverage"]), 100 * np.asarray(curve["risk"])
        axes.plot(
            coverage,
            risk,
            color=color,
            linestyle=LINES[place % len(LINES)],
            marker=marker,
            markevery=max(1, len(risk) // 10),
            markersize=4,
            label=f"{_readable(name)}, AURC {curve['aurc']:.3f}",
        )
        optimal = 100 * np.asarray(curve["optimal_risk"])
        if not any(np.array_equal(optimal, other) for other in optima):
            optima.append(optimal)
            label = f"best possible order, AURC {curve['optimal_aurc']:.3f}"
            axes.plot(coverage, optimal, color=color, linestyle=":", label=label)
    counts = [curve["num_queries"] for curve in curves.values()]
    queries = str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    axes.set_xlabel(f"coverage: share of the {queries} queries answered, most certain first (%)")
    axes.set_ylabel("risk: share that is wrong (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _legend_below(axes)
    return write_png(figure, path)


def calibration_plot(
    bins: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """Draw the reliability diagram: how often first results are right against the probability that is stated.

    The area of a marker grows with the share of the queries in its bin, and bars are binomial standard errors. On the
    diagonal the stated number is a probability; below it, it is too high.

    Args:
        bins: results of [`~evaluation.calibration_metrics`] by name, one to seven.
        path: PNG file to write. Missing folders are made. The file appears whole or not at all.
        title (`str`, *optional*): title of the picture.

    Returns:
        `path`.

    Raises:
        ValueError: if there are no entries or more than seven, or `path` does not end in `.png`.
    """
    path = _png_path(path)
    _check_count("bins", bins)
    figure = _new_figure(5.6, 5.4, title)
    axes = figure.subplots()
    top = 1.0
    for (name, metrics), (color, marker) in zip(bins.items(), STYLES, strict=False):
        count, accuracy = np.asarray(metrics["bin_count"]), np.asarray(metrics["bin_accuracy"])
        stated = 100 * np.asarray(metrics["bin_confidence"])
        error = 100 * np.sqrt(accuracy * (1 - accuracy) / count)
        top = max(top, stated.max(), (100 * accuracy + error).max())
        axes.errorbar(stated, 100 * accuracy, yerr=error, color=color, linewidth=1, capsize=2)
        axes.scatter(
            stated,
            100 * accuracy,
            s=10 + 300 * count / count.sum(),
            color=color,
            marker=marker,
            alpha=0.75,
            label=f"{_readable(name)}, ECE {metrics['expected_calibration_error']:.3f}: {count.sum()} queries in "
            f"{len(count)} of {metrics['num_bins']} bins",
        )
    axes.set_xlabel("stated probability (%)")
    axes.set_ylabel("share that is right (%)")
    axes.plot([0, top], [0, top], color="0.5", linestyle=":", label="perfect calibration")
    axes.set_xlim(-0.04 * top, 1.04 * top)  # one scale on both axes, so that the diagonal is one
    axes.set_ylim(-0.04 * top, 1.04 * top)
    axes.grid(alpha=0.3)
    _legend_below(axes, markerscale=0.6)
    return write_png(figure, path)


def concentration_plot(
    concentrations: Mapping[str, Any],
    along: Any,
    path: str | os.PathLike[str],
    *,
    label: str,
    title: str | None = None,
    max_bins: int = 10,
) -> Path:
    """Draw the concentration of texts against how specific or ambiguous they are.

    Every point is the median of a bin, its bar the middle half of the texts. Where the horizontal values are few, such
    as levels of a hierarchy, each is a bin of its own; else bins hold equal numbers of texts.

    Args:
        concentrations: by name, one to seven, shape `(texts,)` each: kappa, on a logarithmic axis where all are
            positive and span more than a factor of ten.
        along (shape `(texts,)`): the horizontal value of each text.
        path: PNG file to write. Missing folders are made. The file appears whole or not at all.
        label (`str`): of the horizontal axis, with its unit, such as `"ambiguity: ln(number of scenes)"`.
        title (`str`, *optional*): title of the picture.
        max_bins (`int`, *optional*, defaults to 10): number of bins at most.

    Returns:
        `path`.

    Raises:
        ValueError: if there are no entries or more than seven, lengths differ, or `path` does not end in `.png`.
    """
    path = _png_path(path)
    _check_count("concentrations", concentrations)
    place = np.asarray(along, dtype=np.float64)
    values = {name: np.asarray(value, dtype=np.float64) for name, value in concentrations.items()}
    if place.ndim != 1 or not place.size or any(value.shape != place.shape for value in values.values()):
        shapes = {name: value.shape for name, value in values.items()}
        raise ValueError(
            f"`along` has shape {place.shape}, the concentrations {shapes}; give one value for each text."
        )
    different = np.unique(place)
    if len(different) <= max_bins:
        bins = [np.flatnonzero(place == value) for value in different]
    else:
        bins = np.array_split(np.argsort(place, kind="stable"), max_bins)
    figure = _new_figure(6.4, 4.6, title)
    axes = figure.subplots()
    center = np.array([place[members].mean() for members in bins])
    for (name, value), (color, marker) in zip(values.items(), STYLES, strict=False):
        low, middle, high = np.array([np.quantile(value[members], [0.25, 0.5, 0.75]) for members in bins]).T
        bars = [middle - low, high - middle]
        axes.errorbar(center, middle, yerr=bars, color=color, marker=marker, capsize=3, label=_readable(name))
    everything = np.concatenate(list(values.values()))
    if everything.min() > 0 and everything.max() > 10 * everything.min():
        axes.set_yscale("log")
    sizes = [len(members) for members in bins]
    texts = str(sizes[0]) if min(sizes) == max(sizes) else f"{min(sizes)}–{max(sizes)}"
    axes.set_xlabel(label)
    axes.set_ylabel("concentration κ (no unit)")
    axes.grid(alpha=0.3)
    _legend_below(axes, title=f"median and middle half of the texts, {len(bins)} bins of {texts}")
    return write_png(figure, path)


def _png_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` is {str(path)!r}; the picture is written as PNG, so the name must end in .png.")
    return path


def _check_count(name: str, entries: Mapping[str, Any]) -> None:
    if not 1 <= len(entries) <= len(STYLES):
        raise ValueError(f"`{name}` has {len(entries)} entries; it must have 1 to {len(STYLES)}, told apart by style.")


def _new_figure(width: float, height: float, title: str | None) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title is not None:
        figure.suptitle(title)
    return figure


def _readable(name: str) -> str:
    return name.replace("_to_", " → ").replace("_", " ")


def _legend_below(axes: Axes, **options: Any) -> None:
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        fontsize="small",
        title_fontsize="small",
        frameon=False,
        **options,
    )


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def write_png(figure: Figure, path: Path) -> Path:
    """Writes a picture, whole or not at all, and returns its path. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
