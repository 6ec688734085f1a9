"""What every function of `tnlib.tensors` asks of its arguments, with one message each."""

import numbers

import torch


SMALLEST, LARGEST = 1e-140, 1e140  # of float64 entries: norms are sums of their squares


def check_device(device: torch.device, name: str) -> None:
    """Raise `ValueError` for a device that is neither the CPU nor CUDA, or is not there: Apple's mps, for one, has no float64."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on the CPU or on CUDA, which have the float64 that is computed in, got the device {device}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name} cannot be on {device}: torch finds no such GPU on this machine")


def check_kernel(kernel, name: str = "kernel") -> torch.Tensor:
    """Return `kernel` if it is a finite floating tensor, on the CPU or CUDA, with four non-empty modes (OUT, IN, KH, KW), whose
    entries can be squared in float64."""
    if not isinstance(kernel, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor of shape (OUT, IN, KH, KW), got {type(kernel).__name__}")
    if not kernel.is_floating_point() or kernel.dtype.itemsize < 2:  # torch has no products of its 8-bit floats
        raise TypeError(f"{name} must be of a floating dtype, of 16 bits or more, got {kernel.dtype} with shape {tuple(kernel.shape)}")
    if kernel.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {kernel.layout} with shape {tuple(kernel.shape)}: take .to_dense()")
    if kernel.ndim != 4 or not kernel.numel():
        raise ValueError(f"{name} must have four non-empty modes (OUT, IN, KH, KW), got shape {tuple(kernel.shape)}")
    check_device(kernel.device, name)
    if not torch.isfinite(kernel).all():
        raise ValueError(f"{name} of shape {tuple(kernel.shape)} holds NaN or infinity")
    largest = kernel.detach().abs().max()
    if kernel.dtype == torch.float64 and largest > 0 and not SMALLEST <= largest <= LARGEST:
        raise ValueError(f"{name} has {largest.item():.3g} for its largest entry, and its squares leave the range of float64: divide it by that")
    return kernel


def check_image(image, channels: int | None = None, beside: torch.Tensor | None = None) -> torch.Tensor:
    """Return `image` if it is a dense floating tensor (N, C, H, W) on the CPU or CUDA, of so many channels, and of the dtype and on
    the device of a kernel `beside` it."""
    dtype = None if beside is None else beside.dtype
    wanted = f"the kernel's dtype {dtype}" if dtype else "a floating dtype"
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image must be a torch tensor of {wanted}, got {type(image).__name__}")
    if not image.is_floating_point() or dtype not in (None, image.dtype):
        raise TypeError(f"image must be of {wanted}, got {image.dtype} with shape {tuple(image.shape)}")
    if image.layout != torch.strided:
        raise TypeError(f"image must be a dense tensor, got one of layout {image.layout} with shape {tuple(image.shape)}: take .to_dense()")
    check_device(image.device, "image")
    if beside is not None and image.device != beside.device:
        raise ValueError(f"image must be on the kernel's device {beside.device}, got one on {image.device}")
    if image.ndim != 4 or channels not in (None, image.shape[1]):
        raise ValueError(f"image must have the shape (N, {channels or 'C'}, H, W), got {tuple(image.shape)}")
    return image


def check_rank(rank, max_rank: int, name: str = "rank") -> int:
    """Return `rank` if it is a whole number from 1 to `max_rank`."""
    if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
        raise TypeError(f"{name} must be a whole number from 1 to {max_rank}, got {rank!r}")
    if not 1 <= rank <= max_rank:
        raise ValueError(f"{name} must be from 1 to {max_rank}, got {rank}")
    return int(rank)


def check_length(ranks, names) -> None:
    """Raise `ValueError` where `ranks` are not as many as `names`, which says what each is of."""
    if not isinstance(ranks, (tuple, list)) or len(ranks) != len(names):
        raise ValueError(f"ranks must be {len(names)} whole numbers ({', '.join(names)}), got {ranks!r}")


def rank_name(position: int, what: str, kernel: torch.Tensor) -> str:
    """What a message calls one of several ranks."""
    return f"ranks[{position}] ({what} of a kernel {tuple(kernel.shape)})"


def check_count(value, name: str, least: int = 1) -> int:
    """Return `value` if it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def check_seed(seed) -> int:
    """Return `seed` if it is a whole number from 0 to 2³¹ − 1, which every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**31:
        raise ValueError(f"seed must be a whole number from 0 to {2**31 - 1}, got {seed!r}")
    return int(seed)


def pair(value, name: str, least: int = 0, otherwise: str = "") -> tuple[int, int]:
    """Return a number or a pair of numbers as a pair (vertical, horizontal). `otherwise`: what else is taken."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or any(isinstance(v, bool) or not isinstance(v, numbers.Integral) or v < least for v in both):
        raise ValueError(f"{name} must be a whole number of at least {least}, or a pair of them{otherwise}, "
                         f"got {value!r}")
    return int(both[0]), int(both[1])
