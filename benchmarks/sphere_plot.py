"""Draws `docs/sphere_samples.png`: samples of both laws on the sphere at three concentrations.

python -m benchmarks.sphere_plot docs/sphere_samples.png
"""

import sys

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from modeling_asymvlm.model.distributions import PowerSpherical, VonMisesFisher


CONCENTRATIONS = (2.0, 10.0, 100.0)
NUM_SAMPLES = 400


def main(path: str) -> None:
    generator = torch.Generator().manual_seed(0)
    towards_viewer = torch.tensor([0.6, -0.6, 0.55])
    loc = F.normalize(towards_viewer, dim=0)
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 5), subplot_kw={"projection": "3d"})
    for row, (law, title) in enumerate(((VonMisesFisher, "von Mises–Fisher"), (PowerSpherical, "Power Spherical"))):
        for axis, concentration in zip(axes[row], CONCENTRATIONS, strict=True):
            samples = law(loc, concentration).sample((NUM_SAMPLES,), generator=generator)
            hidden = samples @ loc < 0
            for part, colour in ((samples[hidden], "0.75"), (samples[~hidden], "tab:blue")):
                axis.scatter(*part.T.numpy(), s=3, color=colour, linewidths=0, depthshade=False)
            axis.set_title(f"{title}, κ = {concentration:g}", fontsize=9)
            axis.set_box_aspect((1, 1, 1))
            axis.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
            axis.view_init(elev=33, azim=-45)
            axis.set_axis_off()
            grid = torch.linspace(0, 2 * torch.pi, 100)
            for latitude in (-0.5, 0.0, 0.5):
                radius = (1 - latitude**2) ** 0.5
                axis.plot(radius * grid.cos(), radius * grid.sin(), latitude, color="0.85", linewidth=0.6, zorder=0)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.95, wspace=0, hspace=0.08)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.sphere_plot PATH.png")
    main(sys.argv[1])
