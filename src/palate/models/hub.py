"""The hub, asked once and briefly before anything of it is loaded: libraries retry for minutes where it is out of
reach, and then say that a file is missing."""

from __future__ import annotations

TIMEOUT = 10.0  # seconds


def reached(name: str, file: str = "model_index.json") -> bool:
    """Whether the hub answers for a model; False if it does not, and the model is on this disk.

    file: by which one that is here is known. Raises FileNotFoundError, one line, for a model that is neither here nor
    there, or not here while the hub is out of reach.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=TIMEOUT)
    except Exception as error:  # of whichever HTTP library the hub's client has
        if isinstance(try_to_load_from_cache(name, file), str):
            return False
        if isinstance(error, RepositoryNotFoundError):
            raise FileNotFoundError(
                f"{name}: there is no such folder here, and no such model on the hub, unless private (`hf auth login`)"
            ) from None
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        answered = "answers with an error" if isinstance(error, HfHubHTTPError) else "cannot be reached"
        raise FileNotFoundError(
            f"{name}: there is no such folder here, and the hub {answered} ({reason}): look to the network, or give a "
            "pipeline's folder"
        ) from None
    return True
