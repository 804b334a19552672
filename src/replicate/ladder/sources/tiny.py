"""The tiny ladder, which is trained here: ``tiny``."""

from dataclasses import dataclass, field

from replicate.ladder import pretrain
from replicate.ladder.checkpoints import Checkpoint, Ladder, open_folder
from replicate.ladder.sources import Request
from replicate.ladder.stream import Missed, There


def open(request: Request) -> Ladder:
    """The ladder, trained to its end first if it is not there."""
    return pretrain.train(request.tiny, request.folder, progress=request.progress, origin=request.origin)


def stream(request: Request, ladder: Ladder | None = None) -> "There | Training":
    """The ladder if it is there; else rungs that come as somebody trains it."""
    return There(ladder or open(request)) if ladder or _is_there(request) else Training(request)


def _is_there(request: Request) -> bool:
    return pretrain.is_done(pretrain.folder_of(request.tiny, request.folder))


@dataclass
class Training(There):
    """Rungs that are looked for in the folder in which :meth:`fill`, here or in another process, leaves them."""

    request: Request
    _names: set[str] = field(default_factory=set)

    def expected(self) -> int:
        """The number of rungs there will be."""
        return len(pretrain.steps(self.request.tiny))

    def known(self) -> Ladder | None:
        """The ladder once it is trained to its end."""
        return open(self.request) if _is_there(self.request) else None

    def has_task(self) -> bool:
        """Yes: the training."""
        return True

    def fill(self, *, progress: bool = False) -> None:
        """Trains the ladder to its end."""
        request = self.request
        pretrain.train(request.tiny, request.folder, progress=progress, origin=request.origin)

    def look(self) -> tuple[list[Checkpoint], list[Missed]]:
        """The rungs that stand in the folder by now."""
        folder = pretrain.folder_of(self.request.tiny, self.request.folder)
        rungs = open_folder(folder) if any(folder.glob("stage*")) else ()
        come = [rung for rung in rungs if rung.name not in self._names]
        self._names |= {rung.name for rung in come}
        return come, []

    def is_done(self) -> bool:
        """Whoever trains knows that, not the folder."""
        return True
