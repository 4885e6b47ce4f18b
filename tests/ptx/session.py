"""Tests on the kernels as compiled for a GPU, emulated; ``pytest --ptx 90`` runs those of a GPU alone, for sm_90.

A test fails if one of its launches has a finding, or an instruction that is not emulated, also where the test expects
an error.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from triton import knobs

from tests.ptx.driver import active
from tests.ptx.emulator import Emulator, Launch


class Session:
    """A plugin of one run of pytest.

    Args:
        arch: compute capability.
        alone: whether only the tests of the kernels run.

    Attributes:
        emulator: runs the kernels of all tests.
        launches: by kernel, of all processes.
    """

    def __init__(self, arch: int, alone: bool):
        self.alone = alone
        knobs.runtime.interpret = False
        self.launches: Counter[str] = Counter()
        self.emulator = Emulator(arch, on_launch=self._count)
        self._stack = ExitStack()
        self._stack.enter_context(active(self.emulator))

    def _count(self, launch: Launch) -> None:
        self.launches[launch.program.kernel.name] += 1

    def pytest_unconfigure(self) -> None:
        self._stack.close()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests of the emulated kernels and those that a GPU would run, without those of eager alone."""
        if not self.alone:
            return
        kept = [item for item in items if runs_kernels(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    @pytest.fixture(autouse=True)
    def nothing_is_found(self) -> Iterator[None]:
        self.emulator.findings.clear()
        yield
        found = dict.fromkeys(map(str, self.emulator.findings))
        if found:
            pytest.fail("\n".join(found), pytrace=False)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add up the launches of the processes."""
        self.launches.update(getattr(node, "workeroutput", {}).get("launches", {}))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Tell the process that waits for this one, if there is one, of the launches."""
        output = getattr(session.config, "workeroutput", {})
        output["launches"] = dict(self.launches)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        launches = ", ".join(f"{name} {count}" for name, count in sorted(self.launches.items()))
        terminalreporter.write_line(f"launches emulated for sm_{self.emulator.arch}: {launches or 'none'}")


def runs_kernels(item: pytest.Item) -> bool:
    call: Any = getattr(item, "callspec", None)
    if call is not None and call.params.get("impl") == "eager":
        return False
    return "emulator" in getattr(item, "fixturenames", ()) or item.get_closest_marker("gpu") is not None
