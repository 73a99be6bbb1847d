"""transformers' own common tests on AsymVLMModel, over four families of tiny random backbones.

    python -m benchmarks.common_tests [--families clip siglip blip vision-text-dual-encoder] [--archive FILE]

Downloads the source distribution of the installed transformers from PyPI into a temporary folder, which is removed at
the end; `--archive` takes one that is there already. Prints what passed, failed and was skipped, with the reason for
each skip, and ends with 1 if anything failed. Takes about five minutes on two cores.
"""

import argparse
import sys
import tempfile
import unittest
from collections import Counter, defaultdict
from pathlib import Path

import transformers

from .cases import FAMILIES, case_of
from .source import download, import_common_tests


class Tally(unittest.TestResult):
    """Counts passed tests too, and keeps the last line of every failure."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []
        self.failed: list[tuple[str, str]] = []

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed.append(test.id())

    def addFailure(self, test, error) -> None:
        self.failed.append((test.id(), self._exc_info_to_string(error, test)))

    addError = addFailure

    def addSubTest(self, test, subtest, error) -> None:
        if error is not None:
            self.addFailure(subtest, error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="of the backbones")
    parser.add_argument("--archive", type=Path, help="the source distribution of transformers, if it is here already")
    parser.add_argument("--tests", default="test_*", help="names of tests to run, with * and ?")
    parser.add_argument("--traceback", action="store_true", help="print failures whole, not their last lines alone")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        archive = arguments.archive or download(transformers.__version__, Path(folder))
        modeling, configuration = import_common_tests(archive, Path(folder))
        print(f"transformers {transformers.__version__}, {archive.name}")
        for family in arguments.families:
            loader = unittest.TestLoader()
            loader.testNamePatterns = [f"*.{arguments.tests}"]
            tally = Tally()
            loader.loadTestsFromTestCase(case_of(family, modeling, configuration)).run(tally)
            print(f"\n{family}: {len(tally.passed)} passed, {len(tally.failed)} failed, {len(tally.skipped)} skipped")
            for name, trace in tally.failed:
                print(
                    f"  FAILED {name.rpartition('.')[2]}: {trace if arguments.traceback else trace.splitlines()[-1]}"
                )
            by_reason = defaultdict(list)
            for test, reason in tally.skipped:
                by_reason[reason].append(test.id().rpartition(".")[2].removeprefix("test_"))
            for reason, names in sorted(by_reason.items()):
                stems = Counter(name.rpartition("_0")[0] or name for name in names)
                print(f"  skipped {len(names)}, {reason}: {', '.join(sorted(stems))}")
            failures += len(tally.failed)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
