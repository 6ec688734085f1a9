"""tnlib: tensor network compressibility of convolutional models, as an executable paper.

The names in `__init__.pyi` are the public interface. Each is imported when it is first asked for, so that a command that
needs no torch does not wait for it. What notebooks use besides is in `tnlib.notebook`, which is not loaded here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
