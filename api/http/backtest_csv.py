"""A backtest as a table for spreadsheets: one line for each customer, amounts in digits."""

import csv
from collections.abc import Iterable
from decimal import Decimal
from typing import IO

from api.http.usage_csv import harmless
from billing.reports.backtest import BacktestRow
from catalog.money import minor_digits

__all__ = ["money_text", "write_backtest"]

COLUMNS = (
    "customer_id",
    "customer_key",
    "customer_name",
    "currency",
    "would_bill",
    "billed_currency",
    "billed",
    "difference",
)


def write_backtest(file: IO[str], rows: Iterable[BacktestRow], *, currency: str) -> None:
    """RFC 4180, with a header; `currency` is the plan's. No difference where the customer has another."""
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            [
                row.customer_id,
                harmless(row.customer_key or ""),
                harmless(row.customer_name),
                currency,
                money_text(row.would_bill, currency),
                row.billed_currency,
                money_text(row.billed, row.billed_currency),
                "" if row.difference is None else money_text(row.difference, currency),
            ]
        )


def money_text(amount: Decimal, currency: str) -> str:
    """With the digits of the currency's minor unit: 2.50 in USD, 3 in JPY."""
    return f"{amount:.{minor_digits(currency)}f}"
