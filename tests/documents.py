"""The tables of Markdown documents, which tests read and compute again."""

import re

__all__ = ["Row", "rows_of", "tables_of"]

Row = dict[str, str]


def tables_of(text: str) -> list[list[Row]]:
    return [rows_of(table) for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)]


def rows_of(table: str) -> list[Row]:
    """Row by row, by the names in its head."""
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()
    )
    return [dict(zip(head, row, strict=True)) for row in rows]
