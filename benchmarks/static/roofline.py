"""The model that turns a loop's counts into a share of a GPU's bandwidth: no GPU is asked."""

from dataclasses import dataclass

ISSUE_SLOTS_PER_CLOCK = 4 * 32  # of one SM: four schedulers, each one instruction for 32 threads
EXP_PER_CLOCK = 16
"""Results of one SM's exp unit (MUFU): CUDA programming guide, throughput of native arithmetic instructions."""


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it, at the clock that it is assumed to hold."""

    name: str
    arch: str
    num_sms: int
    clock: float  # GHz
    data_sheet_bandwidth: float  # TB/s

    @property
    def bandwidth(self) -> float:
        """TB/s that a copy reaches: 90 % of the data sheet's, assumed from reports of an H200 (4.3 of 4.8)."""
        return 0.9 * self.data_sheet_bandwidth


DEVICES = (
    Device("A100", "sm_80", 108, 1.41, 2.04),
    Device("H100", "sm_90", 132, 1.70, 3.35),
    Device("H200", "sm_90", 132, 1.70, 4.8),
    Device("B200", "sm_100", 148, 1.85, 8.0),
)


@dataclass(frozen=True)
class Limits:
    """Of one SM (CUDA programming guide, compute capabilities); on gfx942 of one compute unit."""

    threads: int
    programs: int
    registers: int  # in four equal parts, each for a quarter of the warps
    register_step: int  # a warp's registers are a multiple of it
    shared: int  # bytes
    reserved_shared: int  # bytes of every program, for the system
    warp: int = 32  # threads


LIMITS = {
    "sm_80": Limits(2048, 32, 65536, 256, 164 * 1024, 1024),
    "sm_90": Limits(2048, 32, 65536, 256, 228 * 1024, 1024),
    "sm_100": Limits(2048, 32, 65536, 256, 228 * 1024, 1024),
    "gfx942": Limits(2048, 32, 4 * 512 * 64, 8 * 64, 64 * 1024, 0, warp=64),
}


def resident_programs(arch: str, num_warps: int, registers: int, shared: int) -> int:
    """Programs that one SM runs at a time."""
    limits = LIMITS[arch]
    step = limits.register_step
    registers_per_warp = -(-max(registers, 1) * limits.warp // step) * step
    warps = 4 * (limits.registers // 4 // registers_per_warp)
    return min(
        limits.programs,
        limits.threads // (num_warps * limits.warp),
        warps // num_warps,
        limits.shared // max(1, shared + limits.reserved_shared),
    )


@dataclass(frozen=True)
class Prediction:
    """Shares of one: of peak bandwidth that is reached, and of each unit that would be busy at peak bandwidth."""

    bandwidth: float
    issue: float
    exp_unit: float


LATENCY = 800  # Nanoseconds that a read from memory takes under load: assumed


def predict(
    device: Device, instructions: float, exp: float, memory_bytes: float, bytes_in_flight: int | None = None
) -> Prediction:
    """For a loop that spends so many instructions and exp operations, and moves so many bytes, per element.

    Args:
        bytes_in_flight: of reads, per SM; None for a loop that waits for no memory.
    """
    elements_per_clock = device.bandwidth * 1e3 / memory_bytes / device.clock / device.num_sms
    issue = instructions * elements_per_clock / ISSUE_SLOTS_PER_CLOCK
    exp_unit = exp * elements_per_clock / EXP_PER_CLOCK
    wanted = device.bandwidth * 1e3 / device.num_sms * LATENCY
    starved = 1.0 if bytes_in_flight is None else wanted / max(1, bytes_in_flight)
    return Prediction(round(1 / max(1.0, issue, exp_unit, starved), 3), round(issue, 3), round(exp_unit, 3))
