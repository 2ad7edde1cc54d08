"""The device on which to compute, as the user names it."""

import torch

from toolkit.errors import ConfigError, first_line


def require_device(name: str) -> None:
    """Refuse a device that is not there, or that holds no numbers.

    Raises:
        ConfigError: there is no such device, or it cannot be used.
    """
    try:
        float(torch.ones(1, device=name).sum())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"the device {name!r} cannot be used ({first_line(error)}); use `--device cpu`"
        ) from None
