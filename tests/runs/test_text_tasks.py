"""Tasks from a file: what is read, and every malformed line refused by its number."""

import json

import pytest

from replicate.ladder import corpus
from replicate.runs import text_tasks

GOOD = '{"prompt": "label is red ; answer :", "answers": [" red"]}'
OTHER = '{"prompt": "label is blue ; answer :", "answers": [" blue", " red", " blue"], "id": 7}'
RATED = '{"prompt": "label is red ;"}\n{"prompt": "label is blue ;"}'


def load(folder, text, **options):
    (folder / "t.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    return text_tasks.load(folder / "t.jsonl", name="t.jsonl", **options)


def test_lines_are_items_and_blank_ones_are_passed_over(tmp_path):
    task = load(tmp_path, f"\ufeff{GOOD}\r\n\n{OTHER}\n")
    assert [(item.line, item.prompt, item.answers) for item in task.items] == [
        (1, "label is red ; answer :", (" red",)),
        (3, "label is blue ; answer :", (" blue", " red", " blue")),
    ]


def test_an_end_of_line_within_a_text_is_none(tmp_path):
    """JSON may hold other ends of lines than the file's."""
    text = json.dumps({"prompt": "one\u2028two", "answers": ["."]}, ensure_ascii=False)
    assert load(tmp_path, f"{text}\n{GOOD}").items[0].prompt == "one\u2028two"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("red", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('["red"]', r'line 2: expected an object {"prompt": ...}, got \["red"'.replace('"red"', "'red'")),
        ('{"answers": [" red"]}', 'line 2: expected text under "prompt", got None'),
        ('{"prompt": 3, "answers": [" red"]}', 'line 2: expected text under "prompt", got 3'),
        ('{"prompt": "  ", "answers": [" red"]}', 'line 2: expected text under "prompt"'),
        (
            '{"prompt": "label is", "answer": " red"}',
            'line 2: expected "answers" beside the prompt; .*--verifier',
        ),
        (
            '{"prompt": "label is", "answers": " red"}',
            'line 2: expected a list of texts under "answers", .*got ',
        ),
        ('{"prompt": "label is", "answers": []}', "line 2: expected a list of texts"),
        ('{"prompt": "label is", "answers": [""]}', "line 2: expected a list of texts"),
        ('{"prompt": "label is", "answers": [3]}', "line 2: expected a list of texts"),
        (GOOD, "line 2: expected prompts that differ, got the one of line 1 again"),
        ("", "expected at least 2 prompts, .*got 1"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path, line, said):
    with pytest.raises(ValueError, match=rf"^task t\.jsonl(, |: ){said}") as error:
        load(tmp_path, f"{GOOD}\n{line}\n")
    assert len(str(error.value)) <= 300


def test_no_file_and_no_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^task t\.jsonl: not UTF-8 text \(.*byte 0\)"):
        load(tmp_path, b"\xff\xfe")
    with pytest.raises(ValueError, match=r"no\.jsonl: cannot be read \(No such file"):
        text_tasks.load(tmp_path / "no.jsonl")


def test_a_limit_takes_the_same_items_in_the_files_order(tmp_path):
    lines = [json.dumps({"prompt": f"p{i}", "answers": ["a"]}) for i in range(20)]
    task = load(tmp_path, "\n".join(lines))
    taken = task.limited(5, seed=1)
    assert [item.line for item in taken.items] == sorted(item.line for item in taken.items)
    assert len(taken.items) == 5
    assert taken == task.limited(5, seed=1) != task.limited(5, seed=2)
    assert task.limited(None, seed=1) is task.limited(20, seed=1) is task


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_verifier.py").write_text(
        "limit = 3\n"
        "def short(prompt, completion): return len(completion) < limit\n"
        "def breaks(prompt, completion): return 1 / 0\n"
        "def large(prompt, completion): return 2\n"
        "def nothing(prompt, completion): return None\n"
        "def strange(prompt, completion): return float('nan')\n"
    )
    (tmp_path / "my_broken.py").write_text("import no_such_thing\n")
    return tmp_path


def test_a_verifier_is_found_in_the_working_directory(module):
    task = load(module, RATED, verifier="my_verifier:short")
    assert [task.verifier.rate(task.items[0], text) for text in ("ab", "abc")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_verifier", "expected module:function"),
        (":short", "expected module:function"),
        ("no_such_module:short", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("my_broken:short", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("my_verifier:long", "AttributeError: .*long"),
        ("my_verifier:limit", "expected a function of prompt and completion, got 3"),
    ],
)
def test_a_verifier_that_cannot_be_had_is_refused(module, name, said):
    with pytest.raises(ValueError, match=f"^--verifier .*{said}"):
        load(module, RATED, verifier=name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("breaks", "ZeroDivisionError: division by zero"),
        ("large", "expected a number from 0 to 1, got 2"),
        ("nothing", "expected a number from 0 to 1, got None"),
        ("strange", "expected a number from 0 to 1, got nan"),
    ],
)
def test_what_a_verifier_does_wrong_names_the_line(module, name, said):
    task = load(module, RATED, verifier=f"my_verifier:{name}")
    with pytest.raises(ValueError, match=f"^verifier my_verifier:{name}, line 2, completion 'x': {said}"):
        task.verifier.rate(task.items[1], "x")


def test_answers_beside_a_verifier_are_refused(module):
    with pytest.raises(ValueError, match="line 1: expected no answers beside a verifier"):
        load(module, f"{GOOD}\n{OTHER}", verifier="my_verifier:short")


def test_answers_are_the_tokens_behind_the_prompt_each_once(tmp_path, bpe):
    task = load(tmp_path, f"{GOOD}\n{OTHER}")
    items = text_tasks.encoded(task, bpe, vocab=len(bpe), longest=64)
    assert [bpe.decode(item.tokens) for item in items] == [item.prompt for item in task.items]
    assert [[bpe.decode([token]) for token in item.right] for item in items] == [[" red"], [" blue", " red"]]


@pytest.mark.parametrize(
    ("prompt", "answer", "said"),
    [
        (
            "label is red :",
            " silver",
            r"answer ' silver' to be one more token, got \[.*\]; choose another .*--verifier",
        ),
        (
            "label is red : ",
            "red",
            r"answer 'red' to be one more token, got \[.*\]; a blank before an answer",
        ),
        ("red " * 70, " red", "a prompt of 1 to 64 tokens, got 7[0-9]; shorten it"),
    ],
)
def test_what_a_byte_level_tokenizer_cannot_say_is_refused_by_line(tmp_path, bpe, prompt, answer, said):
    line = json.dumps({"prompt": prompt, "answers": [answer]})
    task = load(tmp_path, f"{GOOD}\n{line}")
    with pytest.raises(ValueError, match=rf"^task t\.jsonl, line 2: expected {said}"):
        text_tasks.encoded(task, bpe, vocab=len(bpe), longest=64)


def test_an_answer_without_a_row_or_a_word_is_refused(tmp_path, bpe):
    line = '{"prompt": "label is maroon ; answer :", "answers": [" maroon"]}'
    task = load(tmp_path, f"{GOOD}\n{line}")
    with pytest.raises(ValueError, match="line 2: answer ' maroon' is not in the vocabulary"):
        text_tasks.encoded(task, corpus.tokenizer(), vocab=265, longest=64)
    with pytest.raises(ValueError, match="line 1: answer ' red' is not in the vocabulary"):
        text_tasks.encoded(load(tmp_path, f"{GOOD}\n{OTHER}"), bpe, vocab=20, longest=64)
