"""Talking to the hub through its own client: what fails in passing is tried again.

The hub is the one that ``HF_ENDPOINT`` names, as for any other user of that client.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfFileSystem

T = TypeVar("T")

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 4, 2.0, 60.0
"""How often a request is made, and seconds between two: growing twofold, with jitter. The client itself tries some
requests a few times within seconds; this is for what lasts longer."""


def patiently(request: Callable[[], T]) -> T:
    """The answer to ``request``, again after a pause if the connection broke, the hub is busy (429) or ill (5xx).

    What it raises in the end is passed on; a missing repository or file (401, 403, 404) at once.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

    wait = wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT) + wait_random(0, FIRST_WAIT)
    how = {"stop": stop_after_attempt(ATTEMPTS), "wait": wait, "retry": retry_if_exception(_passes)}
    return Retrying(**how, reraise=True)(request)


def _passes(error: BaseException) -> bool:
    if (status := status_of(error)) is not None:
        return status in (408, 429) or status >= 500
    # The client's transport raises errors of its own, not all of them OSErrors; its package changed its name.
    return isinstance(error, OSError | EOFError) or type(error).__module__.startswith(("httpx", "httpcore"))


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of the client reports; None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def api() -> "HfApi":
    """The hub's own client for what is known of repositories."""
    from huggingface_hub import HfApi, constants

    return HfApi(endpoint=constants.ENDPOINT)


def files() -> "HfFileSystem":
    """The hub's own client for the contents of files, or of parts of them."""
    from huggingface_hub import HfFileSystem, constants

    return HfFileSystem(endpoint=constants.ENDPOINT)


def names_of(spec: str) -> list[str]:
    """The repositories of ``hub:org/name,org/other``; ``ValueError`` says what is wrong with the name."""
    names = [name.strip() for name in spec.removeprefix("hub:").split(",")]
    for name in names:
        if name.count("/") != 1 or not all(name.split("/")):
            raise ValueError(
                f"ladder {spec}: expected hub:organisation/name, several with commas, got {name!r}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"ladder {spec}: a repository is named twice")
    return names


def is_default() -> bool:
    """Whether the hub is the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT == constants._HF_DEFAULT_ENDPOINT


def kind(names: list[str]) -> str:
    """Where the checkpoints come from, for captions; another hub is never taken for the public one."""
    where = "the Hugging Face hub" if is_default() else "a hub that HF_ENDPOINT names, not the public one"
    return f"checkpoints of {', '.join(names)} from {where}"
