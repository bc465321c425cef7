"""Which device the networks run on, and why. Knows nothing of the networks."""

from __future__ import annotations

from utils.errors import BadSettings


def get_device(wanted: str = "auto") -> str:
    """The torch device to use: ``pick_device`` without its reason.

    Raises:
        BadSettings: as ``pick_device``.
    """
    return pick_device(wanted)[0]


def pick_device(wanted: str) -> tuple[str, str]:
    """Turn a setting into a torch device that exists here.

    Args:
        wanted: "auto", "cpu", "mps", "cuda" or "cuda:<n>".

    Returns:
        The device and the reason in words, to be logged: ``device=cuda:0 (auto: 1 GPU, 139 GiB)``.

    Raises:
        BadSettings: not such a name, or this machine does not have it.
    """
    try:
        import torch
    except ImportError as error:
        if wanted in ("auto", "cpu"):
            return "cpu", "PyTorch is not installed"
        raise BadSettings(f"IMGV_DEVICE: {wanted!r} needs PyTorch: pip install -r requirements.txt") from error

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        if gpus:
            gib = torch.cuda.get_device_properties(0).total_memory // 2**30
            return "cuda:0", f"auto: {gpus} GPU{'s' if gpus > 1 else ''}, {gib} GiB"
        return ("mps", "auto: Apple GPU") if torch.backends.mps.is_available() else ("cpu", "auto: no GPU")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise BadSettings(f"IMGV_DEVICE: {wanted!r} is not one of auto, cpu, cuda, cuda:<n>, mps")
    if device.type == "cuda":
        index = device.index or 0
        if index >= gpus:
            raise BadSettings(
                f"IMGV_DEVICE: {wanted!r} was asked for, but torch sees {gpus} GPUs here; use auto or cpu"
            )
        return f"cuda:{index}", "as set"
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadSettings("IMGV_DEVICE: 'mps' was asked for, but torch sees no Apple GPU here; use auto or cpu")
    return device.type, "as set"
