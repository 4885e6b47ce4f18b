"""Rows of data: random JSON."""

import random
from typing import Any

from humanline_fused.training.data.prepare import PreparedData, prepare
from humanline_fused.training.objectives import OBJECTIVES, find_objective
from tests.faults.outcome import Fault, Outcome
from tests.tiny_model import WORDS, tiny_tokenizer

MAX_LENGTH = 12
COLUMNS = {
    "dpo": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "grpo": ("prompt", "completions", "rewards"),
}


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))


def right_value(draw: random.Random, column: str) -> Any:
    match column:
        case "label":
            return draw.random() < 0.5
        case "completions":
            return [f" {text(draw)}" for _ in range(3)]
        case "rewards":
            return [draw.choice((0, 1, 0.5)) for _ in range(3)]
    return text(draw) if column == "prompt" else f" {text(draw)}"


def junk(draw: random.Random, depth: int = 0) -> Any:
    """Return random JSON."""
    plain = [
        None,
        True,
        0,
        -1,
        1.5,
        10**30,
        "",
        "  ",
        "\0",
        "\ud800",
        "<eos>",
        "w1",
        "🙂 w2",
        float("nan"),
        float("inf"),
    ]
    if depth > 2 or draw.random() < 0.6:
        return draw.choice(plain)
    if draw.random() < 0.5:
        return [junk(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    names = ["role", "content", "prompt", "chosen", "completion", "label", "x", "tool_calls", "messages"]
    return {draw.choice(names): junk(draw, depth + 1) for _ in range(draw.randint(0, 3))}


def message(draw: random.Random) -> Any:
    """Return a turn of a conversation, sometimes a wrong one."""
    role = draw.choice(("user", "assistant", "assistant", "system", "tool", "x"))
    return {"role": role, "content": text(draw) if draw.random() < 0.8 else junk(draw)}


def call(seed: int) -> Fault:
    """Prepare a few rows, often with junk in one."""
    draw = random.Random(seed)
    objective = draw.choice(list(COLUMNS))
    rows: list[Any] = [
        {c: right_value(draw, c) for c in COLUMNS[objective]} for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 3, 4)))
    ]
    spoilt = bool(rows) and draw.random() < 0.7
    if spoilt:
        number = draw.randrange(len(rows))
        match draw.randrange(6):
            case 0:
                rows[number] = junk(draw)
            case 1:
                del rows[number][draw.choice(COLUMNS[objective])]
            case 2:
                rows[number][draw.choice(("x", "prompt ", "Chosen", "advantage", "score"))] = junk(draw)
            case 3:
                rows[number][draw.choice(COLUMNS[objective])] = [message(draw) for _ in range(draw.randint(0, 3))]
            case _:
                rows[number][draw.choice(COLUMNS[objective])] = junk(draw)
    outcome, said = judged(rows, objective, spoilt)
    what = f"rows of data, {'one with junk' if spoilt else 'all right'}"
    return Fault("call", seed, what, outcome, f"{objective}: {rows!r:.300}: {said}")


def judged(rows: list[Any], objective: str, spoilt: bool) -> tuple[Outcome, str]:
    try:
        data = prepare(rows, tiny_tokenizer(), find_objective(objective), max_length=MAX_LENGTH, num_proc=1)
    except (ValueError, TypeError) as error:
        if rows and not spoilt:
            return Outcome.TRACEBACK, f"right rows were refused: {error}"
        named = "example" in str(error)  # the row, or that there is none
        return (Outcome.REFUSED, str(error)) if named else (Outcome.TRACEBACK, f"names no row: {error}")
    except Exception as error:
        return Outcome.TRACEBACK, f"{type(error).__name__}: {error}"
    if spoilt:
        return _of_texts(rows, data, objective)
    expected = [tokens for row in rows for tokens in _tokens(row, objective)]
    found = [[*example.prompt_ids.tolist(), *c.tolist()] for example in data.examples for c in example.completions]
    return (Outcome.HARMLESS, "") if found == expected else (Outcome.SILENT, f"tokens {found}, expected {expected}")


def _of_texts(rows: list[Any], data: PreparedData, objective: str) -> tuple[Outcome, str]:
    """Compare the tokens of rows that are plain text, in order, with those that are found."""
    found = [[*example.prompt_ids.tolist(), *c.tolist()] for example in data.examples for c in example.completions]
    for row in rows:
        try:
            expected = _tokens(row, objective)
        except (AttributeError, KeyError, TypeError):
            continue  # of messages, or of another data type: only that it is taken without an error is tried
        if any(tokens not in found for tokens in expected) and not data.findings.lines():
            return Outcome.SILENT, f"the tokens {expected} of a row are not in {found}"
    return Outcome.HARMLESS, ""


def _tokens(row: Any, objective: str) -> list[list[int]]:
    """Return the tokens of each completion behind its prompt: words, then the end, then the cut."""
    _, *columns = COLUMNS[objective]
    given = {"dpo": columns, "kto": columns[:1]}.get(objective)
    completions = [row[c] for c in given] if given else row["completions"]
    tokenizer = tiny_tokenizer()
    vocabulary, unknown = tokenizer.get_vocab(), tokenizer.unk_token_id
    made = []
    for completion in completions:
        words = (row["prompt"] + completion).split()
        ids = [vocabulary.get(word, unknown) for word in words]
        made.append([*ids, *([] if ids[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id])][:MAX_LENGTH])
    return made


assert set(COLUMNS) == set(OBJECTIVES)
