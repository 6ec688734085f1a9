"""Import torchvision beside a torch that its compiled operators were not built for.

A CPU build of torch beside the registry's torchvision (a CUDA build) stops at `import torchvision` with
"operator torchvision::nms does not exist": its `_C.so` cannot be loaded, and a fake kernel is registered for
operators that only `_C.so` declares. Nothing here needs these operators, so their schemas are declared instead.
Where `_C.so` loads, declaring them again would be an error, and is not done.
"""

import importlib.util
from pathlib import Path

import torch

_declared = None  # the library must stay alive, or its schemas go with it


def import_torchvision():
    """Return the torchvision module, importable whichever builds of torch and torchvision are installed."""
    global _declared
    if _declared is None and not hasattr(torch.ops.torchvision, "nms") and not _operators_load():
        _declared = torch.library.Library("torchvision", "DEF")
        _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.define(
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
    return torchvision


def _operators_load() -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None:
        raise ModuleNotFoundError("torchvision is not installed: pip install -c constraints.txt torchvision")
    folder = Path(package.submodule_search_locations[0])
    libraries = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)
