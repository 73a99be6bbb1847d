"""Throughput of the samplers beside public ones, and the cost of the normalisers beside the reference expression.

    python -m benchmarks.distributions [--threads 1] [--repeats 7] [--device cpu]

Every figure is a ratio of medians of interleaved repeats in this one run: time of the alternative over ours for the
samplers (above 1, ours is faster), time of ours over the reference for the normalisers (bound: 2). The public samplers
are `power_spherical` (PyPI, De Cao & Aziz) and `scipy.stats.vonmises_fisher`; what is not installed is named.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from modeling_asymvlm.model.distributions import PowerSpherical, VonMisesFisher
from modeling_asymvlm.model.log_normalizers import power_spherical_log_normalizer, vmf_log_normalizer


NUM_CONCENTRATIONS, NORMALIZER_DIM, ALLOWED_RATIO = 65_536, 512, 2.0
SAMPLER_CASES = tuple((dim, kappa) for dim in (3, 8, 512) for kappa in (1.0, 100.0, 1e4))


def medians(tasks: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each task; the tasks take turns, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def reference(kappa: torch.Tensor, dim: int) -> torch.Tensor:
    """F_d as published with AsymVLM (Ju et al. 2025)."""
    b = (dim - 1) / 2
    roots = [torch.sqrt(a**2 + kappa**2) for a in (b, b + 1)]
    return sum(b * torch.log(b + root) - root for root in roots) / 2


def compare_normalizers(repeats: int, device: torch.device) -> bool:
    kept = True
    print(
        f"\nNormaliser, forward and backward, n = {NUM_CONCENTRATIONS}, d = {NORMALIZER_DIM}: time over that of F_d\n"
    )
    print("| dtype | von Mises-Fisher | Power Spherical | within 2 |\n|---|---:|---:|---|")
    functions = {"reference": reference, "vmf": vmf_log_normalizer, "power_spherical": power_spherical_log_normalizer}
    for dtype in (torch.float32, torch.float64):
        kappa = (100 * torch.rand(NUM_CONCENTRATIONS, device=device, dtype=dtype)).requires_grad_()

        def task(function, kappa=kappa):
            return lambda: torch.autograd.grad(function(kappa, NORMALIZER_DIM).sum(), kappa)

        times = medians({name: task(function) for name, function in functions.items()}, 5 * repeats, device)
        ratios = [times[name] / times["reference"] for name in ("vmf", "power_spherical")]
        # The bound is stated for float32, in which models compute.
        within = max(ratios) <= ALLOWED_RATIO
        kept &= within or dtype == torch.float64
        print(f"| {str(dtype)[6:]} | {ratios[0]:.2f} | {ratios[1]:.2f} | {'yes' if within else 'no'} |")
    return kept


def compare_samplers(repeats: int, device: torch.device) -> None:
    installed = {name: importlib.util.find_spec(name) is not None for name in ("power_spherical", "scipy")}
    for name, found in installed.items():
        if not found:
            print(f"{name} is not installed: its column is empty. Install it with pip install {name}.")
    if device.type != "cpu":
        print("scipy samples on the CPU: its column is empty.")
    print("\nSamplers, float32: time of the alternative over ours\n")
    print("| d | kappa | n | power_spherical / ours | scipy.stats.vonmises_fisher / ours | ours: vMF / PS |")
    print("|---:|---:|---:|---:|---:|---:|")
    for dim, kappa in SAMPLER_CASES:
        n = min(100_000, 4_000_000 // dim)
        loc = F.normalize(torch.randn(dim, device=device), dim=0)
        concentration = torch.tensor(kappa, device=device)
        vmf, power_spherical = VonMisesFisher(loc, concentration), PowerSpherical(loc, concentration)
        tasks: dict[str, Callable[[], object]] = {
            "vmf": lambda law=vmf, n=n: law.sample((n,)),
            "power_spherical": lambda law=power_spherical, n=n: law.sample((n,)),
        }
        if installed["power_spherical"]:
            import power_spherical as peer

            other = peer.PowerSpherical(loc, concentration)
            tasks["peer"] = lambda law=other, n=n: law.sample((n,))
        if installed["scipy"] and device.type == "cpu":
            import scipy.stats

            frozen = scipy.stats.vonmises_fisher(F.normalize(loc.double(), dim=0).numpy(), kappa)
            tasks["scipy"] = lambda law=frozen, n=n: law.rvs(n)
        times = medians(tasks, repeats, device)
        peer_ratio = f"{times['peer'] / times['power_spherical']:.2f}" if "peer" in times else ""
        scipy_ratio = f"{times['scipy'] / times['vmf']:.2f}" if "scipy" in times else ""
        own_ratio = times["vmf"] / times["power_spherical"]
        print(f"| {dim} | {kappa:g} | {n} | {peer_ratio} | {scipy_ratio} | {own_ratio:.2f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--repeats", type=int, default=7, help="counted turns, at least 5")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    if arguments.repeats < 5:
        parser.error(f"--repeats must be at least 5 for a median, got {arguments.repeats}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, {arguments.repeats} repeats")
    kept = compare_normalizers(arguments.repeats, arguments.device)
    compare_samplers(arguments.repeats, arguments.device)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
