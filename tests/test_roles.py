"""Tokens that the policy writes, against the tags of TRL's training templates wherever these render the same text."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
from transformers import PreTrainedTokenizer

from humanline_fused.training.data.forms import LABELS
from humanline_fused.training.data.rows.records import UNPAIRED, Row
from humanline_fused.training.data.tokenizing.conversation import conversations
from humanline_fused.training.data.tokenizing.rendering import REFUSALS, Rendered, Template
from humanline_fused.training.data.tokenizing.tokenization import RowTokenizer, UncutExample
from tests.chat_templates import TEMPLATES, TRAINING, tokenizer
from tests.conversations import SHAPES, WHERE, assistant, tool, user, write_text
from tests.test_render_check import done, row_tokenizer

OPENED = {"diffusion_gemma": {"<|tool_response>", "<|turn>model\n"}}
"""Tokens that count though TRL's tags leave them out: the first ends a call, the second opens a turn unasked."""


def rendered(template: Template, title: str) -> Rendered:
    row = SHAPES[title].row(write_text)
    given = conversations(row.prompt, row.completions)  # pyright: ignore[reportArgumentType]
    return template.fit(given.wholes[0], row.template)


def tagged(name: str) -> Template:
    """Return TRL's training template for a template."""
    return Template(tokenizer(name, template=TRAINING[name]), row_tokenizer(name).encoder.added)


def counted(example: UncutExample) -> list[bool]:
    (mask,) = example.masks
    return [True] * len(example.completions[0]) if mask is None else mask.tolist()


def runs(differ: list[bool], texts: list[str]) -> Iterator[str]:
    """Yield the text of each run of tokens for which ``differ`` is True."""
    for differs, run in groupby(zip(differ, texts, strict=True), key=lambda one: one[0]):
        if differs:
            yield "".join(text for _, text in run)


def test_tokens_that_count_are_those_of_trls_tags_but_for_what_opens_a_turn():
    counts = Counter()
    for name in TRAINING:
        for title in SHAPES:
            (row,) = done(name, title).rows
            if isinstance(row, ValueError):
                continue
            template, whole = row_tokenizer(name).template, rendered(row_tokenizer(name).template, title)
            try:
                training = rendered(tagged(name), title)
            except REFUSALS:
                continue
            if training.text != whole.text:
                counts["other text"] += 1
                continue
            (example,) = row
            tags = tagged(name).generated(training)
            assert tags is not None
            (spans,) = row_tokenizer(name).encoder.spans([whole.text])
            spans = spans[len(example.prompt) :]
            ours, texts = counted(example), [whole.text[start:end] for start, end in spans]
            theirs = [any(start < b and end > a for a, b in tags) for start, end in spans]
            false = list(runs([own and not other for own, other in zip(ours, theirs, strict=True)], texts))
            missed = list(runs([other and not own for own, other in zip(ours, theirs, strict=True)], texts))
            asked = [
                template.render(whole.messages[:index], whole.variables, ask=True)
                for index, message in enumerate(whole.messages)
                if message["role"] == "assistant" and index
            ]
            counts += Counter({"rows": 1, "tokens": len(ours), "openings": len(missed), "false": len(false)})
            assert set(false) <= OPENED.get(name, set()), (name, title, false)
            # A turn's beginning that the generation prompt has already is not the policy's.
            assert all(any(run.strip() in text[-60:] for text in asked) for run in missed), (name, title, missed)
    print(dict(counts))
    assert counts["rows"] > 500
    assert counts["other text"] < 60


@pytest.mark.parametrize("name", [*TRAINING, "lfm2_2_5_v2"])
def test_the_generation_tags_of_a_template_decide(name: str):
    template = TRAINING.get(name, TEMPLATES[name])
    tokens = RowTokenizer(tokenizer(name, template=template), LABELS)
    for title, shape in SHAPES.items():
        (row,) = tokens([(WHERE, shape.row(write_text))]).rows
        if isinstance(row, ValueError):
            continue
        whole = rendered(tokens.template, title)
        tags = tokens.template.generated(whole)
        (spans,) = tokens.encoder.spans([whole.text])
        (example,) = row
        assert tags is not None
        right = [any(start < b and end > a for a, b in tags) for start, end in spans[len(example.prompt) :]]
        assert counted(example) == right, title


# Exact values, with a template that renders every turn in the same way


def tokens_of(
    *completion: dict[str, object], name: str = "chatml", train_on: str = "assistant"
) -> tuple[str, str, str]:
    """Return the texts of the tokens that count, that do not, and the findings of a conversation."""
    tokens = RowTokenizer(tokenizer(name), LABELS, train_on=train_on)
    found = tokens([(WHERE, Row(UNPAIRED, [user("Is it green?")], [list(completion)], [1.0]))])
    (row,) = found.rows
    assert not isinstance(row, ValueError)
    (example,) = row
    mask, ids = counted(example), example.completions[0]
    kept, others = ([i for i, own in zip(ids, mask, strict=True) if own is side] for side in (True, False))
    decode: Any = tokens.encoder.tokenizer.decode
    lines = found.findings.lines()
    return decode(kept), decode(others), "; ".join(line for line in lines if "policy" in line)


def test_an_answer_of_one_turn_counts_as_a_whole():
    assert tokens_of(assistant("No.")) == ("No.<|im_end|>\n", "", "")


def test_results_of_tools_and_turns_of_users_do_not_count():
    conversation = (assistant("look(sky)"), tool("blue"), assistant("No."), user("Why?"), assistant("It scatters."))
    kept, others, said = tokens_of(*conversation)
    assert kept == "look(sky)<|im_end|>\nNo.<|im_end|>\nIt scatters.<|im_end|>\n"
    assert others == (
        "<|im_start|>tool\nblue<|im_end|>\n<|im_start|>assistant\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = f"{len(ids_of(others))} of {len(ids_of(kept)) + len(ids_of(others))}"
    assert said.startswith("tokens of completions that the policy did not write: they do not count")
    assert f": {tokens} (" in said
    assert said.endswith(", e.g. data.jsonl, line 7")


def test_the_header_of_a_second_turn_of_the_policy_does_not_count():
    kept, others, _ = tokens_of(assistant("No."), assistant("It is blue."))
    assert (kept, others) == ("No.<|im_end|>\nIt is blue.<|im_end|>\n", "<|im_start|>assistant\n")


def test_a_last_turn_of_the_user_does_not_count():
    kept, others, _ = tokens_of(assistant("No."), user("The sky is?"))
    assert (kept, others) == ("No.<|im_end|>\n", "<|im_start|>user\nThe sky is?<|im_end|>\n")


def test_with_train_on_completion_all_tokens_count_and_the_others_are_said():
    kept, others, said = tokens_of(assistant("No."), user("The sky is?"), train_on="completion")
    assert kept == "No.<|im_end|>\n<|im_start|>user\nThe sky is?<|im_end|>\n"
    assert others == ""
    assert "and that count (train_on=assistant masks them)" in said


def test_equal_texts_of_user_and_assistant_are_told_apart():
    kept, others, _ = tokens_of(assistant("No."), user("No."), assistant("No."), user("No."))
    assert kept == "No.<|im_end|>\n" * 2
    assert others == "<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n<|im_start|>user\nNo.<|im_end|>\n"


def test_a_turn_that_ends_otherwise_in_the_middle_keeps_its_own_end():
    kept, others, _ = tokens_of(assistant("No."), user("Why?"), assistant("Light."), name="gptoss")
    assert kept == "<|channel|>final<|message|>No.<|end|><|channel|>final<|message|>Light.<|return|>"
    assert others == "<|start|>user<|message|>Why?<|end|><|start|>assistant"


def test_a_template_without_an_end_of_turn_leaves_the_next_turns_beginning_to_others():
    kept, others, _ = tokens_of(assistant("No."), user("Why?"), assistant("Light."), name="glm4moe")
    assert kept == "\n<think></think>\nNo.\n<think></think>\nLight."
    assert others == "<|user|>\nWhy?<|assistant|>"


def test_an_empty_turn_in_the_middle_counts_with_its_end():
    kept, others, _ = tokens_of(assistant(""), user("Say more."), assistant("No."))
    assert kept == "<|im_end|>\nNo.<|im_end|>\n"
    assert others == "<|im_start|>user\nSay more.<|im_end|>\n<|im_start|>assistant\n"


def ids_of(text: str) -> list[int]:
    return row_tokenizer("chatml").encoder.ids([text])[0]


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python, which does not tell the text of its tokens."""

    @property
    def vocab_size(self) -> int:
        return 2**16

    def get_vocab(self) -> dict[str, int]:
        return dict(self.added_tokens_encoder)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_a_tokenizer_without_places_takes_answers_of_one_turn_and_others_with_train_on_completion():
    letters = Letters(eos_token="<|im_end|>", chat_template=TEMPLATES["chatml"])
    single = Row(UNPAIRED, [user("Is it?")], [[assistant("No.")]], [1.0])
    several = Row(UNPAIRED, [user("Is it?")], [[assistant("No."), user("Why?"), assistant("Light.")]], [1.0])
    for row, train_on in ((single, "assistant"), (single, "completion"), (several, "completion")):
        (made,) = RowTokenizer(letters, LABELS, train_on=train_on)([(WHERE, row)]).rows
        assert not isinstance(made, ValueError)
        assert letters.convert_ids_to_tokens(made[0].completions[0].tolist())[:4] == ["N", "o", ".", "<|im_end|>"]
    with pytest.raises(ValueError, match="train_on: expected 'completion' with Letters"):
        RowTokenizer(letters, LABELS)([(WHERE, several)])
