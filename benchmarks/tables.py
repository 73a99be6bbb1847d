"""Tables of LanceDB beside indexes in memory: bytes, rates, time of a query and share of proofs, on simulated texts.

    python -m benchmarks.tables [--sizes 10000 100000] [--queries 64]

Texts are those of `benchmarks.search`, d = 512, kappa in [5, 50]. Queries come eight at a time, without posteriors;
their time is the median, divided by eight. "same" is the share of queries with the ten labels of the index in memory.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import torch

from benchmarks.common import machine, print_table
from benchmarks.search import LAWS, K, build, simulate
from modeling_asymvlm.search.lance_index import lancedb


KAPPAS, DIM, TOGETHER, CHANGED = (5, 50), 512, 8, 1000


def measure(size: int, num_queries: int, law: str) -> list[str]:
    """A row of the table."""
    means, concentration, images = simulate(size, num_queries, DIM, KAPPAS, seed=0)
    index = build(law, means, concentration)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        table = index.to_lancedb(folder, "texts")
        rate = size / (time.perf_counter() - started)
        num_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        seconds: dict[str, list[float]] = {"table": [], "memory": []}
        proven = same = 0
        for some in images.split(TOGETHER):
            started = time.perf_counter()
            found = table.search(some, K)
            seconds["table"].append((time.perf_counter() - started) / len(some))
            started = time.perf_counter()
            expected = index.search(some, K, posterior=False)
            seconds["memory"].append((time.perf_counter() - started) / len(some))
            proven += int(found.proven.sum())
            same += sum(own == its for own, its in zip(found.labels, expected.labels, strict=True))
        started = time.perf_counter()
        table.upsert(concentration[:CHANGED] * means[:CHANGED], [str(row) for row in range(CHANGED)])
        upsert = time.perf_counter() - started
    times = [f"{1000 * statistics.median(each):.0f}" for each in seconds.values()]
    shares = [f"{number / num_queries:.2f}" for number in (proven, same)]
    return [str(size), LAWS[law], f"{num_bytes / size:.0f}", f"{rate:.0f}", f"{1000 * upsert:.0f}", *times, *shares]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch and FAISS; LanceDB has its own")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    print(f"{machine()}, lancedb {lancedb.__version__}, faiss {faiss.__version__}\n")
    rows = [measure(size, arguments.queries, law) for size in arguments.sizes for law in LAWS]
    header = ["texts", "law", "bytes a text", "texts a second", f"upsert {CHANGED}, ms"]
    print_table([*header, "query, ms", "in memory, ms", "proven", "same"], rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
