"""Where and in which arithmetic a model trains, and random numbers that belong to a batch instead of to the process."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch

from fineprune.common.errors import UsageError

from .config import PrecisionName


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps. UsageError for an unknown or absent one, with those there are."""
    if isinstance(device, torch.device):
        device = str(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    count, mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    here = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count)), *(["mps"] if mps else [])]
    if device not in here:
        raise UsageError(f"no device {device!r} on this machine; there are auto, {', '.join(here)}")
    return torch.device(device)


def resolve_precision(precision: PrecisionName, device: torch.device) -> torch.dtype:
    """The arithmetic of the forward pass. UsageError for float16 off CUDA (it needs the gradient scaler's support there)."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if precision == "float16" and device.type != "cuda":
        raise UsageError(f"float16 training runs on CUDA only, not on {device}; use precision float32 or bfloat16")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision in `dtype`; nothing for float32."""
    return torch.autocast(device.type, dtype=dtype) if dtype != torch.float32 else contextlib.nullcontext()


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) for e.g. (run seed, "order", epoch): well mixed, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators that layers such as dropout draw from: the CPU's and that of `device`."""
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def private_randomness(device: torch.device) -> Iterator[None]:
    """The caller's global random states come back on leaving."""
    cpu = torch.get_rng_state()
    other = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if other is not None and device.type == "cuda":
            torch.cuda.set_rng_state(other, device)
        elif other is not None:
            torch.mps.set_rng_state(other)


@contextlib.contextmanager
def reproducible_kernels() -> Iterator[None]:
    """cuDNN chooses its algorithms by rule instead of by trial, so that equal runs give equal convolutions."""
    cudnn = torch.backends.cudnn  # not cudnn.flags: that would also overwrite the caller's TF32 choice
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
