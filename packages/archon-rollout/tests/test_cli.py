import io
import json
from pathlib import Path

import pytest

from archon_core.cli.main import main
from archon_core.contracts.rollout import GenerationConfig, RolloutConfig
from archon_core.errors import ConfigError, DataError
from archon_core.models.end_tokens import ModelEnds, end_tokens
from archon_rollout.cli import read_prompts
from archon_rollout.local_engine import LocalEngine
from archon_rollout.model_limits import ModelLimits
from archon_rollout.text_generation import TextGenerator

LETTERS = "abcdefghijklmnopqrst"
EOS = len(LETTERS)


ENDS = end_tokens(EOS, ModelEnds("the model's list", (21,)))


class LetterTokenizer:
    """One token per letter; anything else is unknown."""

    eos_token_id, unk_token_id, unk_token, chat_template = EOS, EOS + 1, "<unk>", None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [LETTERS.index(c) if c in LETTERS else self.unk_token_id for c in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(LETTERS[i] for i in ids if i < EOS)


class ChatTokenizer(LetterTokenizer):
    chat_template = "a template"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return f"from{messages[0]['content']}"


@pytest.fixture
def generator(tiny):
    def make(tokenizer: LetterTokenizer, max_positions: int = 64) -> TextGenerator:
        engine = LocalEngine(RolloutConfig(), trainer=tiny.Trainer(tiny.Decoder().double()))
        return TextGenerator(engine, tokenizer, ModelLimits(tiny.vocabulary, max_positions), ENDS)

    return make


@pytest.fixture
def archon(generator, monkeypatch, capsys):
    """Run ``archon`` with a tiny model in every folder."""
    monkeypatch.setattr(TextGenerator, "load", lambda *_, **__: generator(LetterTokenizer()))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


def test_completions_are_printed_behind_their_prompts(archon, generator):
    code, out, err = archon("generate", "folder", "abc", "ba", "--max-new-tokens", "5", "--greedy")
    [[first], [second]] = generator(LetterTokenizer()).complete(
        ["abc", "ba"], GenerationConfig(greedy=True, max_new_tokens=5), seed=1
    )
    assert code == 0
    assert out == f"abc{first.text}\n\nba{second.text}\n"
    assert "tokens/s" in err


def test_json_has_every_sample_with_its_token_ids_and_logprobs(archon):
    code, out, _ = archon("generate", "folder", "abc", "-n", "3", "--max-new-tokens", "5", "--json", "--seed", "4")
    [described] = json.loads(out)
    assert code == 0
    assert described["prompt"] == "abc"
    assert len({tuple(c["token_ids"]) for c in described["completions"]}) == 3
    for completion in described["completions"]:
        assert len(completion["token_ids"]) == len(completion["logprobs"])
        assert completion["stop_reason"] in ("stop", "length")
        assert completion["text"] == LetterTokenizer().decode(completion["token_ids"])
    assert archon("generate", "folder", "abc", "-n", "3", "--max-new-tokens", "5", "--json", "--seed", "4")[1] == out
    assert archon("generate", "folder", "abc", "-n", "3", "--max-new-tokens", "5", "--json", "--seed", "5")[1] != out


def test_prompts_come_from_standard_input_line_by_line(archon, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n\nba\n"))
    _, out, _ = archon("generate", "folder", "--greedy", "--max-new-tokens", "0", "--no-chat", "--json")
    assert [described["prompt"] for described in json.loads(out)] == ["abc", "ba"]


def test_prompts_come_from_a_file(tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text("eins\nzwei\n", encoding="utf-8")
    assert read_prompts([], file) == ["eins", "zwei"]
    monkeypatch.setattr("sys.stdin", io.StringIO("drei"))
    assert read_prompts([], Path("-")) == ["drei"]


def test_prompts_that_are_missing_or_given_twice_are_errors(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"1 prompts on the command line and --file .*remove one"):
        read_prompts(["a"], tmp_path / "prompts.txt")
    with pytest.raises(ConfigError, match=r"cannot read .*give a UTF-8 text file"):
        read_prompts([], tmp_path / "prompts.txt")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n  \n"))
    with pytest.raises(ConfigError, match="no prompt in standard input"):
        read_prompts([], None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(ConfigError, match=r"found no prompt; write it after the model"):
        read_prompts([], None)


def test_wrong_options_end_with_a_message_and_code_2(archon):
    code, _, err = archon("generate", "folder", "abc", "--top-p", "2")
    assert code == 2
    assert "sampling option top_p: found 2.0; allowed are numbers" in err


def test_a_folder_that_does_not_exist_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["generate", str(tmp_path / "missing"), "abc"])
    assert exit_.value.code == 2
    assert "found no such folder" in capsys.readouterr().err


def test_the_tokens_that_end_a_completion_are_shown_with_their_sources(archon):
    _, _, err = archon("generate", "folder", "abc", "--max-new-tokens", "1")
    assert "completions end at: 20 is the tokenizer's end of text; 21 is the model's list" in err


def test_a_completion_ends_at_the_stop_tokens_and_where_the_models_positions_do(generator):
    [[long]] = generator(LetterTokenizer(), max_positions=20).complete(
        ["abc"], GenerationConfig(max_new_tokens=1000, min_new_tokens=17), seed=0
    )
    assert len(long.completion.token_ids) == 17
    completions = generator(LetterTokenizer()).complete(
        ["abc"], GenerationConfig(n_samples=40, max_new_tokens=50), seed=0
    )
    stopped = [c.completion.token_ids[-1] for c in completions[0] if c.completion.stop_reason == "stop"]
    assert set(stopped) == {EOS, 21}


def test_a_stop_text_ends_a_completion_and_is_left_out_of_its_text(generator):
    def complete(**options):
        config = GenerationConfig(n_samples=20, max_new_tokens=30, stop=["c", "ok"], **options)
        return generator(LetterTokenizer()).complete(["abc"], config, seed=0)[0]

    ended = [c for c in complete() if c.completion.stop_reason == "stop" and c.completion.token_ids[-1] < EOS]
    assert ended, "the case must have such completions"
    for completion in ended:
        spelled = LetterTokenizer().decode(list(completion.completion.token_ids))
        assert spelled in (completion.text + "c", completion.text + "ok")
        assert "c" not in completion.text
        assert "ok" not in completion.text
    late = complete(min_new_tokens=6)
    assert all(len(c.completion.token_ids) > 6 for c in late)
    assert any("c" in c.text[:6] for c in late)


def test_ignore_eos_continues_after_the_end_of_text(archon):
    options = ("-n", "20", "--max-new-tokens", "30", "--json", "--ignore-eos", "--frequency-penalty", "0.5")
    _, out, err = archon("generate", "folder", "abc", *options, "--stop", "q", "--stop", "r")
    completions = json.loads(out)[0]["completions"]
    assert "completions end at: no end-of-text token" in err
    assert any(EOS in c["token_ids"][:-1] for c in completions)
    assert {LETTERS[c["token_ids"][-1]] for c in completions if c["stop_reason"] == "stop"} == {"q", "r"}


def test_prompts_are_messages_when_the_tokenizer_has_a_chat_template(generator, monkeypatch):
    seen = []
    monkeypatch.setattr(LocalEngine, "generate", lambda _, requests: seen.append(requests[0].prompt_ids) or [])
    options, encode = GenerationConfig(), LetterTokenizer().encode
    for chat in (None, True, False):
        generator(ChatTokenizer()).complete(["abc"], options, seed=0, chat=chat)
    assert seen == [tuple(encode(text)) for text in ("fromabc", "fromabc", "abc")]
    with pytest.raises(ConfigError, match="without a chat template; remove --chat"):
        generator(LetterTokenizer()).complete(["abc"], options, seed=0, chat=True)


def test_prompts_that_the_model_cannot_see_are_refused(generator):
    with pytest.raises(DataError, match="'aß': the tokenizer has no token for part of it"):
        generator(LetterTokenizer()).complete(["aß"], GenerationConfig(), seed=0)
    with pytest.raises(DataError, match="found 0 tokens; allowed is at least 1"):
        generator(LetterTokenizer()).complete([""], GenerationConfig(), seed=0)
