"""What the bandwidth report says, from small ledgers that are written by hand."""

import io
import json
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from compeft_core import layout_of
from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import UnknownExpertError
from compeft_proto.keys import new_key
from compeft_server.domain.records import Arm, Direction, Expert, Quality, Refusal, Role, Round, Submission, Transfer, Version
from compeft_server.domain.traffic import Traffic, add
from compeft_server.ledger.ledger import Ledger
from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.report import DenseArm, Report, link_times
from compeft_server.reports.formats.chart import NARROW, WIDE, curves_of, draw
from compeft_server.reports.formats.html import to_html
from compeft_server.reports.formats.json_format import dense_from_json, dense_to_json, to_json
from compeft_server.reports.formats.text import human_bytes, human_seconds, human_times, to_table

LAYOUT = layout_of({"a.lora_A": (8, 1000), "a.lora_B": (1000, 8)})
FP32 = 4 * LAYOUT.size
DENSE = DenseArm("accuracy", (0.50, 0.80, 0.90), 2, 20 * FP32, 21 * FP32, 12.5, "Flower's own counter")


@dataclass
class Story:
    """A ledger and short words for what happens in it."""

    ledger: Ledger
    expert: str = "sentiment"

    def member(self, name: str, role: Role = "edge") -> str:
        key = new_key().public
        self.ledger.enrol(name, key, role, 0)
        return key.keyid

    def publish(self) -> None:
        self.ledger.create(Expert(self.expert, b"b" * 32, b"c" * 32, LAYOUT), self.version(0))

    def version(self, number: int) -> Version:
        return Version(self.expert, number, b"", b"s" * 32, (), "run", number, 40, 0.25, 1000 * number)

    def open_round(self, number: int) -> Round:
        opened = Round(self.expert, "run", number, b"n" * 16, number - 1, 10**9, 1000 * number)
        self.ledger.open_round(opened)
        return opened

    def close_round(self, opened: Round, *keyids: str) -> None:
        number, digests = opened.round, []
        for keyid in keyids:
            digests.append(f"{number:>4}{keyid[:28]}".encode())
            sent = Submission(digests[-1], self.expert, "run", number, keyid, number, 10, b"", b"", 1000 * number + 500)
            self.ledger.accept(sent)
        closed = replace(opened, closed_at_ms=1000 * number + 900, version=number)
        self.ledger.close_round(closed, self.version(number), digests)

    def moved(self, keyid: str, direction: Direction, version: int, payload: int, wire: tuple[int, int]) -> None:
        transfer = Transfer(
            1000 * version + 600, direction, keyid, self.expert, "run", version, version, FP32, payload, *wire, seconds=0.1
        )
        self.ledger.record_transfer(transfer)

    def measured(self, client: str, arm: Arm, version: int, value: float, count: int = 10, metric: str = "accuracy") -> None:
        self.ledger.record_quality(Quality(0, self.expert, "run", version, version, arm, client, metric, value, count))

    def refused(self, at_ms: int, expert: str = "sentiment", reason: str = "a bad signature", peer: str = "ipv4:1") -> None:
        self.ledger.record_refusal(Refusal(at_ms, peer, expert, 0, "bad_signature", reason))


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(Ledger(tmp_path / "ledger.sqlite"))
    story.publish()
    return story


@pytest.fixture
def told(story: Story) -> Story:
    """Two clients and two rounds; the second client has three times the test examples of the first."""
    clients = {story.member("edge-a"): 10, story.member("edge-b"): 30}
    story.member("idle")
    operator = story.member("conductor", "conductor")
    for keyid in clients:
        story.moved(keyid, "down", 0, 0, (300, 700))
    for number in (1, 2):
        opened = story.open_round(number)
        for keyid in clients:
            story.moved(keyid, "up", number, 400, (900, 100))
        story.close_round(opened, *clients)
        for keyid in clients:
            story.moved(keyid, "down", number, 800, (200, 1300))
    story.moved(operator, "down", 2, 800, (111, 2222))
    for (keyid, count), offset in zip(clients.items(), (0.0, 0.04), strict=True):
        story.measured(keyid, "base", 0, 0.50 + offset, count)
        for number, value in enumerate((0.50, 0.76, 0.86)):
            story.measured(keyid, "synced", number, value + offset, count)
    return story


def printed(report: Report, width: int = 100) -> str:
    out = io.StringIO()
    Console(width=width, file=out).print(to_table(report))
    return out.getvalue()


def words_of(report: Report) -> str:
    """The page's text without its tags, styles and spaces in a row."""
    found: list[str] = []

    class Text(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Text().feed(to_html(report).split("</head>")[1])
    return " ".join(" ".join(found).split())


def bytes_of(traffic: Traffic) -> Traffic:
    return replace(traffic, seconds=0.0)


# Sums


def test_versions_and_clients_both_add_up_to_the_totals(told: Story) -> None:
    report = read_report(told.ledger, "sentiment")
    assert bytes_of(add(row.traffic for row in report.versions)) == bytes_of(report.traffic)
    assert bytes_of(add(row.up for row in report.clients)) == bytes_of(report.up)
    assert bytes_of(add(row.down for row in report.clients)) == bytes_of(report.down)
    assert add(row.traffic for row in report.versions).seconds == pytest.approx(report.traffic.seconds)
    assert report.versions[-1].cumulative_wire_bytes == report.traffic.wire_bytes == 2 * (1000 + 2 * 1000 + 2 * 1500)
    assert report.traffic.wire_received_bytes == 2 * (300 + 2 * 900 + 2 * 200)
    assert report.traffic.payload_bytes == 2 * 2 * (400 + 800)
    assert report.traffic.dense_fp32_bytes == 2 * 5 * FP32
    assert report.traffic.dense_bf16_bytes == 5 * FP32


def test_transfers_of_operators_are_summed_apart(told: Story) -> None:
    report = read_report(told.ledger, "sentiment")
    assert report.operator_wire_bytes == 2333
    assert [row.name for row in report.clients] == ["edge-a", "edge-b"]


def test_a_version_costs_the_uploads_that_made_it_and_the_syncs_that_delivered_it(told: Story) -> None:
    row = read_report(told.ledger, "sentiment").versions[2]
    assert (row.up.payload_bytes, row.down.payload_bytes) == (800, 1600)
    assert (row.up.wire_bytes, row.down.wire_bytes) == (2000, 3000)
    assert (row.participants, row.published, row.merge_seconds) == (2, True, 0.25)


def test_the_bytes_of_an_open_round_have_a_row_of_their_own(told: Story) -> None:
    keyid = next(m.public.keyid for m in told.ledger.members() if m.name == "edge-a")
    told.open_round(3)
    told.moved(keyid, "up", 3, 400, (900, 100))
    report = read_report(told.ledger, "sentiment")
    assert [(row.version, row.published) for row in report.versions][-1] == (3, False)
    assert report.versions[-1].cumulative_wire_bytes == report.traffic.wire_bytes
    assert report.rounds == 2
    assert "3 (open)" in printed(report)


def test_the_time_of_a_run_goes_from_the_start_of_the_first_transfer_to_the_end_of_the_last(told: Story) -> None:
    assert read_report(told.ledger, "sentiment").seconds == pytest.approx(2.1)
    assert read_report(told.ledger, "sentiment", seconds=7.0).seconds == 7.0


# Quality


def test_a_metric_is_the_mean_over_clients_weighted_by_their_examples(told: Story) -> None:
    report = read_report(told.ledger, "sentiment")
    score = report.versions[2].score
    assert score is not None
    assert (score.mean, score.low, score.high) == pytest.approx(((10 * 0.86 + 30 * 0.90) / 40, 0.86, 0.90))
    assert report.base is not None
    assert report.base.mean == pytest.approx(0.53)


def test_the_newest_measurement_of_a_client_counts(told: Story) -> None:
    keyid = read_report(told.ledger, "sentiment").clients[0].keyid
    told.ledger.record_quality(Quality(9, "sentiment", "run-2", 1, 2, "synced", keyid, "accuracy", 0.10, 10))
    score = read_report(told.ledger, "sentiment").versions[2].score
    assert score is not None
    assert (score.clients, score.low) == (2, 0.10)


def test_a_mean_stands_where_no_client_reported_for_itself(story: Story) -> None:
    story.measured("", "synced", 0, 0.7, count=0)
    score = read_report(story.ledger, "sentiment").versions[0].score
    assert score is not None
    assert score.mean == 0.7


def test_savings_are_dense_over_wire(told: Story) -> None:
    report = read_report(told.ledger, "sentiment")
    assert report.savings_fp32 == pytest.approx(10 * FP32 / 12000)
    assert to_json(report)["savings_bf16"] == pytest.approx(5 * FP32 / 12000)


def test_without_quality_no_saving_is_stated_but_words(story: Story) -> None:
    story.moved(story.member("edge-a"), "up", 1, 400, (900, 100))
    report = read_report(story.ledger, "sentiment")
    assert report.savings_fp32 is None
    for shown in (printed(report), words_of(report)):
        assert "No quality was reported" in shown
        assert "×" not in shown.replace("parameters × 4", "").replace("× 2 (bf16)", "")
    assert "instead of" not in words_of(report)
    assert to_json(report)["savings_fp32"] is None


def test_a_version_without_quality_has_no_saving_of_its_own(told: Story) -> None:
    keyid = read_report(told.ledger, "sentiment").clients[0].keyid
    told.close_round(told.open_round(3), keyid)
    told.moved(keyid, "down", 3, 800, (200, 1300))
    row = next(line for line in printed(read_report(told.ledger, "sentiment")).splitlines() if line.split()[:1] == ["3"])
    assert row.split()[1] == "–"
    assert row.split()[-2:] == ["–", "–"]


def test_wire_bytes_that_cannot_be_believed_give_no_saving(story: Story) -> None:
    keyid = story.member("edge-a")
    story.moved(keyid, "up", 1, 400, (0, 0))
    story.measured(keyid, "synced", 0, 0.9)
    report = read_report(story.ledger, "sentiment")
    assert report.savings_fp32 is None
    assert "wire was not counted" in printed(report)
    assert "<svg class" not in to_html(report)


def test_an_expert_without_a_transfer_is_reported_in_words(story: Story) -> None:
    report = read_report(story.ledger, "sentiment")
    assert "No transfer of an edge client" in printed(report)
    assert "No transfer of an edge client" in words_of(report)
    assert json.loads(json.dumps(to_json(report), allow_nan=False))["clients"] == 0


def test_an_unknown_expert_is_an_error_that_names_those_there_are(story: Story) -> None:
    with pytest.raises(UnknownExpertError, match="'nothing' here; there are: sentiment"):
        read_report(story.ledger, "nothing")


# Refusals


def test_refusals_count_for_the_version_in_the_making_whether_or_not_they_named_the_expert(told: Story) -> None:
    told.refused(at_ms=1100)
    told.refused(at_ms=2100, expert="")
    told.refused(at_ms=2200)
    told.refused(at_ms=2300, expert="another")
    told.refused(at_ms=10)
    report = read_report(told.ledger, "sentiment")
    assert [row.refused for row in report.versions] == [0, 1, 2]
    assert [r.at_ms for r in report.refusals] == [10, 1100, 2100, 2200]
    assert to_json(report)["refused"] == 4


# The dense run


def test_a_dense_run_survives_json() -> None:
    assert dense_from_json(dense_to_json(DENSE)) == DENSE
    assert dense_from_json(dense_to_json(replace(DENSE, metrics=(None, 0.8), base=0.5))).final == 0.8


@pytest.mark.parametrize(
    ("field", "value"),
    [("metrics", []), ("metrics", ["x"]), ("wire_bytes", -1), ("clients", True), ("seconds", "1"), ("base", "x"), ("more", 1)],
)
def test_a_dense_file_with_a_field_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    values = json.loads(dense_to_json(DENSE)) | {field: value}
    with pytest.raises(FormatError, match="object with" if field == "more" else field):
        dense_from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "{}", "NaN", '{"metric": 1}'])
def test_a_dense_file_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        dense_from_json(text)


def test_the_share_of_the_dense_gain_that_was_kept(told: Story) -> None:
    report = read_report(told.ledger, "sentiment", DENSE)
    assert report.retained_gain == pytest.approx((0.89 - 0.53) / (0.90 - 0.53))
    assert report.savings_measured == pytest.approx(21 * FP32 / 12000)
    assert "97 % of its gain" in printed(report)


def test_no_share_is_stated_of_a_gain_below_one_point(told: Story) -> None:
    assert read_report(told.ledger, "sentiment", replace(DENSE, metrics=(0.5, 0.53, 0.539))).retained_gain is None
    assert read_report(told.ledger, "sentiment", replace(DENSE, base=0.895)).retained_gain is None


def test_a_dense_run_of_another_size_is_shown_but_not_divided_by(told: Story) -> None:
    report = read_report(told.ledger, "sentiment", replace(DENSE, clients=3))
    assert report.savings_measured is None
    assert "dense run" in printed(report)


def test_a_dense_run_of_another_metric_cannot_be_compared(told: Story) -> None:
    with pytest.raises(InputError, match="measured 'f1', this expert 'accuracy'"):
        read_report(told.ledger, "sentiment", replace(DENSE, metric="f1"))


# JSON


def test_the_json_has_stable_keys_for_both_arms(told: Story) -> None:
    values = json.loads(json.dumps(to_json(read_report(told.ledger, "sentiment", DENSE)), allow_nan=False))
    same = {"base_accuracy", "final_accuracy", "rounds", "clients", "refused", "seconds"}
    same |= {"dense_fp32_bytes", "dense_bf16_bytes", "payload_bytes", "wire_bytes"}
    assert same <= set(values)
    assert same <= set(values["dense"])
    assert values["final_accuracy"] == pytest.approx(0.89)
    assert sum(v["up"]["wire_bytes"] + v["down"]["wire_bytes"] for v in values["versions"]) == values["wire_bytes"]
    assert sum(c["up"]["wire_bytes"] + c["down"]["wire_bytes"] for c in values["per_client"]) == values["wire_bytes"]


def test_keys_carry_the_name_of_the_metric(story: Story) -> None:
    story.measured("", "synced", 0, 1.25, metric="perplexity")
    values = to_json(read_report(story.ledger, "sentiment"))
    assert values["final_perplexity"] == 1.25
    assert values["base_perplexity"] is None


# For people


def test_link_times_are_those_of_one_client_and_follow_each_direction(told: Story) -> None:
    ten, _, mobile = link_times(read_report(told.ledger, "sentiment"))
    assert ten.dense_fp32 == pytest.approx(8 * 5 * FP32 / 10e6)
    assert ten.dense_bf16 == pytest.approx(ten.dense_fp32 / 2)
    assert mobile.wire == pytest.approx(8 * (2500 / 5e6 + 3500 / 20e6))


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_fits_the_terminal(told: Story, width: int) -> None:
    text = printed(read_report(told.ledger, "sentiment", DENSE), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("kB") > 20
    assert "…" not in text


def test_names_and_reasons_are_text_and_nothing_else(told: Story) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m\u202e[bold]"
    told.moved(told.member(hostile), "up", 2, 400, (900, 100))
    told.refused(at_ms=2100, reason=hostile, peer='"><img src=x onerror=alert(1)>')
    dense = replace(DENSE, counted="</dd><script>", metric="accuracy")
    report = read_report(told.ledger, "sentiment", dense)
    html = to_html(report)
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html + printed(report)
    assert "\u202e" not in html


def test_the_page_asks_for_nothing_and_describes_its_picture(told: Story) -> None:
    html = to_html(read_report(told.ledger, "sentiment", DENSE))
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html
    assert html.count('role="img"') == 2
    assert "reaches accuracy 89.0 % after 12.0 kB on the wire" in html
    assert "The base model alone, with zero bytes, has 53.0 %" in html


def test_every_saving_on_the_page_has_its_quality_beside_it(told: Story) -> None:
    words = words_of(read_report(told.ledger, "sentiment", DENSE))
    for number, after in enumerate(words.split("53.3×")[1:]):
        assert "89.0 %" in after[:120] or number == 1  # the second is the total's cell, with the metric in the same row


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5), (0.0, 0.0), (0.1, 0.99), (-3.0, 2e6), (0.333, 0.3331), (1e-9, 2e-9)])
def test_every_point_and_tick_lies_in_the_drawing(story: Story, values: tuple[float, ...]) -> None:
    keyid = story.member("edge-a")
    for number, value in enumerate(values):
        story.moved(keyid, "down", number, 10**number, (0, 3 * 10**number))
        story.measured(keyid, "synced", number, value, metric="score")
    for frame in (WIDE, NARROW):
        chart = draw(curves_of(read_report(story.ledger, "sentiment")), frame)
        assert chart is not None
        assert all(frame.x0 <= point.x <= frame.x1 for point in chart.synced)
        assert all(frame.top <= y <= frame.y0 + 1e-6 for y in [p.y for p in chart.synced] + [t.at for t in chart.y_ticks])
        assert all(frame.x0 - 1e-6 <= tick.at <= frame.x1 + 1e-6 for tick in chart.x_ticks)
        assert chart.synced[-1].label == f"v{len(values) - 1}"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (15_640, "15.6 kB"),
        (999_600, "1.00 MB"),
        (1_330_184, "1.33 MB"),
        (4e12, "4.00 TB"),
    ],
)
def test_bytes_are_shown_in_three_digits(count: float, shown: str) -> None:
    assert human_bytes(count) == shown


def test_times_and_savings_are_shown_in_three_digits() -> None:
    assert [human_seconds(s) for s in (0.0, 0.0421, 0.9999, 12.34, 900)] == ["0 s", "42.1 ms", "1.00 s", "12.3 s", "15.0 min"]
    assert [human_times(r) for r in (None, 0.5, 9.999, 47.31, 312.4, 1234.0)] == [
        "–",
        "0.50×",
        "10.0×",
        "47.3×",
        "312×",
        "1,234×",
    ]


@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation", "ppl"])
def test_the_table_fits_80_columns_with_the_widest_cells(told: Story, metric: str) -> None:
    report = replace(read_report(told.ledger, "sentiment"), metric=metric)
    wide = replace(
        report.versions[-1].traffic, payload_bytes=123_456, wire_sent_bytes=123_456_789, dense_fp32_bytes=12_345_678_901
    )
    rows = tuple(replace(row, up=wide, down=wide) for row in report.versions)
    lines = printed(replace(report, versions=rows, uncompressed=report.base), 200).splitlines()
    table = lines[: next(n for n, line in enumerate(lines) if line.startswith("total")) + 1]
    assert any("123 MB" in line and "24.7 GB" in line for line in table)
    assert max(map(len, table)) <= 80
