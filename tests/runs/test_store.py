"""Records: what is read is what was written, or it is said to be damaged; keys; what two records must agree on."""

import json

import pytest

from replicate.runs.store import Damaged, Store, content, key_of, not_finite


@pytest.fixture
def store(tmp_path):
    """A store with one record."""
    store = Store(tmp_path)
    store.put("rl", "k", {"seed": 1, "result": {"x": 0.125, "y": [1, 2]}, "origin": {"cores": 2}})
    return store


def test_what_was_put_is_found(store):
    assert content(store.get("rl", "k")) == {
        "key": "k", "experiment": "rl", "seed": 1, "result": {"x": 0.125, "y": [1, 2]},
    }  # fmt: skip
    assert store.get("rl", "k")["origin"] == {"cores": 2}
    assert store.get("rl", "other") is None


def test_content_is_blind_to_origin_and_to_nothing_else(store):
    store.put("rl", "k2", {"seed": 1, "result": {"x": 0.125, "y": [1, 2]}, "origin": {"cores": 4}})
    one, two = (content(store.get("rl", key)) for key in ("k", "k2"))
    assert {**one, "key": ""} == {**two, "key": ""}
    assert one != two


def test_every_changed_byte_is_noticed_or_harmless(store):
    """A bit of each byte flipped in turn: the record is damaged, or says the same in other white space."""
    path = store.path("rl", "k")
    good, said = path.read_bytes(), store.get("rl", "k")
    noticed = 0
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        try:
            assert store.get("rl", "k") == said
        except Damaged:
            noticed += 1
    assert noticed >= len(good.replace(b" ", b"").replace(b"\n", b""))


def test_every_truncation_is_noticed(store):
    path = store.path("rl", "k")
    good = path.read_bytes()
    for length in range(len(good) - 1):  # the last byte is a line break
        path.write_bytes(good[:length])
        with pytest.raises(Damaged, match=r"k\.json: damaged record"):
            store.get("rl", "k")


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", "1", '{"checksum": NaN}', "[" * 20000, '{"checksum": ""}']
)
def test_a_file_of_something_else_is_damaged(store, text):
    store.path("rl", "k").write_text(text)
    with pytest.raises(Damaged):
        store.get("rl", "k")


def test_a_record_under_another_name_is_damaged(store):
    for experiment, key in (("rl", "k2"), ("measure", "k")):
        path = store.path(experiment, key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(store.path("rl", "k").read_bytes())
        with pytest.raises(Damaged, match="record of rl k"):
            store.get(experiment, key)


def test_numbers_that_are_not_finite_are_refused_and_named(store):
    result = {"a": [1.0, {"b": float("nan")}], "c": (float("-inf"),), "d": "nan", "e": None, "f": 10**400}
    assert list(not_finite(result)) == ["result.a[1].b is nan", "result.c[0] is -inf"]
    with pytest.raises(ValueError, match=r"result\.a\[1\]\.b is nan and 1 more"):
        store.put("rl", "new", {"result": result})
    assert store.get("rl", "new") is None


def test_keys_depend_on_values_not_on_order():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_records_are_plain_json(store):
    assert json.loads(store.path("rl", "k").read_text())["result"] == {"x": 0.125, "y": [1, 2]}
