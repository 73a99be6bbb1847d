"""The pictures of an evaluation. Needs Matplotlib, which the extra `plots` installs."""

import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


# Okabe and Ito's palette: told apart under every common colour-vision deficiency, and by marker in grey.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
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
    path = Path(path)
    if not 1 <= len(bins) <= len(STYLES):
        raise ValueError(f"`bins` has {len(bins)} entries; it must have 1 to {len(STYLES)}, one for each panel.")
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` is {str(path)!r}; the picture is written as PNG, so the name must end in .png.")
    figure = Figure(figsize=(max(4.2 * len(bins), 5), 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(bins), sharey=True, squeeze=False)[0]
    for axes, (name, metrics), (color, marker) in zip(panels, bins.items(), STYLES, strict=False):
        _draw_panel(axes, name, metrics, color, marker)
    top = max(float(np.add(*_recall_percent(metrics)).max()) for metrics in bins.values())
    panels[0].set_ylim(-0.03 * max(top, 1), 1.08 * max(top, 1))  # so that no marker is cut, not even at 0
    panels[0].set_ylabel("R@1 (%)")
    if title is not None:
        figure.suptitle(title)
    _write_png(figure, path)
    return path


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
    axes.set_title(name.replace("_to_", " → ").replace("_", " "), fontsize="medium")
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


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def _write_png(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
