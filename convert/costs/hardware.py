"""Machines, as far as the arithmetic needs them."""

from __future__ import annotations

from dataclasses import dataclass

from sia_local.errors import ConfigError


@dataclass(frozen=True)
class Hardware:
    """What one machine, or one GPU, does.

    bandwidth: bytes of weights a second that a decode reads. decode: floating-point operations a second in decodes and
    prompts of quantized weights; train: in PyTorch. token: seconds of bookkeeping for each token that is sampled,
    junction: for each junction. memory: bytes, 0 where it is the user's to say. measured: fitted to runs of this
    repository; else taken from a data sheet, half of the bandwidth, a quarter of the operations in decodes, a third in
    training.
    """

    name: str
    bandwidth: float
    decode: float
    train: float
    token: float
    junction: float
    memory: float = 0.0
    measured: bool = False


def _gpu(name: str, gigabytes_a_second: float, teraflops: float, gigabytes: float) -> Hardware:
    """By its data sheet: memory bandwidth, dense bfloat16 operations, memory."""
    peak = teraflops * 1e12
    return Hardware(name, gigabytes_a_second * 5e8, peak / 4, peak / 3, 5e-5, 5e-5, gigabytes * 1e9)


HARDWARE = {
    h.name: h
    for h in (
        Hardware("2-cores", 2e10, 1.5e11, 8.5e10, 4e-4, 4e-4, measured=True),
        Hardware("2-cores-avx2", 1.2e10, 7e10, 5e10, 6e-4, 6e-4, measured=True),
        _gpu("rtx-4090", 1008, 165, 24),
        _gpu("a100-80", 2039, 312, 80),
        _gpu("h100", 3350, 989, 80),
        _gpu("h200", 4800, 989, 141),
    )
}


def hardware_of(name: str) -> Hardware:
    if name not in HARDWARE:
        raise ConfigError(f"hardware {name!r}: expected one of {', '.join(HARDWARE)}")
    return HARDWARE[name]
