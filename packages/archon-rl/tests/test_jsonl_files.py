"""Files of JSON lines that are not what they should be: errors that name file and line, or success, never another."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from archon_core.errors import ConfigError, DataError
from archon_rl.datasets.jsonl import jsonl_dataset, read_jsonl
from archon_rl.fields import Fields
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer.sequence_lengths import example_lengths, measure_lengths, prompt_lengths
from archon_train.experiment import DataConfig

sys.path.insert(0, str(Path(__file__).parent))

from chat_tokenizers import CHATML, chat_tokenizer

GOOD = b'{"question": "a", "answer": "1"}\n'
KEYS = ("question", "answer")


def with_field(text: bytes) -> bytes:
    return b'{"question": "a", "answer": "1", "x": ' + text + b"}\n"


def read(folder: Path, content: bytes):
    path = folder / "a.jsonl"
    path.write_bytes(content)
    return read_jsonl(path, Fields(*KEYS))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "caf\xe9", "answer": "1"}\n', "not UTF-8: found byte 0xe9 at byte 18 of the line; convert"),
        (rb'{"question": "q\ud83d", "answer": "1"}', r"found \\ud83d, an unpaired surrogate"),
        (rb'{"question": "q", "answer": "1", "x": {"y": ["\uDE00"]}}', r"found \\ude00, an unpaired surrogate"),
        (rb'{"question": "q", "answer": "1", "\ud83d": 1}', r"found \\ud83d, an unpaired surrogate"),
        (with_field(b"9" * 5000), "an integer of more than 4,300 digits"),
        (with_field(b"[" * 100_000 + b"]" * 100_000), "nested too deep"),
        (with_field(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deep"),
        (with_field(b"NaN"), "not JSON: found NaN; write null"),
        (with_field(b"-Infinity"), "not JSON: found -Infinity"),
        (with_field(b"1e999"), "found the number 1e999, too large"),
        (with_field(b'"\x00"'), "not JSON: Invalid control character"),
        (b"\x00" * 10, "not JSON: "),
        (b'{"question": "a", "answer": "1", "answer": "2"}', "the name 'answer' twice in one object"),
        (with_field(b'{"y": 1, "y": 1}'), "the name 'y' twice in one object"),
        (GOOD.strip() + GOOD, "not JSON: Extra data"),
        (b"\xef\xbb\xbf" + GOOD, "not JSON: Expecting value at column 1"),
        (b"null", "found null; every line must hold one JSON object"),
        (b'"text"', "found text; every line"),
        (b'{"question": null, "answer": "1"}', r"data\.prompt_key='question': found null"),
        (b'{"question": "a", "answer": true}', r"data\.answer_key='answer': found true"),
        (b'{"question": "a", "answer": [1]}', r"data\.answer_key='answer', message 1: found a number in a list"),
        (b'{"question": "a", "answer": {}}', r"data\.answer_key='answer': found an object"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, line, message):
    with pytest.raises(DataError, match=rf"a\.jsonl:3: .*{message}"):
        read(tmp_path, GOOD + b"\r\n" + line)


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"\xef\xbb\xbf" + GOOD, [{"question": "a", "answer": "1"}]),
        (GOOD.replace(b"\n", b"\r\n") * 2, [{"question": "a", "answer": "1"}] * 2),
        (rb'{"question": "\ud83d\ude00\u0000", "answer": 1.5}', [{"question": "\U0001f600\0", "answer": 1.5}]),
        ('{"question": "日本\u2028", "answer": "é"}'.encode(), [{"question": "日本\u2028", "answer": "é"}]),
        (with_field(b'"' + b"x" * 3_000_000 + b'"'), [{"question": "a", "answer": "1", "x": "x" * 3_000_000}]),
    ],
    ids=["byte order mark", "line ends of Windows", "escapes", "letters", "a long line"],
)
def test_unusual_files_are_read(tmp_path, content, records):
    assert list(read(tmp_path, content)) == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD * 9, mtime=0), r"a\.jsonl:1: not UTF-8: .* this is a gzip archive: unpack it first"),
        (b"PAR1\x15\x04\xff", r"a\.jsonl:1: not UTF-8: .* a Parquet file: data\.dataset=hf"),
        (GOOD.decode().encode("utf-16"), r"a\.jsonl:1: not UTF-8: .* this is UTF-16: convert it"),
        (b"", r"a\.jsonl: found no records"),
        (b"\n \r\n\n", r"a\.jsonl: found no records"),
    ],
)
def test_files_of_another_kind_are_recognised(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self/mem").exists(), reason="root may read every file")
def test_files_that_cannot_be_read_are_named_with_their_option(tmp_path):
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    for path in (str(tmp_path), "x" * 300, "a\0b", "/proc/self/mem"):
        with pytest.raises(ConfigError, match=r"data\.path: (found no file|cannot read the file)"):
            jsonl_dataset(DataConfig(path=path), split="train", seed=1)
        config = DataConfig(path=str(tmp_path / "good.jsonl"), validation_path=path)
        with pytest.raises(ConfigError, match=r"data\.validation_path: (found no file|cannot read the file)"):
            jsonl_dataset(config, split="validation", seed=1)


TOKENIZER = chat_tokenizer(CHATML)
TEXT = st.text(max_size=6) | st.text(st.characters(categories=("Cs",)), max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]) | TEXT, "content": TEXT | st.none()},
        optional={"tool_calls": st.lists(st.none(), max_size=1)},
    ),
    max_size=3,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
RECORD = st.fixed_dictionaries(
    {}, optional={"question": TEXT | MESSAGES | JSON, "answer": TEXT | MESSAGES | JSON, "x": JSON}
)
LINE = st.one_of(
    RECORD.map(json.dumps).map(str.encode),
    RECORD.map(lambda record: json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.tuples(RECORD, RECORD).map(
        lambda pair: json.dumps(pair[0])[:-1].encode() + b"," + json.dumps(pair[1])[1:].encode()
    ),
    st.sampled_from([GOOD, with_field(b"9" * 5000), with_field(b"[" * 5000 + b"]" * 5000), with_field(b"1e999")]),
    st.binary(max_size=40),
)


@st.composite
def any_file(draw: st.DrawFn) -> bytes:
    """Bytes, or lines of which most are nearly records, with some bytes changed."""
    content = bytearray(b"\n".join(draw(st.lists(LINE, max_size=3))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.parametrize("examples", [500, pytest.param(5_000, marks=pytest.mark.soak)], ids=["short", "long"])
def test_any_bytes_are_read_and_encoded_or_refused(tmp_path, examples):
    path, outcomes = tmp_path / "a.jsonl", set()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=60) | any_file(), st.sampled_from(["answer", None, "x.y"]))
    @example(b'{"question": [{"role": "user", "content": "a"}]}', None)
    def check(content: bytes, answer_key: str | None) -> None:
        path.unlink(missing_ok=True)  # writing over a file makes some file systems wait for the disk
        path.write_bytes(content)
        encoder = TextEncoder(TOKENIZER, "question", answer_key)
        refused = ""
        try:
            records = read_jsonl(path, Fields("question", answer_key))
        except DataError as error:
            refused = str(error)
        if refused:
            assert refused.startswith(str(path))
            outcomes.add("refused")
            return
        for measure in (prompt_lengths, example_lengths):
            try:
                measure_lengths(records, encoder, measure)
                outcomes.add(measure.__name__)
            except DataError as error:
                refused = str(error)
                outcomes.add("not encoded")
        assert refused == "" or refused.startswith(f"{path}:")

    check()
    assert outcomes == {"refused", "prompt_lengths", "example_lengths", "not encoded"}
