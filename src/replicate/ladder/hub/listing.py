"""What there is on the hub: the branches of a repository whose names say a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from replicate.ladder.checkpoints import Parsed, parse
from replicate.ladder.hub.client import api, patiently
from replicate.ladder.hub.rules import holes


@dataclass(frozen=True)
class Revision:
    """A branch that is a rung: its repository, its name, its commit, and what the name says."""

    repo: str
    branch: str
    commit: str
    said: Parsed


@dataclass(frozen=True)
class Listing:
    """The branches of one repository: those that are rungs, in order, the commit of ``main``, and the others."""

    repo: str
    revisions: tuple[Revision, ...]
    main: str | None
    others: tuple[str, ...]

    def stages(self) -> dict[tuple[int, int], list[int]]:
        """Steps by stage and ingredient."""
        found: dict[tuple[int, int], list[int]] = {}
        for revision in self.revisions:
            found.setdefault((revision.said.stage, revision.said.ingredient), []).append(revision.said.step)
        return found

    def lines(self) -> list[str]:
        """For people: a line a stage, with the gaps that are longer than usual."""
        lines = [f"{self.repo}: {len(self.revisions)} revisions, others: {', '.join(self.others) or 'none'}"]
        for (stage, ingredient), steps in self.stages().items():
            name = f"stage {stage}" + (f", ingredient {ingredient}" if ingredient else "")
            gaps = [f"{low} to {high}" for low, high in holes(steps)]
            missing = f"; nothing from {', '.join(gaps)}" if gaps else ""
            lines.append(f"  {name}: {len(steps)} steps from {steps[0]} to {steps[-1]}{missing}")
        return lines


def listing(repos: Sequence[str]) -> list[Listing]:
    """The branches of each repository, as the hub has them now; ``ValueError`` names one that cannot be listed."""
    return [_list(repo) for repo in repos]


def _list(repo: str) -> Listing:
    try:
        branches = patiently(lambda: api().list_repo_refs(repo)).branches
    except Exception as error:
        raise ValueError(f"hub: the branches of {repo} cannot be listed ({said(error)})") from error
    parsed = {branch.name: parse(branch.name) for branch in branches}
    rungs = [Revision(repo, b.name, b.target_commit, parsed[b.name]) for b in branches if parsed[b.name]]
    rungs.sort(key=lambda r: (r.said.stage, r.said.ingredient, r.said.step))
    main = next((b.target_commit for b in branches if b.name == "main"), None)
    return Listing(
        repo, tuple(rungs), main, tuple(sorted(name for name, found in parsed.items() if not found))
    )


def said(error: BaseException) -> str:
    """What the client says of an error, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:160] or type(error).__name__
