"""The time of the host in a loss: measured for every loss, and written as a table."""

from pathlib import Path

from benchmarks.host import HostTime, _measured, markdown
from benchmarks.results import write


def test_every_loss_is_timed_forward_and_backward():
    rows = {row.host: row for row in _measured(calls=2)}
    assert {name.split()[0].strip(",") for name in rows} == {"dpo", "grpo"}
    assert {name.split()[-1] for name in rows} == {"logits", "head"}
    assert all(row.forward_us > 0 and row.backward_us > 0 for row in rows.values())


def test_a_document_has_the_files_rows(tmp_path: Path):
    path = tmp_path / "host.csv"
    write(path, HostTime, {"command": "c", "machine": "m", "torch": "2.13"}, [HostTime("dpo on logits", 200.0, 90.0)])
    assert markdown(path, "host.csv").splitlines()[2:] == [
        "| dpo on logits | 200 | 90 |",
        "",
        "`host.csv`: `c`, m, torch 2.13.",
    ]
