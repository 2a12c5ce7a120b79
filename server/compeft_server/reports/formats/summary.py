"""The report's first paragraph: what was moved, at what quality, for what money, in a few sentences for somebody who reads nothing else."""

from compeft_server.domain.price import GB, Price
from compeft_server.domain.traffic import Score
from compeft_server.reports.figures.cost import led_cost
from compeft_server.reports.figures.report import Report
from compeft_server.reports.formats import text
from compeft_server.reports.formats.language import ENGLISH, Language


def summary(report: Report, price: Price | None = None, say: Language = ENGLISH) -> str:
    """Two to four sentences; where no saving may be stated, why not."""
    stated = report.stated.score if report.stated else None
    if report.silence or stated is None:
        return say(report.silence)
    return " ".join([_moved(report, say), _quality(report, stated, say), *_money(report, price, say)])


def _moved(report: Report, say: Language) -> str:
    values = {
        "first": say.day(report.first_ms or 0),
        "last": say.day(report.last_ms or 0),
        "clients": say.count(len(report.clients)),
        "wire": text.human_bytes(report.led.wire_bytes),
        "bf16": text.human_bytes(report.led.dense_bf16_bytes),
        "times": text.human_times(report.savings_bf16),
    }
    one_day = values["first"] == values["last"]
    sentence = "On {first}" if one_day else "From {first} to {last}"
    return say(sentence + ", {clients} client(s) moved {wire} instead of {bf16} as dense bf16: {times} fewer bytes.", **values)


def _quality(report: Report, stated: Score, say: Language) -> str:
    final, metric = text.human_score(report.metric, stated), text.printable(report.metric)
    source = text.stated_by(stated, say)
    if report.base is None:
        first = say("The {metric} is {final} ({source}); base only was not measured.", metric=metric, final=final, source=source)
    else:
        base, verb = text.human_score(report.metric, report.base), _verb(report.base.mean, stated.mean)
        first = say(
            f"The {{metric}} {verb} from {{base}} to {{final}} ({{source}}).",
            metric=metric,
            base=base,
            final=final,
            source=source,
        )
    if report.uncompressed is None:
        return f"{first} {say('Uncompressed was not measured.')}"
    change = text.human_change(report.metric, stated.mean, report.uncompressed.mean)
    other = text.human_score(report.metric, report.uncompressed)
    sentence = "Uncompressed it is {other}: a difference of {change}."
    if report.uncompressed.own:
        sentence = "Each client's own update, uncompressed, has {other} on its rows: a difference of {change}."
    return f"{first} {say(sentence, other=other, change=change)}"


def _verb(before: float, after: float) -> str:
    return "rose" if after > before else "fell" if after < before else "went"


def _money(report: Report, price: Price | None, say: Language) -> list[str]:
    if price is None:
        return []
    cost = led_cost(report, price)
    spent, saved = cost.wire, cost.dense_bf16 - cost.wire
    values = {
        "price": text.human_money(cost.wire / report.led.wire_bytes * GB, price.currency),
        "spent": text.human_money(spent, price.currency),
        "saved": text.human_money(saved, price.currency),
        "thousand": text.human_money(1000 * saved / max(1, report.rounds), price.currency),
    }
    words = "At your price of {price} a GB that is {spent}, {saved} less than dense bf16"
    return [say(words + ("; {thousand} less per 1,000 rounds." if report.rounds else "."), **values)]
