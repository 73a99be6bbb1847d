"""The figures of a comparison, from the figures of its runs. Curves are means over seeds."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.comparison.baselines.attempts import failed, lookup
from benchmarks.comparison.baselines.judging import FITTED_POSTERIOR, NUM_BINS
from benchmarks.comparison.tables import Runs, headlines
from modeling_asymvlm.reporting.plots import write_png


# Of Okabe and Ito, and of Tol: told apart under every common colour-vision deficiency, and by marker in grey.
COLOURS = "#000000 #E69F00 #CC79A7 #332288 #56B4E9 #999999 #0072B2 #D55E00 #009E73 #882255".split()
MARKERS = "ov^<>sDP*X"

MIN_COVERAGE = 1  # %, below which a risk is that of a few texts
CHANCE_STYLE = {"color": "0.5", "linestyle": ":", "linewidth": 1}


def draw(runs: Runs, labels: dict[str, str], columns: dict[str, np.ndarray], folder: Path, name: str) -> list[Path]:
    """
    Draws every figure that the runs allow.

    Args:
        runs: of as many methods as there are colours at most.
        labels: name of each method.
        columns: ambiguity or level of the test captions, where known.
        folder: where the PNG files go; each appears whole or not at all.
        name: of the store, for the titles.

    Returns:
        The files.
    """
    styles = {
        method: {"color": colour, "marker": marker, "label": labels[method]}
        for method, colour, marker in zip(runs, COLOURS, MARKERS, strict=False)
    }
    files = [
        _recall_by_level(runs, styles, folder / "recall_by_level.png", name),
        _risk_coverage(runs, styles, folder / "risk_coverage.png", name),
        _reliability(runs, styles, folder / "reliability.png", name),
    ]
    concentrations = {method: records[0]["concentration"] for method, records in runs.items() if _kappa(records)}
    for column in ("ambiguity", "level"):
        if column in columns and concentrations:
            file = folder / f"concentration_by_{column}.png"
            files.append(_concentration(concentrations, styles, columns[column], column, file, name))
    return files


def _kappa(records: list[dict[str, Any]]) -> bool:
    return "concentration" in records[0]


def _recall_by_level(runs: Runs, styles: dict[str, Any], file: Path, name: str) -> Path:
    figure, panels = _panels(2)
    conventions = {
        "text_to_image": "text → image, by the caption",
        "image_to_text_by_retrieved_caption": "image → text, by the retrieved caption",
    }
    level = np.arange(1, NUM_BINS + 1)
    for axes, (convention, title) in zip(panels, conventions.items(), strict=True):
        for method, records in runs.items():
            of_text = [record["text_alone"].get(record["headline"], {}).get(convention) for record in records]
            if all(of_text):
                recall = _mean([each["bin_recall"] for each in of_text])
                style = _named(styles[method], headlines(records))
                axes.plot(level, 100 * recall, linewidth=1.2, markersize=4, **style)
        axes.set(title=title, xlabel=f"uncertainty level ({NUM_BINS} bins of equal count, 1 = most certain)")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("R@1 (%)")
    return _finish(figure, panels, file, f"{name}: R@1 against the uncertainty of the text alone")


def _risk_coverage(runs: Runs, styles: dict[str, Any], file: Path, name: str) -> Path:
    figure, panels = _panels(2)
    for axes, role in zip(panels, ("the text alone", "given the gallery"), strict=True):
        for method, records in runs.items():
            alone = role == "the text alone"
            curves = [record["curves"].get(record["headline"] if alone else FITTED_POSTERIOR) for record in records]
            if all(curves):
                coverage = 100 * np.asarray(curves[0]["coverage"])
                risk = _mean([curve["risk"] for curve in curves])
                shown = coverage >= MIN_COVERAGE
                style = _named(styles[method], headlines(records) if alone else FITTED_POSTERIOR)
                axes.plot(coverage[shown], 100 * risk[shown], markevery=25, markersize=4, **style)
        axes.set(title=role, xlabel="coverage: share of the texts answered (%)")
    panels[0].set_ylabel("risk: share of wrong first results (%)")
    return _finish(figure, panels, file, f"{name}: risk and coverage, text → image")


def _reliability(runs: Runs, styles: dict[str, Any], file: Path, name: str) -> Path:
    figure, panels = _panels(2)
    for axes, (direction, title) in zip(
        panels, {"text_to_image": "text → image", "image_to_text": "image → text"}.items(), strict=True
    ):
        axes.axline((0, 0), slope=1, label="perfect calibration", **CHANCE_STYLE)
        for method, records in runs.items():
            bins = lookup(records[0], "given_gallery", FITTED_POSTERIOR, direction, "calibration")
            if bins is None or failed(bins):
                continue
            confidence, accuracy = 100 * np.asarray(bins["bin_confidence"]), 100 * np.asarray(bins["bin_accuracy"])
            axes.plot(confidence, accuracy, linewidth=1.2, markersize=4, **styles[method])
        axes.set(title=title, xlabel=f"posterior of the first result (%), {NUM_BINS} bins of equal count")
        axes.set_xlim(left=0)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("first results that are right (%)")
    return _finish(figure, panels, file, f"{name}: reliability of the posterior, scale fitted on validation, one seed")


def _concentration(
    concentrations: dict[str, list[float]],
    styles: dict[str, Any],
    values: np.ndarray,
    column: str,
    file: Path,
    name: str,
) -> Path:
    figure, panels = _panels(len(concentrations), share=False)
    groups = np.unique(values)
    for axes, (method, kappa) in zip(panels, concentrations.items(), strict=True):
        by_group = [np.asarray(kappa)[values == group] for group in groups]
        low, median, high = (np.array([np.quantile(each, share) for each in by_group]) for share in (0.05, 0.5, 0.95))
        axes.errorbar(
            groups,
            median,
            yerr=(median - low, high - median),
            color=styles[method]["color"],
            marker=styles[method]["marker"],
            markersize=4,
            linestyle="none",
            capsize=2,
        )
        axes.set(title=styles[method]["label"])
        axes.set_xlabel(
            "true ambiguity: ln(number of scenes)" if column == "ambiguity" else "level (0 = most general caption)"
        )
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("concentration κ: median, 5 % and 95 %")
    return _finish(figure, panels, file, f"{name}: concentration against specificity, one seed", legend=False)


def _named(style: dict[str, Any], uncertainty: str) -> dict[str, Any]:
    return {**style, "label": f"{style['label']}: {uncertainty}"}


def _mean(lists: list[list[float]]) -> np.ndarray:
    return np.mean(np.asarray(lists), axis=0)


def _panels(number: int, share: bool = True) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(4.8 * number, 5), 5.6 if share else 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, number, sharey=share, squeeze=False)[0])


def _finish(figure: Figure, panels: list[Axes], file: Path, title: str, legend: bool = True) -> Path:
    for axes in panels:
        axes.grid(alpha=0.3)
        if legend and axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize="small", frameon=False)
    figure.suptitle(title)
    return write_png(figure, file)
