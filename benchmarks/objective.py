"""Time and memory of the objective, value and gradients, against the plain loss and against its bare matrix products.

    python -m benchmarks.objective [--batches 2048 8192 32768] [--device cuda] [--precision high]

"plain" is the loss as it is usually written: the whole matrix of logits and two cross entropies, differentiated by
autograd. "products" are the three matrix products that any form needs, one forward and two backward; a form that
computes its logits again needs a fourth. Times are medians of interleaved runs; peak memory is that of a fresh process
for each form, beyond its inputs. The plain form is left out where its logits alone would take `--plain_limit` bytes.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.common import interleaved_medians, machine, peak_memory, print_table
from modeling_asymvlm.model.objective import pair_scores, unified_loss


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def make_inputs(batch: int, dim: int, device: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Natural parameters with concentrations of 5 to 50, images and a temperature, as leaves."""
    generator = torch.Generator().manual_seed(batch)
    directions = F.normalize(torch.randn(batch, dim, generator=generator), dim=-1)
    texts = directions * (5 + 45 * torch.rand(batch, 1, generator=generator))
    images = F.normalize(directions + 0.1 * torch.randn(batch, dim, generator=generator), dim=-1)
    return [tensor.to(device, dtype).requires_grad_() for tensor in (texts, images, torch.tensor(2.0))]


def plain_loss(distribution: str) -> Loss:
    """The objective with the whole matrix of logits, by autograd."""

    def loss(texts: torch.Tensor, images: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        logits = scale * pair_scores(texts, images, distribution=distribution)
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    return loss


def our_loss(distribution: str) -> Loss:
    """The package's objective with its own choice of tiles."""
    return lambda texts, images, scale: unified_loss(texts, images, scale, distribution=distribution)


FORMS = {"plain": plain_loss, "ours": our_loss}


def step(loss: Loss, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Value and gradients."""
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def products(inputs: list[torch.Tensor]) -> None:
    """One product forward and two backward."""
    texts, images = (tensor.detach() for tensor in inputs[:2])
    logits = images @ texts.T
    logits @ texts
    logits.T @ images


def largest_error(distribution: str, batch: int, dim: int, device: str) -> float:
    """Largest relative difference, in norm, of loss or gradients from the plain form in float64."""
    found = step(our_loss(distribution), make_inputs(batch, dim, device))
    exact = step(plain_loss(distribution), make_inputs(batch, dim, device, torch.float64))
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--distributions", nargs="+", default=["vmf", "power_spherical"])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="highest", help="of float32 products: highest, high or medium")
    parser.add_argument("--plain_limit", type=float, default=2**30, help="bytes of logits, else plain is left out")
    parser.add_argument("--memory_of", nargs=2, metavar=("FORM", "LAW"), help="measure one form, in this process")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision(arguments.precision)
    device, dim = arguments.device, arguments.dim

    if arguments.memory_of:
        form, law = arguments.memory_of
        inputs = make_inputs(arguments.batches[0], dim, device)
        step(FORMS[form](law), make_inputs(64, dim, device))  # loads what the libraries load once
        print(peak_memory(lambda: step(FORMS[form](law), inputs), device))
        return

    print(f"d = {dim}, {arguments.repeats} interleaved runs, {machine(device)}\n")
    rows = []
    for batch in arguments.batches:
        for law in arguments.distributions:
            inputs = make_inputs(batch, dim, device)
            forms = list(FORMS) if 4 * batch**2 <= arguments.plain_limit else ["ours"]
            runs: dict[str, Callable] = {"products": partial(products, inputs)}
            runs |= {form: partial(step, FORMS[form](law), inputs) for form in forms}
            seconds = interleaved_medians(runs, arguments.repeats, device)
            error = f"{largest_error(law, batch, dim, device):.0e}" if batch <= 2048 else ""
            for form in forms:
                command = [sys.executable, __file__, "--batches", str(batch), "--dim", str(dim), "--device", device]
                command += ["--precision", arguments.precision, "--memory_of", form, law]
                memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rows.append(
                    [
                        str(batch),
                        law,
                        form,
                        f"{1e3 * seconds[form]:.0f}",
                        f"{seconds[form] / seconds['products']:.2f}",
                        f"{seconds[form] / seconds['plain']:.2f}" if "plain" in seconds else "",
                        f"{int(memory) / 2**20:.0f}",
                        error if form == "ours" else "",
                    ]
                )
                print(f"done: {', '.join(rows[-1])}", flush=True)
    header = [
        "batch",
        "distribution",
        "form",
        "ms",
        "time / products",
        "time / plain",
        "peak MiB",
        "error against float64",
    ]
    print()
    print_table(header, rows)


if __name__ == "__main__":
    main()
