"""Scored completions, one a row, grouped by prompt into groups with rewards."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

from humanline_fused.training.data.findings import ALONE, Findings
from humanline_fused.training.data.rows.records import REWARDED, SCORED, Row


def grouped(rows: Iterable[tuple[str, Row | ValueError]], findings: Findings) -> Iterator[tuple[str, Row | ValueError]]:
    """Yield rows with their places; scored ones at the end, as one row with rewards for each prompt.

    The groups are in the order of first appearance of their prompts, and have the place of their first row. Rows have
    the same prompt if the arguments of the chat template are equal, too.

    Args:
        rows: the rows of a whole dataset; the errors of others are passed on.
        findings: counts the prompts with one completion, which are left out, because a group of one has no baseline.

    >>> scored = [("line 1", Row(SCORED, "2+2=", ["4"], [1.0])), ("line 2", Row(SCORED, "2+2=", ["5"], [0.0]))]
    >>> [(where, row.completions, row.values) for where, row in grouped(scored, Findings())]
    [('line 1', ['4', '5'], [1.0, 0.0])]
    """
    groups: dict[str, tuple[str, Row]] = {}
    for where, row in rows:
        if isinstance(row, ValueError) or row.type is not SCORED:
            yield where, row
            continue
        key = json.dumps([row.prompt, row.template], sort_keys=True, default=repr)
        if key not in groups:
            groups[key] = where, replace(row, type=REWARDED, completions=[], values=[])
        groups[key][1].completions.extend(row.completions)
        groups[key][1].values.extend(row.values)
    for where, row in groups.values():
        if len(row.completions) > 1:
            yield where, row
        else:
            findings.add(ALONE, where)
