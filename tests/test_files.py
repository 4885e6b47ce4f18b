"""Files are read as they were written, whatever wrote them, and an error names its place and its cause."""

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.reading.lines import lines
from humanline_fused.training.data.reading.sources import read_records, read_rows
from humanline_fused.training.data.rows.records import read_row
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.table import ROUND
from tests.tiny_model import tiny_tokenizer

ROW = {"prompt": "Which colour has grass?", "chosen": " “Green”\r\n\u2028or\x0b olive\x85.", "rejected": " Grey 🙂."}
LINE = json.dumps(ROW, ensure_ascii=False)
TABLE = "prompt,chosen,rejected\r\n" + 'Which?," ""Green""\r\nor olive."," Grey."\r\n' * 2
CELLS = {"prompt": "Which?", "chosen": ' "Green"\r\nor olive.', "rejected": " Grey."}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def records_of(path: Path) -> list[Any]:
    return [record for _, record in read_records(path)]


def error_of(path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as caught:
        records_of(path)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.jsonl", f"{LINE}\n{LINE}\n"),
        ("bom.jsonl", f"\ufeff{LINE}\n{LINE}"),
        ("crlf.jsonl", f"{LINE}\r\n\r\n{LINE}\r\n"),
        ("cr.jsonl", f"{LINE}\r{LINE}\r"),
        ("bom.json", "\ufeff" + json.dumps([ROW, ROW], ensure_ascii=False)),
        ("pretty.json", json.dumps([ROW, ROW], indent=2).replace("\n", "\r\n")),
        ("lines.json", f"{LINE}\n{LINE}\n"),
        ("UPPER.JSONL", f"{LINE}\n{LINE}"),
        ("Mixed.Json", json.dumps({"version": 1, "data": [ROW, ROW]})),
        ("small.jsonl.gz", gzip.compress(f"\ufeff{LINE}\n{LINE}\n".encode(), mtime=0)),
        ("SMALL.NDJSON.GZ", gzip.compress(f"{LINE}\n{LINE}\n".encode(), mtime=0)),
        ("small.json.gz", gzip.compress(json.dumps([ROW, ROW]).encode(), mtime=0)),
    ],
)
def test_json_is_read_whatever_wrote_it(tmp_path: Path, name: str, content: str | bytes):
    assert records_of(written(tmp_path, name, content)) == [ROW, ROW]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", "\ufeff" + TABLE),
        ("no_end.csv", TABLE.rstrip()),
        ("UPPER.CSV", TABLE),
        ("tabs.tsv", TABLE.replace(",", "\t")),
        ("small.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("small.tsv.gz", gzip.compress(TABLE.replace(",", "\t").encode(), mtime=0)),
    ],
)
def test_a_table_is_read_whatever_wrote_it(tmp_path: Path, name: str, content: str | bytes):
    assert records_of(written(tmp_path, name, content)) == [CELLS, CELLS]


COLUMNS = {name: [value, value] for name, value in ROW.items()}
PANDAS = {name: {"0": value, "1": value} for name, value in ROW.items()}
MESSAGES = {name: [[{"role": "user", "content": value}]] for name, value in ROW.items()}
WHOLE_COLUMNS = "expected one object per row, got whole columns, "


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wide.jsonl", LINE.encode("utf-16"), "wide.jsonl: expected UTF-8 text, got UTF-16: save the file as UTF-8"),
        ("wide.csv", TABLE.encode("utf-16-le"), "wide.csv: expected UTF-8 text, got UTF-16: save the file as UTF-8"),
        (
            "latin.jsonl",
            b'{"prompt": "a"}\n{"prompt": "caf\xe9"}',
            "latin.jsonl, line 2: expected UTF-8 text, got the byte 0xe9 at character 15: save the file as UTF-8 (it "
            "may be Latin-1 or Windows-1252)",
        ),
        (
            "semicolons.csv",
            TABLE.replace(",", ";"),
            "semicolons.csv, line 1: expected a header of column names separated by commas, got "
            "'prompt;chosen;rejected', separated by semicolons: save the table as CSV with commas, or as TSV with tabs",
        ),
        ("quoted.csv", '"prompt";"chosen"\n"a";"b"', "quoted.csv, line 1: expected a header of column names separated"),
        ("commas.tsv", TABLE, "separated by tabs, got 'prompt,chosen,rejected', separated by commas"),
        ("spaces.csv", "prompt, chosen\na,b", "spaces.csv, line 1: expected column names without white space around"),
        ("excel.csv", "sep=,\r\n" + TABLE, "got 'sep=,', which only Excel reads: delete this line"),
        ("nul.csv", "prompt,chosen\na,b\na,b\0c", "nul.csv, line 3: chosen: expected text, got a NUL at character 1"),
        (
            "end.csv",
            "prompt,chosen\na,b\n\x1a",
            "end.csv, line 3: expected 2 cells, as the header has, got 1, the end-of",
        ),
        (
            "end.jsonl",
            LINE + "\n\x1a",
            "end.jsonl, line 2: expected one JSON object per line, got '\\x1a': the end-of-file mark of DOS: delete it",
        ),
        (
            "joined.jsonl",
            f"\ufeff{LINE}\n\ufeff{LINE}",
            "a byte-order mark inside the file, as of files that were joined",
        ),
        ("nul.jsonl", LINE.encode() + b"\n" + b"\0" * 16, "NUL bytes: the file was not written to its end"),
        (
            "pretty.jsonl",
            json.dumps(ROW, indent=1),
            "pretty.jsonl, line 1: expected one JSON object per line, got '{': an",
        ),
        (
            "list.jsonl",
            json.dumps([ROW, ROW], indent=1),
            "line 1: expected one JSON object per line, got '[': a JSON list",
        ),
        (
            "cut.jsonl",
            f"{LINE}\n{LINE[:30]}",
            'cut.jsonl, line 2: expected one JSON object per line, got \'{"prompt": ',
        ),
        (
            "twice.jsonl",
            f'{LINE}\n{{"prompt": "a", "prompt": "b"}}',
            'twice.jsonl, line 2: expected one JSON object per line, got \'{"prompt": "a", "prompt": "b"}\': the key '
            "'prompt' occurs twice in an object",
        ),
        ("columns.json", json.dumps(COLUMNS), f"columns.json, example 0: {WHOLE_COLUMNS}"),
        ("columns.jsonl", json.dumps(COLUMNS), f"columns.jsonl, line 1: {WHOLE_COLUMNS}"),
        ("messages.json", json.dumps(MESSAGES), f"messages.json, example 0: {WHOLE_COLUMNS}"),
        ("pandas.json", json.dumps(PANDAS), 'write rows (in pandas to_json(orient="records"))'),
        ("index.json", json.dumps({"0": ROW, "1": ROW}), f"index.json, example 0: {WHOLE_COLUMNS}"),
        ("split.json", json.dumps({"columns": ["a"], "index": [0], "data": [["b"]]}), f"example 0: {WHOLE_COLUMNS}"),
        ("empty.jsonl", "", "empty.jsonl: expected at least one row, got none: the file is empty"),
        ("empty.json", "", "empty.json: expected at least one row, got none: the file is empty"),
        ("bom.jsonl", "\ufeff", "bom.jsonl: expected at least one row, got none: the file has no data"),
        ("header.csv", "prompt,chosen,rejected\n", "header.csv: expected at least one row, got none: the file has no"),
        ("list.json", "[]", "list.json: expected at least one row, got none: the file has no data"),
        ("cut.jsonl.gz", gzip.compress(LINE.encode(), mtime=0)[:-12], "cut.jsonl.gz, line 1: cannot be decompressed: "),
        ("plain.jsonl.gz", LINE, "plain.jsonl.gz, line 1: cannot be decompressed: Not a gzipped file"),
        ("data.parquet.gz", b"", "expected a file that ends in .jsonl, "),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_cause(tmp_path: Path, name: str, content: str | bytes, said: str):
    assert said in error_of(written(tmp_path, name, content))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [{"role": "user", "content": "a"}], "completions": ["b"], "rewards": [1]},
        {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "a"}]},
        {"prompt": "a", "completions": ["b", "c"], "rewards": [0, 1]},
        {"prompt": "a", "chat_template_kwargs": {"0": 1}},
        {"prompt": [], "chosen": []},
    ],
)
def test_a_row_of_lists_or_objects_is_not_taken_for_columns(tmp_path: Path, row: dict[str, Any]):
    assert records_of(written(tmp_path, "one.json", json.dumps(row))) == [row]


def test_reading_continues_after_a_row_with_an_error(tmp_path: Path):
    path = written(tmp_path, "data.jsonl", f'{LINE}\n{{"a": 1\n{json.dumps(ROW | {"chosen": chr(0xD83D)})}\n{LINE}')
    rows = [record for _, record in read_rows(path)]
    assert [isinstance(row, ValueError) for row in rows] == [False, True, True, False]


# Half a character


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"chosen": " No \ud83d"}, "character 4 of chosen"),
        ({"chosen": "\ude00\ud83d"}, "character 0 of chosen"),
        ({"chosen": [{"role": "assistant", "content": "a\udfff"}]}, "character 1 of chosen[0].content"),
        ({"chosen": [{"content": [{"text": "\ud800"}]}]}, "character 0 of chosen[0].content[0].text"),
        ({"completions": ["a", "b\ud83d"]}, "character 1 of completions[1]"),
        ({"tools": [{"\ud83d": 1}]}, "character 0 of tools[0].a key"),
        ({"note": "\ud83d"}, "character 0 of note"),
    ],
)
def test_half_a_character_is_refused_with_its_place(tmp_path: Path, row: dict[str, Any], place: str):
    text = json.dumps(ROW | row)
    for source in (
        written(tmp_path, "a.jsonl", f"{LINE}\n{text}"),
        written(tmp_path, "a.json", f"[{LINE}, {text}]"),
        [ROW, ROW | row],
    ):
        (_, good), (where, error) = read_rows(source)
        assert good == ROW
        assert str(error) == f"{where}: half a surrogate pair at {place}"


def test_half_a_character_in_tools_that_are_json_text_is_refused():
    row = {"prompt": [{"role": "user", "content": "a"}], "tools": json.dumps([{"name": "b\ud83d"}])}
    with pytest.raises(ValueError, match=r"half a surrogate pair at character 1 of tools\[0\]\.name"):
        read_row("line 1", row, ROUND)


def test_whole_characters_beyond_the_basic_plane_are_kept(tmp_path: Path):
    path = written(tmp_path, "a.jsonl", '{"prompt": "\\ud83d\\ude00", "chosen": "👩🏽\u200d🚀", "rejected": "\\u0000"}')
    assert records_of(path) == [{"prompt": "😀", "chosen": "👩🏽\u200d🚀", "rejected": "\0"}]


# Depth and size


@pytest.mark.parametrize("depth", [250, 900, 200_000])
@pytest.mark.parametrize("name", ["deep.jsonl", "deep.json"])
def test_a_row_that_is_nested_too_deeply_is_refused(tmp_path: Path, name: str, depth: int):
    deep = '{"prompt": "a", "note": ' + "[" * depth + "]" * depth + "}"
    assert error_of(written(tmp_path, name, f"{LINE}\n{deep}")).startswith(f"{name}, line 2: ")


def test_a_nested_row_is_kept(tmp_path: Path):
    row: Any = ROW | {"note": json.loads("[" * 150 + "]" * 150)}
    assert records_of(written(tmp_path, "deep.jsonl", json.dumps(row))) == [row]


def test_a_row_that_contains_itself_is_refused():
    row: dict[str, Any] = dict(ROW)
    row["self"] = row
    ((where, error),) = read_rows([row])
    assert str(error) == f"{where}: self: expected at most 200 levels of nesting, got more"


def test_a_number_of_any_length_is_kept_or_refused_with_its_line(tmp_path: Path):
    path = written(tmp_path, "a.jsonl", f'{{"note": {"9" * 400}}}\n{{"note": {"9" * 5000}}}')
    (_, kept), (where, error) = read_rows(path)
    assert kept == {"note": 10**400 - 1}
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{where}: expected one JSON object per line, got ")


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize(
    ("objective", "row", "said"),
    [
        ("grpo", '{"prompt": "a", "completions": ["b", "c"], "rewards": [1, %s]}', "expected 2 finite rewards"),
        (
            "grpo",
            '{"prompt": "a", "completion": "b", "reward": %s}',
            "expected the reward of a completion to be a finite",
        ),
        ("kto", '{"prompt": "a", "completion": "b", "label": %s}', "expected label to be true or false, got 999"),
        ("dpo", '{"prompt": %s, "chosen": "b", "rejected": "c"}', "expected prompt and completions all to be text"),
    ],
)
def test_a_number_of_any_length_has_a_reason(tmp_path: Path, objective: str, row: str, said: str, digits: int):
    path = written(tmp_path, "a.jsonl", row % ("9" * digits))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: ") as caught:
        prepare(path, tiny_tokenizer(), find_objective(objective), max_length=64)
    assert (said if digits == 400 else "expected one JSON object per line, got ") in str(caught.value)


# Lines and Parquet


def test_line_numbers_count_lf_crlf_and_cr(tmp_path: Path):
    path = written(tmp_path, "a.txt", "one\ntwo\r\nthree\rfour")
    assert list(lines(path)) == ["one\n", "two\r\n", "three\r", "four"]


def test_any_parquet_file_is_read_in_all_row_groups(tmp_path: Path):
    """Types that ``datasets`` does not know: dictionary-encoded text, and maps."""
    table = pa.table(
        {
            "prompt": pa.array([f"w{i % 2}" for i in range(2500)]).dictionary_encode(),
            "note": pa.array([[("a", {"b": i, "c": None})] for i in range(2500)], _map_of_structs()),
            "long": pa.array([None] * 2500, pa.large_string()),
        }
    )
    parquet.write_table(table, tmp_path / "DATA.PARQUET", row_group_size=700)
    expected = [{"prompt": f"w{i % 2}", "note": {"a": {"b": i}}, "long": None} for i in range(2500)]
    assert records_of(tmp_path / "DATA.PARQUET") == expected


def _map_of_structs() -> pa.DataType:
    return pa.map_(pa.string(), pa.struct([("b", pa.int64()), ("c", pa.string())]))


def test_a_parquet_file_without_rows_or_cut_off_is_named(tmp_path: Path):
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert (
        error_of(tmp_path / "none.parquet") == "none.parquet: expected at least one row, got none: the file has no data"
    )
    parquet.write_table(pa.table({"prompt": ["a"] * 100}), tmp_path / "whole.parquet")
    cut = written(tmp_path, "cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    assert "cut.parquet: expected a Parquet file: " in error_of(cut)


@pytest.mark.skipif(sys.platform != "linux", reason="a name that is not UTF-8")
def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.parquet")
    parquet.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").rename(tmp_path / name)
    assert records_of(tmp_path / name) == [{"prompt": "a"}]
    assert records_of(written(tmp_path, os.fsdecode(b"caf\xe9.jsonl"), LINE)) == [ROW]
