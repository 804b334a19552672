"""Tasks from a file: one prompt a line, with its right answers, or rated by a function of the user's own.

A line is ``{"prompt": "...", "answers": ["..."]}``: the reward is 1 if the next token is that of one of the answers,
else 0. An answer is the text that follows the prompt as it stands, with its blank, and has to be one token there. Or it
is ``{"prompt": "..."}``, and a verifier ``module:function`` is given: ``function(prompt, completion)`` is the reward, a
number in [0, 1], of a completion that was sampled. It is asked once for each text, so it must not roll dice. Other keys
of a line and blank lines are passed over.

Prompts become tokens as each checkpoint's own tokenizer writes them, with the special tokens that it puts in front.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from replicate.rl.prompts import added_tokens
from replicate.runs.params import one_line
from replicate.runs.strict_yaml import shown


@dataclass(frozen=True)
class Item:
    """A prompt, its right answers (none where a verifier rates), and the line it stands in."""

    line: int
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Verifier:
    """A function of prompt and completion, by the name it was given."""

    name: str
    function: Callable[[str, str], float]

    def rate(self, item: Item, completion: str) -> float:
        """The reward; ``ValueError`` names the verifier and the line if it fails or gives no number in [0, 1]."""
        where = f"verifier {self.name}, line {item.line}, completion {shown(completion)}"
        try:
            reward = self.function(item.prompt, completion)
        # It is somebody's own code: whatever goes wrong in it is said in one line.
        except Exception as error:
            raise ValueError(one_line(f"{where}: {type(error).__name__}: {error}")) from error
        if not isinstance(reward, Real | np.bool_) or not 0 <= reward <= 1:
            raise ValueError(f"{where}: expected a number from 0 to 1, got {shown(reward)}")
        return float(reward)


@dataclass(frozen=True)
class TextTask:
    """The items of ``path``, whose content has this ``sha``, and the verifier that rates them, if there is one."""

    path: str
    sha: str
    items: tuple[Item, ...]
    verifier: Verifier | None = None

    def limited(self, count: int | None, *, seed: int) -> "TextTask":
        """The task with ``count`` of its items, drawn by ``seed``, in the order of the file (None: with all)."""
        if count is None or count >= len(self.items):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.items), size=count, replace=False))
        return TextTask(self.path, self.sha, tuple(self.items[i] for i in chosen), self.verifier)


def load(path: Path, *, verifier: str | None = None, name: str = "") -> TextTask:
    """Reads a task; ``ValueError`` names the file (as ``name``, by default its path) and the line at fault, what was
    expected and the remedy."""
    name = name or str(path)
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")  # text may hold other ends of lines
    except OSError as error:
        raise ValueError(f"task {name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"task {name}: not UTF-8 text ({error.reason}, byte {error.start})") from None
    seen: dict[str, int] = {}
    items = []
    for number, text in enumerate(lines, 1):
        if text.strip():
            where = f"task {name}, line {number}"
            item = _item(where, number, text, rated=verifier is not None)
            if (first := seen.setdefault(item.prompt, number)) != number:
                raise ValueError(f"{where}: expected prompts that differ, got the one of line {first} again")
            items.append(item)
    if len(items) < 2:
        raise ValueError(
            f"task {name}: expected at least 2 prompts, an interval needs them, got {len(items)}"
        )
    return TextTask(name, hashlib.sha256(content).hexdigest(), tuple(items), _verifier(verifier))


def _item(where: str, number: int, text: str, *, rated: bool) -> Item:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(one_line(f"{where}: not JSON ({error}); write one object a line")) from None
    if not isinstance(said, dict):
        raise ValueError(f'{where}: expected an object {{"prompt": ...}}, got {shown(said)}')
    prompt, answers = said.get("prompt"), said.get("answers")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{where}: expected text under "prompt", got {shown(prompt)}')
    if rated and answers is not None:
        raise ValueError(
            f"{where}: expected no answers beside a verifier, which rates alone; leave one of them out"
        )
    if not rated and answers is None:
        raise ValueError(
            f'{where}: expected "answers" beside the prompt; give them, or rate completions with --verifier'
        )
    if rated:
        return Item(number, prompt, ())
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a for a in answers):
        raise ValueError(
            f'{where}: expected a list of texts under "answers", as in [" red"], got {shown(answers)}'
        )
    return Item(number, prompt, tuple(answers))


def _verifier(name: str | None) -> Verifier | None:
    """Imports ``module:function``, also from the working directory, as ``python -m`` would."""
    if name is None:
        return None
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"--verifier {shown(name)}: expected module:function, as in my_task:reward")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function: Any = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    # Importing runs the module, so that anything may come out of it.
    except Exception as error:
        raise ValueError(one_line(f"--verifier {name}: {type(error).__name__}: {error}")) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(function):
        raise ValueError(
            f"--verifier {name}: expected a function of prompt and completion, got {shown(function)}"
        )
    return Verifier(name, function)


@dataclass(frozen=True)
class Encoded:
    """An item in the tokens of one tokenizer; ``right`` are the tokens of its right answers, each once."""

    item: Item
    tokens: tuple[int, ...]
    right: tuple[int, ...]


def encoded(task: TextTask, tokenizer, *, vocab: int, longest: int) -> list[Encoded]:
    """The items of ``task`` in tokens; ``vocab`` ids are in use, a prompt has at most ``longest`` tokens.

    ``ValueError`` names the line: for a prompt without tokens or with too many, and for an answer that is not exactly
    one more token, with its pieces.
    """
    found = []
    for item in task.items:
        where = f"task {task.path}, line {item.line}"
        tokens = tokenizer.encode(item.prompt)
        if not 1 <= len(tokens) <= longest:
            raise ValueError(
                f"{where}: expected a prompt of 1 to {longest} tokens, got {len(tokens)}; shorten it"
            )
        right = dict.fromkeys(_right(where, item, tokenizer, vocab))
        found.append(Encoded(item, tuple(tokens), tuple(right)))
    return found


def _right(where: str, item: Item, tokenizer, vocab: int) -> Iterator[int]:
    for answer in item.answers:
        more = added_tokens(tokenizer, item.prompt, item.prompt + answer, special=True)
        if more is None or len(more) != 1:
            pieces = more or tokenizer.encode(answer, add_special_tokens=False)
            blank = item.prompt[-1].isspace() and not answer[0].isspace()
            remedy = (
                "a blank before an answer is the answer's, take it off the prompt's end"
                if blank
                else "choose another answer, or rate completions with --verifier and --max-tokens"
            )
            got = [tokenizer.decode([token]) for token in pieces]
            raise ValueError(f"{where}: expected answer {answer!r} to be one more token, got {got}; {remedy}")
        if more[0] == getattr(tokenizer, "unk_token_id", None) or more[0] >= vocab:
            raise ValueError(f"{where}: answer {answer!r} is not in the vocabulary; choose another answer")
        yield more[0]
