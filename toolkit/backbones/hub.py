"""Whether the Hugging Face hub can be reached, so that a machine without internet fails at once."""

import functools
import os
import socket
from urllib.parse import urlparse
from urllib.request import getproxies

from huggingface_hub import constants


@functools.cache
def hub_is_reachable(timeout: float = 5.0) -> bool:
    """True if a connection to the hub opens within `timeout` seconds, or a proxy is set.

    The hub's own client retries for about half a minute before it gives up.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if "https" in getproxies():
        return True
    endpoint = urlparse(os.environ.get("HF_ENDPOINT", constants.ENDPOINT))
    try:
        with socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=timeout):
            return True
    except OSError:
        return False
