"""The load test's arithmetic: traces, stages, histograms, the ledger, the knee and the verdicts."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from loadtests.criteria import Measured, Verdict
    from loadtests.recorder import Window

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "examples" / "demo" / "recordings"


@pytest.fixture(autouse=True)
def load_tests_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the load tests importable, and of the checkout nothing else: tox tests the wheel."""
    for name in ("loadtests", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.syspath_prepend(str(tmp_path))


# --- traces and mixes


def test_made_runs_are_always_the_same_and_have_the_sizes_of_the_recorded_ones() -> None:
    """The median message of a role is what was measured, within the width of its deciles."""
    from loadtests.agents_shape import SIZES, synthetic

    traces = [synthetic(number) for number in range(40)]
    assert traces == [synthetic(number) for number in range(40)]
    assert traces[0] != synthetic(0, seed=1)
    for role in ("user", "assistant", "tool"):
        sizes = [
            len(json.dumps(turn.message))
            for trace in traces
            for turn in trace.turns
            if turn.message["role"] == role
        ]
        assert SIZES[role][2] <= statistics.median(sizes) <= SIZES[role][6]
        assert max(sizes) <= SIZES[role][-1]


def test_a_run_has_as_many_rounds_as_a_recorded_one_and_a_record_for_each() -> None:
    """Every answer of the model comes with the record of a tool's work, nothing else does."""
    from loadtests.agents_shape import ROUNDS, synthetic

    for number, rounds in enumerate(ROUNDS):
        turns = synthetic(number).turns
        assert [turn.message["role"] for turn in turns].count("assistant") == rounds
        assert [turn.record is not None for turn in turns].count(True) == rounds


def test_recorded_runs_are_replayed_message_by_message() -> None:
    """The messages that are appended are those of the recordings, in their order."""
    from examples.demo import recordings
    from loadtests.agents_shape import agent_script, load_traces
    from loadtests.steps import Kind

    traces = load_traces(RECORDINGS)
    wanted = [turn.message for one in recordings.load(RECORDINGS) for turn in one.turns]
    appended = (step.value for step in agent_script(traces) if step.kind is Kind.APPEND)
    assert list(itertools.islice(appended, len(wanted))) == wanted


def test_an_agent_recalls_its_run_before_it_forgets_it() -> None:
    """Whatever is cleared was compared with the ledger first."""
    from loadtests.agents_shape import agent_script, synthetic
    from loadtests.steps import Kind

    kinds = [step.kind for step in itertools.islice(agent_script([synthetic(0)]), 500)]
    cleared = [at for at, kind in enumerate(kinds) if kind is Kind.CLEAR]
    assert len(cleared) > 2
    begun = [0, *cleared]
    for since, until in itertools.pairwise(begun):
        assert Kind.RECALL in kinds[since:until]


def test_mixes_write_as_often_as_they_say() -> None:
    """Five and eighty of a hundred steps."""
    from loadtests.agents_shape import synthetic
    from loadtests.mixes import MIXES
    from loadtests.steps import Kind

    for name, wanted in (("reads", 0.05), ("writes", 0.8)):
        script = MIXES[name][0].role.script([synthetic(0)], 3)
        kinds = [step.kind for step in itertools.islice(script, 50, 8050)]
        writes = sum(kind not in {Kind.GET, Kind.RECALL} for kind in kinds) / len(kinds)
        assert writes == pytest.approx(wanted, abs=0.06)


def test_every_kind_of_step_can_be_done_over_the_library() -> None:
    """No kind is known to the scripts only."""
    from loadtests import library_calls
    from loadtests.steps import Kind

    assert set(library_calls._DO) == set(Kind)


def test_the_environment_is_checked_before_anything_is_loaded() -> None:
    """A wrong mix, target or stage is named; the token is never shown."""
    from loadtests.mixes import UnknownMixError
    from loadtests.settings import SettingsError, load_settings
    from loadtests.stages import StagesError

    with pytest.raises(UnknownMixError, match="no mix 'x'; there are agents"):
        load_settings({"LLMSPELL_LOAD_MIX": "x"})
    with pytest.raises(SettingsError, match="must be sidecar or library"):
        load_settings({"LLMSPELL_LOAD_TARGET": "x"})
    with pytest.raises(StagesError, match="USERSxSECONDS"):
        load_settings({"LLMSPELL_LOAD_STAGES": "50x"})
    settings = load_settings({"LLMSPELL_TOKEN": "s3cret"})
    assert (settings.token, settings.target) == ("s3cret", "sidecar")
    assert "s3cret" not in repr(settings)


# --- stages and histograms


def test_stages_are_text_and_bounded() -> None:
    """There and back; an hour is the most, and what is no stage is refused."""
    from loadtests.stages import StagesError, format_stages, parse_stages, total_s

    stages = parse_stages("50x10, 100x2.5")
    assert format_stages(stages) == "50x10,100x2.5"
    assert total_s(stages) == 12.5
    for text in ("", "0x10", "10x0", "10", "ax1", "10xnan", "20000x1", "1x3601", "1x3000,1x3000"):
        with pytest.raises(StagesError):
            parse_stages(text)


def test_a_histogram_tells_percentiles_within_its_width() -> None:
    """From microseconds to minutes within 2 %, also after JSON and a merge."""
    from loadtests.histogram import Histogram

    low, high = Histogram(), Histogram()
    for number in range(1, 1001):
        (low if number % 2 else high).add(number / 10)
    low.merge(Histogram.from_json(json.loads(json.dumps(high.to_json()))))
    assert low.count == 1000
    assert low.mean_ms == pytest.approx(50.05)
    for percent in (50, 95, 99, 100):
        assert low.percentile_ms(percent) == pytest.approx(percent, rel=0.021)
    assert Histogram().percentile_ms(99) == 0.0
    tiny = Histogram()
    tiny.add(0.0)
    assert tiny.percentile_ms(50) == pytest.approx(0.001)


def test_only_what_ends_within_a_settled_stage_counts_but_every_failure_does() -> None:
    """The first seconds of a stage and what comes after the last one are left out."""
    from loadtests.recorder import Recorder
    from loadtests.stages import parse_stages

    recorder = Recorder(parse_stages("10x6,20x6"))
    recorder.begin(now=1000.0)
    for now in (1001.0, 1003.0, 1007.0, 1009.0, 1011.0, 1013.0):
        recorder.add("get", _histogram(1.0), {"Boom": 1}, now=now)
    assert [window.steps.count for window in recorder.windows] == [1, 2]
    assert recorder.failures == {"get: Boom": 6}
    assert recorder.windows[1].failures == {"get: Boom": 2}
    assert recorder.requests == 6


def test_what_waits_for_others_is_no_part_of_what_was_offered() -> None:
    """Leases and deliveries are counted under their names only."""
    from loadtests.recorder import Recorder
    from loadtests.stages import parse_stages

    recorder = Recorder(parse_stages("10x6"))
    recorder.begin(now=0.0)
    for name in ("get", "delivery", "subscribe", "count under lease: acquire"):
        recorder.add(name, _histogram(1.0), now=3.0)
    window = recorder.windows[0]
    assert window.steps.count == 1
    assert len(window.names) == 4


def test_a_stage_in_which_everything_stalls_was_offered_what_its_users_wanted() -> None:
    """Nothing ends there; users of the next stage come a little before it."""
    from loadtests.recorder import Recorder
    from loadtests.stages import parse_stages

    recorder = Recorder(parse_stages("10x6,20x6,20x6"))
    recorder.begin(now=0.0)
    for came in (0.1, 0.2, 5.9, 6.1):
        recorder.wants(50.0, now=came)
    recorder.add("get", _histogram(*[1.0] * 500), now=3.0)
    recorder.end(now=18.0)
    assert [window.offered for window in recorder.windows] == [100.0, 200.0, 200.0]
    assert [window.kept_up for window in recorder.windows] == [True, False, False]


def test_a_ramp_is_over_once_two_stages_in_a_row_fell_behind() -> None:
    """One bad stage may be a disturbance; two are the end."""
    from loadtests.recorder import Recorder
    from loadtests.stages import parse_stages

    recorder = Recorder(parse_stages("10x6,20x6,30x6,40x6"))
    recorder.begin(now=0.0)
    recorder.wants(100 / 4, now=0.5)
    for window, done in zip(recorder.windows, (100, 10, 100, 10), strict=True):
        window.steps = _histogram(*[1.0] * done)
    told = [recorder.overloaded(now=now) for now in (0.0, 6.0, 12.0, 18.0)]
    assert told == [False] * 4
    recorder.windows[2].steps = _histogram(1.0)
    assert recorder.overloaded(now=18.0)


# --- the ledger


def test_a_lost_update_and_one_that_came_twice_are_both_noticed() -> None:
    """Between acknowledged and sent everything can be; outside nothing."""
    from loadtests.ledger import Ledger, LostUpdateError

    ledger = Ledger()
    tally = ledger.of("custom:board", "calls")
    tally.sent, tally.acknowledged = 10, 8
    for found in (8, 9, 10):
        ledger.check("custom:board", "calls", found)
    for found in (7, 11):
        with pytest.raises(LostUpdateError, match="8 acknowledged, 10 sent"):
            ledger.check("custom:board", "calls", found)
    assert len(ledger.problems) == 2
    ledger.check_bank("custom:bank", {"1": 3, "2": -3})
    assert len(ledger.problems) == 2
    ledger.check_bank("custom:bank", {"1": 3, "2": -2})
    assert "add up to 1" in ledger.problems[-1]


def test_ledgers_of_several_processes_add_up() -> None:
    """What one wrote as JSON another one reads and adds."""
    from loadtests.ledger import Ledger

    one, other = Ledger(), Ledger()
    for ledger in (one, other):
        ledger.of("custom:board", "calls").sent += 2
        ledger.banks.add("custom:bank")
        ledger.checked += 1
    other.problems.append("gone")
    one.merge(Ledger.from_json(json.loads(json.dumps(other.to_json()))))
    assert (one.of("custom:board", "calls").sent, one.checked) == (4, 2)
    assert one.problems == ["gone"]


async def test_the_state_is_compared_with_what_was_acknowledged(memory_spell: Any) -> None:
    """A counter that lost one, a list that lost one and a bank that lost one are named."""
    from loadtests.ledger import Ledger
    from loadtests.running import compare

    spell, url = memory_spell
    for user, lost in (("whole", 0), ("robbed", 1)):
        ledger = Ledger()
        for key in ("calls", "messages"):
            tally = ledger.of(f"custom:{user}", key)
            tally.sent = tally.acknowledged = 5
        ledger.banks.add(f"custom:bank-{user}")
        await spell.state.increment(f"custom:{user}", "calls", 5 - lost)
        await spell.state.append(f"custom:{user}", "messages", *range(5 - lost))
        await spell.state.set(f"custom:bank-{user}", "1", 2)
        await spell.state.set(f"custom:bank-{user}", "2", -2 - lost)
        await compare(ledger, url, "llmspell")
        assert len(ledger.problems) == 3 * lost
        assert ledger.checked == 4


@pytest.fixture
async def memory_spell() -> Any:
    """Give a client of a server in this process, and its URL."""
    import llmspell_dist
    from llmspell_dist.testing import memory_url

    with memory_url() as url:
        async with llmspell_dist.connect(url) as spell:
            yield spell, url


def test_a_subscriber_notices_a_gap_and_a_repetition_but_not_what_it_was_told() -> None:
    """Each publisher's numbers go up by one; after ``missed`` they begin anew."""
    from loadtests.feed_numbers import Hearing, Numbering
    from loadtests.ledger import Ledger

    numbers, ledger = Numbering(), Ledger()
    hearing = Hearing(ledger)
    news = [numbers.next_news("event", "anna") for _ in range(6)]
    assert hearing.take({"no": "news"}) is None
    assert hearing.take(news[0]) is not None
    hearing.take(numbers.next_news("event", "ben"))
    hearing.take(news[1])
    assert ledger.problems == []
    hearing.take(news[3])
    hearing.take(news[3])
    assert [" ".join(text.split()[4:6]) for text in ledger.problems] == ["came after", "came twice"]
    hearing.missed()
    hearing.take(news[5])
    assert len(ledger.problems) == 2


# --- the knee and the verdicts


def test_the_knee_is_the_last_stage_that_kept_up() -> None:
    """A stage that was disturbed on the way is passed over; it is open if the last one kept up."""
    from loadtests.knee import find_knee

    knee = find_knee([_window(100, 100), _window(200, 150), _window(300, 296), _window(400, 310)])
    assert knee is not None
    assert (knee.number, knee.reached) == (2, True)
    assert knee.throughput == pytest.approx(296)
    open_end = find_knee([_window(100, 100), _window(200, 199)])
    assert open_end is not None
    assert not open_end.reached
    assert str(open_end).startswith("at least 199")
    assert find_knee([_window(100, 50)]) is None
    assert find_knee([_window(0, 0)]) is None


def test_a_load_without_fault_passes() -> None:
    """Every criterion of a ramp and of a hold holds, and says by which figures."""
    for kind in ("ramp", "hold"):
        verdicts = _judged(kind)
        assert len(verdicts) > 5
        assert [one.criterion for one in verdicts if not one.holds] == []
        assert all(one.facts for one in verdicts)


@pytest.mark.parametrize(
    ("kind", "broken", "criterion"),
    [
        ("ramp", {"ended": False}, "ends by itself"),
        ("ramp", {"failures": {"get: HTTPAnswerError: 503 ": 1}}, "no error"),
        ("ramp", {"requests": 0}, "no error"),
        ("ramp", {"problems": ["calls: 7 found"]}, "no lost update"),
        ("ramp", {"checked": 0}, "no lost update"),
        ("ramp", {"windows": "silent"}, "events are delivered"),
        ("ramp", {"windows": "never"}, "keeps up at first"),
        ("ramp", {"windows": "slow"}, "p95 up to 70% of the knee"),
        ("ramp", {"windows": "slow"}, "p99 up to 70% of the knee"),
        ("hold", {"windows": "never"}, "does 90% of what is offered"),
        ("hold", {"windows": "none"}, "does 90% of what is offered"),
        ("hold", {"windows": "stalled"}, "does 90% of what is offered"),
        ("hold", {"windows": "stalled"}, "p95 up to 70% of the knee"),
        ("ramp", {"windows": "none"}, "keeps up at first"),
        ("ramp", {"windows": "stalled"}, "p99 up to 70% of the knee"),
        ("hold", {"windows": "slow"}, "p95 up to 70% of the knee"),
        ("hold", {"steady": "grown"}, "memory stays"),
        ("hold", {"steady": {}}, "memory stays"),
    ],
)
def test_each_fault_fails_its_own_criterion(
    kind: str, broken: dict[str, Any], criterion: str
) -> None:
    """A result that was made bad in one way is judged bad by the criterion that is about it."""
    verdicts = {one.criterion: one.holds for one in _judged(kind, **broken)}
    assert verdicts[criterion] is False


def test_memory_is_judged_by_means_after_warm_up() -> None:
    """Growth of 4 % holds and of 6 % does not; one sample that jumps is no growth."""
    from loadtests.sampling import Sample, usage

    def grown(last: int) -> float:
        sizes = [100] * 20 + [150] + [100] * 60 + [last] * 20
        samples = [
            Sample(float(at), "sidecar", at / 2, at / 4, size) for at, size in enumerate(sizes)
        ]
        return usage(samples, 0.0, 200.0)["sidecar"].growth

    assert grown(104) == pytest.approx(0.04)
    assert grown(106) == pytest.approx(0.06)


def test_cpu_of_a_stage_is_told_by_process_by_thread_and_of_everything_else() -> None:
    """Cores are seconds of CPU by seconds; the machine's own counters give the rest."""
    from loadtests.sampling import OTHERS, Sample, usage

    samples = [
        sample
        for at in range(11)
        for sample in (
            Sample(float(at), "sidecar", at * 0.75, at * 0.5, 1),
            Sample(float(at), OTHERS, at * 1.75, 0.0, 0),
        )
    ]
    used = usage(samples, 2.0, 8.0)
    assert used["sidecar"].cores == pytest.approx(0.75)
    assert used["sidecar"].busiest_thread == pytest.approx(0.5)
    assert used[OTHERS].cores == pytest.approx(1.0)


def test_a_report_holds_verdicts_figures_and_plots_that_stand_alone(tmp_path: Path) -> None:
    """The tables are rectangular, the JSON can be read, the SVG loads nothing from elsewhere."""
    from loadtests import plots, report

    load = _measured("ramp")
    drawn = plots.draw(load, tmp_path / "plots")
    assert len(drawn) == 3
    for path in drawn:
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert 'href="http' not in text.replace('href="http://www.w3.org', "")
    verdicts = _judged("ramp", failures={"get: <Boom>": 2})
    page = report.write_page(tmp_path, [load], verdicts, drawn)
    assert "<Boom>" not in page.read_text(encoding="utf-8")
    written = report.write_summary(tmp_path, report.summary({}, [load], verdicts))
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["holds"] is False
    assert content["loads"][0]["knee"]["users"] == 40
    assert len({line.count("|") for line in report.markdown(load).splitlines()}) == 1


# --- what was measured, made up


def _histogram(*durations: float) -> Any:
    from loadtests.histogram import Histogram

    found = Histogram()
    for ms in durations:
        found.add(ms)
    return found


def _window(offered: int, achieved: int, ms: float = 1.0, *, silent: bool = False) -> Window:
    from loadtests.recorder import Window

    window = Window(users=offered // 10, offered=float(offered), since=0.0, until=10.0)
    window.add("get", _histogram(*[ms] * (achieved * 10)))
    if not silent:
        window.add("delivery", _histogram(2.0))
    return window


def _windows(kind: str) -> list[Window]:
    if kind == "never":
        return [_window(100, 50), _window(200, 60)]
    if kind == "none":
        return []
    if kind == "stalled":
        return [_window(100, 100), _window(200, 0), _window(400, 400), _window(600, 0)]
    if kind == "slow":
        return [_window(100, 100), _window(200, 200, ms=90.0), _window(400, 400)]
    silent = kind == "silent"
    return [
        _window(offered, achieved, silent=silent)
        for offered, achieved in ((100, 100), (200, 200), (400, 400), (600, 420))
    ]


def _measured(kind: str, **changed: Any) -> Measured:
    from loadtests.criteria import Measured
    from loadtests.profiles import Plan
    from loadtests.sampling import Usage
    from loadtests.stages import Stage

    windows = changed.pop("windows", "good")
    if changed.get("steady") == "grown":
        changed["steady"] = {"sidecar": Usage(0.5, 0.4, 100_000_000, 106_000_000)}
    facts: dict[str, Any] = {
        "windows": _windows(windows) if kind == "ramp" or windows != "good" else [_window(90, 89)],
        "requests": 12_000,
        "failures": {},
        "problems": [],
        "checked": 700,
        "usages": [{"sidecar": Usage(0.8, 0.7, 1, 1), "locust": Usage(0.5, 0.5, 1, 1)}] * 4,
        "steady": {"sidecar": Usage(0.5, 0.4, 100_000_000, 104_000_000)},
        "unloaded_ms": 1.0,
    }
    plan = Plan("mixed", "mixed", "sidecar", kind, (Stage(10, 10),))
    return Measured(plan, **facts | changed)


def _judged(kind: str, **changed: Any) -> list[Verdict]:
    from loadtests.criteria import judge
    from loadtests.profiles import Limits

    return judge(_measured(kind, **changed), Limits())
