"""List prices of language models, in USD for a million tokens, as their providers published them.

As of 1 November 2025, for text at the standard rate: no batch, priority, regional or off-peak rates and no
free tiers. Models whose rate depends on the length of the prompt are left out, as is whatever is not known
for sure: usage of it has no cost, and the answer says why. `since` is a day on which the price held, `until`
the day on which another began. Writing to a cache is Anthropic's rate for five minutes. Providers charge what
a model thinks as output: models that think have that as their reasoning price.

The lists themselves:
- OpenAI: https://developers.openai.com/api/docs/pricing and the page of each model beside it
- Anthropic: https://platform.claude.com/docs/en/about-claude/pricing
- Google: https://ai.google.dev/gemini-api/docs/pricing

Compared with the providers' own pages in November 2026, as far as these still had the model: Claude 3 Haiku,
3.5 Haiku, 3.7 Sonnet and the later ones (all their rates), gpt-4 and gpt-5-nano. Compared with what others
quote of those pages: gpt-3.5-turbo, gpt-4o, gpt-4.1, gpt-5, o1, o3, o3-mini, o4-mini, and Gemini 2.5. None
was wrong. The days, and all other prices, have not been compared.

A price of one's own, a newer one, or one of a model that is not listed here, is set by
`POST /api/v1/llm-cost/overrides`, and goes before what is said here. A name with a date is a model of its
own: list it here, or override it as such.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from catalog.unit_cost import LlmPricing
from metering.exact import EXACT

__all__ = ["FACTS", "STATED_AT", "Fact"]

STATED_AT = datetime(2025, 11, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One price list entry; all of `models` are names of models at that price."""

    provider: str
    models: tuple[str, ...]
    since: datetime
    until: datetime | None
    pricing: LlmPricing


def _fact(
    provider: str,
    models: str,
    since: str,
    price: str,
    *,
    until: str | None = None,
    cached: str | None = None,
    written: str | None = None,
    thinks: bool = False,
) -> Fact:
    """`price` is "input/output"; like `cached` and `written`, for a million tokens."""
    given, made = price.split("/")
    pricing = LlmPricing(
        input_per_token=_per_token(given),
        output_per_token=_per_token(made),
        cache_read_per_token=_per_token(cached) if cached else None,
        cache_write_per_token=_per_token(written) if written else None,
        reasoning_per_token=_per_token(made) if thinks else None,
    )
    return Fact(
        provider=provider,
        models=tuple(models.split()),
        since=_day(since),
        until=_day(until) if until else None,
        pricing=pricing,
    )


def _per_token(per_million: str) -> Decimal:
    return EXACT.normalize(EXACT.scaleb(Decimal(per_million), -6))


def _day(text: str) -> datetime:
    day = date.fromisoformat(text)
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


OPENAI = (
    _fact("openai", "gpt-4", "2023-03-14", "30/60"),
    _fact("openai", "gpt-4-0613", "2023-06-13", "30/60"),
    _fact("openai", "gpt-4-turbo gpt-4-turbo-2024-04-09", "2024-04-09", "10/30"),
    _fact("openai", "gpt-3.5-turbo", "2024-02-16", "0.50/1.50"),
    _fact("openai", "gpt-3.5-turbo-0125", "2024-01-25", "0.50/1.50"),
    _fact("openai", "gpt-4o", "2024-05-13", "5/15", until="2024-10-02"),
    _fact("openai", "gpt-4o", "2024-10-02", "2.50/10", cached="1.25"),
    _fact("openai", "gpt-4o-2024-05-13", "2024-05-13", "5/15"),
    _fact("openai", "gpt-4o-2024-08-06", "2024-08-06", "2.50/10", until="2024-10-02"),
    _fact("openai", "gpt-4o-2024-08-06", "2024-10-02", "2.50/10", cached="1.25"),
    _fact("openai", "gpt-4o-2024-11-20", "2024-11-20", "2.50/10", cached="1.25"),
    _fact("openai", "gpt-4o-mini gpt-4o-mini-2024-07-18", "2024-07-18", "0.15/0.60", until="2024-10-02"),
    _fact("openai", "gpt-4o-mini gpt-4o-mini-2024-07-18", "2024-10-02", "0.15/0.60", cached="0.075"),
    _fact("openai", "o1 o1-2024-12-17", "2024-12-17", "15/60", cached="7.50", thinks=True),
    _fact("openai", "o3-mini o3-mini-2025-01-31", "2025-01-31", "1.10/4.40", cached="0.55", thinks=True),
    _fact(
        "openai", "o3 o3-2025-04-16", "2025-04-16", "10/40", until="2025-06-10", cached="2.50", thinks=True
    ),
    _fact("openai", "o3 o3-2025-04-16", "2025-06-10", "2/8", cached="0.50", thinks=True),
    _fact("openai", "o4-mini o4-mini-2025-04-16", "2025-04-16", "1.10/4.40", cached="0.275", thinks=True),
    _fact("openai", "gpt-4.1 gpt-4.1-2025-04-14", "2025-04-14", "2/8", cached="0.50"),
    _fact("openai", "gpt-4.1-mini gpt-4.1-mini-2025-04-14", "2025-04-14", "0.40/1.60", cached="0.10"),
    _fact("openai", "gpt-4.1-nano gpt-4.1-nano-2025-04-14", "2025-04-14", "0.10/0.40", cached="0.025"),
    _fact("openai", "gpt-5 gpt-5-2025-08-07", "2025-08-07", "1.25/10", cached="0.125", thinks=True),
    _fact("openai", "gpt-5-mini gpt-5-mini-2025-08-07", "2025-08-07", "0.25/2", cached="0.025", thinks=True),
    _fact(
        "openai", "gpt-5-nano gpt-5-nano-2025-08-07", "2025-08-07", "0.05/0.40", cached="0.005", thinks=True
    ),
)

ANTHROPIC = (
    _fact("anthropic", "claude-3-opus-20240229", "2024-03-04", "15/75"),
    _fact("anthropic", "claude-3-sonnet-20240229", "2024-03-04", "3/15"),
    _fact("anthropic", "claude-3-haiku-20240307", "2024-03-13", "0.25/1.25", until="2024-08-14"),
    _fact("anthropic", "claude-3-haiku-20240307", "2024-08-14", "0.25/1.25", cached="0.03", written="0.30"),
    _fact("anthropic", "claude-3-5-sonnet-20240620", "2024-06-20", "3/15", until="2024-08-14"),
    _fact("anthropic", "claude-3-5-sonnet-20240620", "2024-08-14", "3/15", cached="0.30", written="3.75"),
    _fact("anthropic", "claude-3-5-sonnet-20241022", "2024-10-22", "3/15", cached="0.30", written="3.75"),
    _fact("anthropic", "claude-3-5-haiku-20241022", "2025-01-01", "0.80/4", cached="0.08", written="1"),
    _fact(
        "anthropic",
        "claude-3-7-sonnet claude-3-7-sonnet-latest claude-3-7-sonnet-20250219",
        "2025-02-24",
        "3/15",
        cached="0.30",
        written="3.75",
        thinks=True,
    ),
    _fact(
        "anthropic",
        "claude-opus-4 claude-opus-4-0 claude-opus-4-20250514",
        "2025-05-22",
        "15/75",
        cached="1.50",
        written="18.75",
        thinks=True,
    ),
    _fact(
        "anthropic",
        "claude-opus-4-1 claude-opus-4-1-20250805",
        "2025-08-05",
        "15/75",
        cached="1.50",
        written="18.75",
        thinks=True,
    ),
    _fact(
        "anthropic",
        "claude-haiku-4-5 claude-haiku-4-5-20251001",
        "2025-10-15",
        "1/5",
        cached="0.10",
        written="1.25",
        thinks=True,
    ),
)
"""Claude Sonnet 4 and 4.5 are not listed: what a token costs depends on how long its prompt is."""

GOOGLE = (
    _fact("google", "gemini-2.0-flash gemini-2.0-flash-001", "2025-02-05", "0.10/0.40", cached="0.025"),
    _fact("google", "gemini-2.0-flash-lite gemini-2.0-flash-lite-001", "2025-02-25", "0.075/0.30"),
    _fact("google", "gemini-2.5-flash", "2025-06-17", "0.30/2.50", thinks=True),
    _fact("google", "gemini-2.5-flash-lite", "2025-07-22", "0.10/0.40", thinks=True),
)
"""Gemini 1.5 and 2.5 Pro are not listed: what a token costs depends on how long its prompt is."""

OTHERS = (
    _fact("mistral", "mistral-large-2411", "2024-11-18", "2/6"),
    _fact("mistral", "mistral-medium-2505", "2025-05-07", "0.40/2"),
    _fact("mistral", "mistral-small-2501", "2025-01-30", "0.10/0.30"),
    _fact("mistral", "codestral-2501", "2025-01-13", "0.30/0.90"),
    _fact("mistral", "ministral-8b-2410", "2024-10-16", "0.10/0.10"),
    _fact("mistral", "ministral-3b-2410", "2024-10-16", "0.04/0.04"),
    _fact("cohere", "command-r-plus-08-2024", "2024-08-30", "2.50/10"),
    _fact("cohere", "command-r-08-2024", "2024-08-30", "0.15/0.60"),
    _fact("cohere", "command-a-03-2025", "2025-03-13", "2.50/10"),
    _fact("xai", "grok-3", "2025-04-09", "3/15"),
    _fact("bedrock", "amazon.nova-micro-v1:0", "2024-12-03", "0.035/0.14"),
    _fact("bedrock", "amazon.nova-lite-v1:0", "2024-12-03", "0.06/0.24"),
    _fact("bedrock", "amazon.nova-pro-v1:0", "2024-12-03", "0.80/3.20"),
)
"""Mistral's names that end in "-latest" are not listed: they move on to models of another price."""

FACTS = (*OPENAI, *ANTHROPIC, *GOOGLE, *OTHERS)
