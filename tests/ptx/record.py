"""What a launch did: every access to memory, how often each block ran, and what was found wrong."""

from dataclasses import dataclass, field

import numpy as np

from tests.ptx.findings import Finding


@dataclass
class Access:
    """What one instruction accessed at one time, per lane.

    Attributes:
        number: of the instruction.
        space: "global" or "shared".
        write: a store.
        width: bytes per lane.
        address: of each lane.
        warp: of each lane, counted through the grid.
        epoch: of each lane, the barriers that its CTA has passed.
    """

    number: int
    space: str
    write: bool
    width: int
    address: np.ndarray
    warp: np.ndarray
    epoch: np.ndarray


@dataclass
class Record:
    """What a launch did.

    Attributes:
        accesses: in the order of the emulation.
        findings: hazards; none in a sound launch.
        harmless: races whose outcome no stored value, address or branch depends on.
        warps_of_block: by block, how many warps ran it, each as often as it did.
    """

    accesses: list[Access] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    harmless: list[Finding] = field(default_factory=list)
    warps_of_block: dict[int, int] = field(default_factory=dict)
