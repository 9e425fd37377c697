"""Run many seeds, as in `python -m tests.simulation --seeds 10000`, or show one in detail."""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.simulation import edge, models
from tests.simulation.breakages import BREAKAGES, SOON, planted
from tests.simulation.demands import missing
from tests.simulation.run import Run

WITHIN: Final = 1000
"""Number of seeds within which the simulation must catch a breakage."""
_AT_ONCE: Final = 10
_FRESH: Final = 40
"""Number of parts after which a new process replaces the one that runs seeds."""
_SHOWN: Final = 5
real_time = time.perf_counter


@dataclass
class Result:
    """The result of one seed."""

    seed: int
    violations: list[str]
    met: Counter[str]
    digest: str


def run(seed: int, breakage: str | None = None, *, verbose: bool = False) -> Result:
    """Run one seed; `breakage` names a protection to break."""
    with planted(breakage):
        one = Run(seed)
        violations = one.run()
    if verbose:
        print("\n".join(one.trace))
    return Result(seed, violations, one.met, one.digest)


def prepare() -> None:
    """Replace time, chance and disk in this process, which must run nothing but simulations."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    edge.install()
    models.install()
    gc.disable()  # collection happens between the runs, never within one
    gc.freeze()


def part(seeds: range) -> list[Result]:
    """Run several seeds one after the other."""
    found = [run(seed) for seed in seeds]
    gc.collect()
    return found


def parts(first: int, count: int, processes: int) -> Iterator[Result]:
    """Run seeds on all cores; yield each result when it is there."""
    pieces = [
        range(start, min(start + _AT_ONCE, first + count))
        for start in range(first, first + count, _AT_ONCE)
    ]
    context = multiprocessing.get_context("fork")
    with context.Pool(processes, prepare, maxtasksperchild=_FRESH) as pool:
        for results in pool.imap_unordered(part, pieces):
            yield from results


def many(first: int, count: int, processes: int) -> int:
    """Run seeds and print their results; return the exit status."""
    begun, done, met, failed = real_time(), 0, Counter[str](), list[Result]()
    for result in parts(first, count, processes):
        done += 1
        met += result.met
        if result.violations:
            failed.append(result)
            tell(result)
            if len(failed) == _SHOWN:
                break
        if done % max(100, count // 20) == 0:
            rate = done / (real_time() - begun)
            print(f"{done} of {count} seeds, {rate:.1f} a second", file=sys.stderr, flush=True)
    seconds = real_time() - begun
    print(f"{done} seeds in {seconds:.0f} s, {done / seconds:.1f} a second, {len(failed)} failed")
    for name, number in sorted(met.items()):
        print(f"{number:10} {name}")
    lacking = missing(met, done)
    for name in lacking:
        print(f"never met, so nothing is shown of it: {name}")
    return 1 if failed or lacking else 0


def tell(result: Result) -> None:
    """Print the violations of a seed, and the command that repeats it."""
    print(f"seed {result.seed} fails:")
    for violation in result.violations[:_SHOWN]:
        print(f"    {violation}")
    print(f"    again, with all that happens: make simulate SEED={result.seed}", flush=True)


def one(seed: int) -> int:
    """Run one seed and print its whole trace; return the exit status."""
    prepare()
    result = run(seed, verbose=True)
    print(f"seed {seed}: {'fails' if result.violations else 'holds'}, trace {result.digest}")
    if result.violations:
        tell(result)
    return 1 if result.violations else 0


def breakages(names: list[str]) -> int:
    """Print for each breakage the first seed that catches it; return the exit status."""
    prepare()
    missed = 0
    for name in names:
        begun = real_time()
        for seed in range(first := SOON.get(name, 0), first + WITHIN):
            result = run(seed, name)
            if result.violations:
                took = real_time() - begun
                print(f"{name}: caught by seed {seed} after {took:.1f} s: {result.violations[0]}")
                break
        else:
            missed += 1
            print(f"{name}: NOT caught within {WITHIN} seeds")
        sys.stdout.flush()
        gc.collect()
    return 1 if missed else 0


def main() -> int:
    """Run the command line; return the exit status."""
    # The hash seed determines the order of sets of strings, so it is fixed for seeds to repeat.
    if os.environ.get("PYTHONHASHSEED") != "0":
        program = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, program, {**os.environ, "PYTHONHASHSEED": "0"})
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one, with all that happens in it")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--breakages", nargs="*", choices=BREAKAGES, help="plant these (all)")
    flags = parser.parse_args()
    if flags.breakages is not None:
        return breakages(flags.breakages or list(BREAKAGES))
    if flags.seed is not None:
        return one(flags.seed)
    return many(flags.first, flags.seeds, flags.processes)


if __name__ == "__main__":
    sys.exit(main())
