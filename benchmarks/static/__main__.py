"""The child process of :func:`benchmarks.static.loop_table.measure`: a request on stdin, the rows on stdout."""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from benchmarks.results import to_text
from benchmarks.static.compile import compile_for
from benchmarks.static.loop_cost import LoopCost, loop_costs
from benchmarks.static.specialisations import Specialisation, specialisations


def measured(spec: Specialisation, arch: str, max_registers: int | None) -> list[LoopCost]:
    try:
        return loop_costs(spec, arch, compile_for(spec, arch, max_registers))
    except Exception as error:
        raise RuntimeError(f"{spec.name}, for {arch}: {error}") from None


def main() -> None:
    request = json.load(sys.stdin)
    given = request["specialisations"] and [Specialisation(**fields) for fields in request["specialisations"]]
    work = [(spec, arch) for arch in request["architectures"] for spec in given or specialisations(arch)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(measured, spec, arch, request["max_registers"]) for spec, arch in work]
        print(to_text(LoopCost, {}, [row for future in futures for row in future.result()]))


if __name__ == "__main__":
    main()
