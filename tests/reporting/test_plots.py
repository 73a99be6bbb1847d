import os
import re
import struct
import zlib

import numpy as np
import pytest


matplotlib = pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402

from modeling_asymvlm.evaluation import (  # noqa: E402
    calibration_metrics,
    risk_coverage_curve,
    uncertainty_metrics,
)
from modeling_asymvlm.reporting.plots import calibration_plot, concentration_plot, reliability_plot, risk_coverage_plot  # noqa: E402


def metrics(seed=0, num_queries=503, num_bins=10):
    generator = np.random.default_rng(seed)
    uncertainty = generator.random(num_queries)
    return uncertainty_metrics(uncertainty, generator.random(num_queries) > uncertainty, num_bins=num_bins)


def read_png(path):
    """Width, height and decompressed pixels of a PNG, with the checksum of every chunk verified."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = [], 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        chunks.append((kind, body))
        position += 12 + length
    assert chunks[0][0] == b"IHDR" and chunks[-1][0] == b"IEND"
    width, height = struct.unpack(">II", chunks[0][1][:8])
    return width, height, zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, to ask them what they show."""
    figures = []
    savefig = Figure.savefig

    def record(figure, *args, **kwargs):
        figures.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


@pytest.mark.parametrize("num_panels", [1, 2, 4])
def test_a_whole_png_of_sensible_size_is_written(tmp_path, num_panels):
    path = tmp_path / "new" / "reliability.png"
    bins = {f"panel {panel}": metrics(panel) for panel in range(num_panels)}
    assert reliability_plot(bins, str(path), title="A title") == path
    width, height, pixels = read_png(path)
    assert 600 <= width <= 1000 * num_panels and 500 <= height <= 1000
    assert len(set(pixels)) > 20
    assert os.listdir(path.parent) == ["reliability.png"]


def test_panels_show_the_metrics(tmp_path, drawn):
    bins = {"text_to_image": metrics(0), "image_to_text_by_image": metrics(1, num_queries=100, num_bins=5)}
    reliability_plot(bins, tmp_path / "reliability.png", title="A title")
    (figure,) = drawn
    assert figure.get_suptitle() == "A title"
    assert [axes.get_title() for axes in figure.axes] == ["text → image", "image → text by image"]
    assert figure.axes[0].get_ylabel() == "R@1 (%)"
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    for axes, result in zip(figure.axes, bins.values(), strict=True):
        level = np.arange(1, result["num_bins"] + 1)
        points, bars = axes.containers[0].lines[0], axes.containers[0].lines[2][0]
        recall = np.array(result["bin_recall"])
        np.testing.assert_array_equal(points.get_xdata(), level)
        np.testing.assert_allclose(points.get_ydata(), 100 * recall)
        error = [100 * (p * (1 - p) / n) ** 0.5 for p, n in zip(recall, result["bin_count"], strict=True)]
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.stack([100 * recall - error, 100 * recall + error], axis=1))
        (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        slope = np.cov(level, 100 * recall, bias=True)[0, 1] / np.var(level)
        expected = 100 * recall.mean() + slope * (level - level.mean())
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-9)
        low, high = axes.get_ylim()
        assert low < 0 and high > ends.max()
        shown = re.findall(r"= (−?[\d.]+)", axes.get_legend().get_title().get_text())
        expected = [result[name] for name in ("spearman", "r_squared", "neg_spearman_r_squared")]
        assert [float(value.replace("−", "-")) for value in shown] == pytest.approx(expected, abs=0.005)
    legends = [axes.get_legend().get_texts()[1].get_text() for axes in figure.axes]
    assert legends == [
        "R@1 ± standard error, 10 bins of 50–51 queries",
        "R@1 ± standard error, 5 bins of 20 queries",
    ]


def test_panels_differ_in_colour_and_marker(tmp_path, drawn):
    reliability_plot({str(panel): metrics(panel) for panel in range(4)}, tmp_path / "reliability.png")
    points = [axes.containers[0].lines[0] for axes in drawn[0].axes]
    assert len({line.get_color() for line in points}) == len({line.get_marker() for line in points}) == 4


def test_undefined_statistics_are_named(tmp_path, drawn):
    flat = uncertainty_metrics(np.arange(20), np.zeros(20), num_bins=2)
    reliability_plot({"flat": flat}, tmp_path / "reliability.png")
    read_png(tmp_path / "reliability.png")
    assert drawn[0].axes[0].get_legend().get_title().get_text().count("undefined") == 3


def test_global_state_is_left_alone(tmp_path):
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    reliability_plot({"panel": metrics()}, tmp_path / "reliability.png")
    assert (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)) == before
    assert not _pylab_helpers.Gcf.figs


def test_failed_drawing_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "reliability.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="frac"):
        reliability_plot({"panel": metrics()}, path, title=r"$\frac{$")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["reliability.png"]


def test_failed_writing_leaves_no_file(tmp_path, monkeypatch):
    savefig = Figure.savefig

    def fill_the_disk(figure, *args, **kwargs):
        savefig(figure, *args, **kwargs)
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        reliability_plot({"panel": metrics()}, tmp_path / "reliability.png")
    assert os.listdir(tmp_path) == []


def test_failed_renaming_leaves_no_file(tmp_path):
    (tmp_path / "reliability.png").mkdir()
    with pytest.raises(OSError):
        reliability_plot({"panel": metrics()}, tmp_path / "reliability.png")
    assert os.listdir(tmp_path) == ["reliability.png"]


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`bins` has 0 entries; it must have 1 to 4"):
        reliability_plot({}, tmp_path / "reliability.png")
    with pytest.raises(ValueError, match="`bins` has 5 entries"):
        reliability_plot({str(panel): metrics() for panel in range(5)}, tmp_path / "reliability.png")
    with pytest.raises(ValueError, match=r"reliability\.pdf.* must end in \.png"):
        reliability_plot({"panel": metrics()}, tmp_path / "reliability.pdf")
    assert os.listdir(tmp_path) == []


def queries(seed=0, count=300):
    generator = np.random.default_rng(seed)
    confidence = generator.random(count)
    return confidence, generator.random(count) < confidence


def test_risk_coverage_shows_every_curve_its_area_and_the_best_order(tmp_path, drawn):
    confidence, correct = queries()
    curves = {
        "posterior, text_to_image": risk_coverage_curve(1 - confidence, correct, max_points=50),
        "chance": risk_coverage_curve(np.ones(300), correct, max_points=50),
        "other": risk_coverage_curve(1 - confidence, ~correct, max_points=50),
    }
    path = risk_coverage_plot(curves, tmp_path / "risk.png", title="A title")
    read_png(path)
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "coverage: share of the 300 queries answered, most certain first (%)"
    assert axes.get_ylabel() == "risk: share that is wrong (%)"
    labels = axes.get_legend_handles_labels()[1]
    assert [label.partition(",")[0] for label in labels] == [
        "posterior",
        "best possible order",  # shared by the first two, whose first results are the same
        "chance",
        "other",
        "best possible order",
    ]
    assert labels[0] == f"posterior, text → image, AURC {curves['posterior, text_to_image']['aurc']:.3f}"
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), 100 * curves["posterior, text_to_image"]["risk"])
    np.testing.assert_allclose(line.get_xdata(), 100 * curves["posterior, text_to_image"]["coverage"])


def test_calibration_shows_every_bin_its_queries_and_the_diagonal(tmp_path, drawn):
    confidence, correct = queries(1)
    bins = calibration_metrics(confidence / 2, correct, num_bins=8)
    read_png(
        calibration_plot({"text_to_image": bins, "b": calibration_metrics(confidence, correct)}, tmp_path / "c.png")
    )
    (axes,) = drawn[0].axes
    points = axes.collections[1]  # after the error bars of the first
    np.testing.assert_allclose(
        points.get_offsets(), 100 * np.column_stack([bins["bin_confidence"], bins["bin_accuracy"]])
    )
    labels = axes.get_legend_handles_labels()[1]
    assert "perfect calibration" in labels and axes.get_xlim() == axes.get_ylim()
    error = bins["expected_calibration_error"]
    assert labels[0] == f"text → image, ECE {error:.3f}: 300 queries in 4 of 8 bins"
    assert "(%)" in axes.get_xlabel() and "(%)" in axes.get_ylabel()


def test_concentration_shows_medians_by_level_or_by_bins(tmp_path, drawn):
    generator = np.random.default_rng(0)
    level = generator.integers(0, 4, size=200)
    concentration = np.exp(level + generator.normal(size=200))
    concentration_plot({"vMF": concentration}, level, tmp_path / "a.png", label="attributes named")
    concentration_plot(
        {"vMF": concentration / 1000 + 5}, generator.random(200), tmp_path / "b.png", label="x", max_bins=7
    )
    first, second = (figure.axes[0] for figure in drawn)
    medians = first.containers[0].lines[0]
    np.testing.assert_array_equal(medians.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_allclose(medians.get_ydata(), [np.median(concentration[level == value]) for value in range(4)])
    assert first.get_yscale() == "log" and second.get_yscale() == "linear"
    assert first.get_xlabel() == "attributes named" and first.get_ylabel() == "concentration κ (no unit)"
    assert "7 bins of 28–29" in second.get_legend().get_title().get_text()


def test_bad_arguments_of_the_other_plots_are_refused(tmp_path):
    for plot, name in ((risk_coverage_plot, "curves"), (calibration_plot, "bins")):
        with pytest.raises(ValueError, match=f"`{name}` has 0 entries; it must have 1 to 7"):
            plot({}, tmp_path / "a.png")
        with pytest.raises(ValueError, match=r"must end in \.png"):
            plot({"a": {}}, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="`concentrations` has 8 entries"):
        concentration_plot({str(place): [1.0] for place in range(8)}, [1.0], tmp_path / "a.png", label="x")
    with pytest.raises(ValueError, match=r"`along` has shape \(2,\)"):
        concentration_plot({"a": [1.0]}, [1.0, 2.0], tmp_path / "a.png", label="x")
    assert os.listdir(tmp_path) == []
