"""The device on which to compute, as the user names it."""

import torch

from toolkit.errors import ConfigError


def require_device(name: str) -> None:
    """Refuse a device that is not there, or that holds no numbers.

    Raises:
        ConfigError: the name is none of a device, or the device cannot be used.
    """
    try:
        float(torch.ones(1, device=name).sum())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"the device {name!r} cannot be used ({reason}); use `--device cpu`"
        ) from None
