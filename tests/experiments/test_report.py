"""A report shows all that was computed, as text, and asks nobody for anything."""

import base64
import csv
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments._command import cli
from experiments._command.config import ConfigError
from experiments._command.tables import cell
from experiments._report import page as report
from experiments._report.hover import to_svg
from experiments._report.inline_svg import inline
from experiments._report.style import figure_style, panels
from experiments._store import store
from experiments._store.store import Row

EVIL = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements of a page with the text in them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in {"meta", "br", "link", "img"}:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, _, texts in self._open:
            texts.append(data)

    def texts(self, tag, **attributes):
        return [
            "".join(texts)
            for found, held, texts in self.elements
            if found == tag and attributes.items() <= held.items()
        ]

    def attributes(self, name):
        return [held[name] for _, held, _ in self.elements if name in held]


def drawing(text=EVIL):
    """An SVG file as matplotlib writes it, with clip paths and this title."""
    with figure_style():
        figure, (axes,) = panels()
        axes.plot([0, 1, 2], [0, 1, 4], "o-")
        axes.set_title(text)
        return to_svg(figure)


@pytest.fixture
def run_folder(tmp_path):
    """Make a run's folder: records, status and figures to its path."""

    def make(records, status="finished", figures=(), name="one", tail=""):
        folder = tmp_path / "runs" / "learning_rate" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            f"experiment: learning_rate\ndata: {{path: '{EVIL}.csv'}}\n"
        )
        provenance = {
            "command": ["a", "b c"],
            "versions": {"jax": EVIL},
            "status": status,
        }
        (folder / "provenance.json").write_text(json.dumps(provenance))
        (folder / "data.json").write_text(json.dumps({"columns": [EVIL]}))
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / "records.jsonl").write_text("".join(lines) + tail)
        for figure in figures:
            (folder / f"{figure}.svg").write_text(drawing())
        return folder

    return make


@pytest.fixture
def sweep_store(tmp_path):
    """Make a store: (config, status, error, records) of each point to its path."""

    def make(*points, experiment="no_experiment", name="sweep"):
        path = tmp_path / f"{name}.sqlite"
        with store.writing(path) as writer:
            writer.note("sweep", {"experiment": experiment, "note": EVIL})
            for index, (config, status, error, records) in enumerate(points):
                row = Row(
                    key=str(index),
                    experiment=experiment,
                    config={"experiment": experiment, **config},
                    status=status,
                    error=error,
                    records=records,
                    provenance={"code_version": "v", "host": f"h{index}"},
                    seconds=0.5,
                    attempts=1,
                    finished_at=f"2026-01-01T00:00:{index:02}",
                )
                writer.write(row)
        return path

    return make


@pytest.fixture
def page(tmp_path):
    """The report of some sources, by the command line."""

    def make(*sources):
        out = tmp_path / "report.html"
        assert cli.main(["report", *map(str, sources), "--out", str(out)]) == 0
        return out.read_text(encoding="utf-8")

    return make


RECORDS = [
    {"T": 10, "eta_closed": 0.1, "eta_learned": 1 / 3, EVIL: EVIL, "curve": [1, 2]},
    {"T": 9, "eta_closed": 2e-9, "eta_learned": float("nan"), EVIL: "b"},
    {"T": 100, "eta_closed": -3.0, "eta_learned": 3.0, EVIL: None, "late": True},
    {"table": f"{EVIL} table", "x": 1},
]


def test_a_run_shows_its_tables_config_provenance_and_figures(run_folder, page):
    folder = run_folder(RECORDS, figures=["first", "second"])
    found = Page(page(folder))
    assert found.texts("h3") == ["learning_rate", f"{EVIL} table"]
    heads = found.texts("th")
    assert heads == ["T", "eta closed", "eta learned", EVIL, "late", "x"]
    assert found.texts("td")[:5] == ["10", "0.1", "0.3333", EVIL, ""]
    assert found.texts("td")[5:8] == ["9", "2e-09", "nan"]
    assert found.attributes("title") == [repr(1 / 3)]  # the others are exact
    assert found.texts("figcaption") == ["first.svg", "second.svg"]
    assert "".join(found.texts("pre")).startswith("experiment: learning_rate")
    assert found.texts("dt") == ["command", "versions.jax", "columns"]
    assert found.texts("dd")[0] == "a 'b c'"
    assert "finished" in found.texts("span")
    assert any("Which learning rate is best after T" in t for t in found.texts("p"))


def test_text_of_configs_data_and_figures_stays_text(run_folder, sweep_store, page):
    run = run_folder(RECORDS, figures=["first"])
    failed = ({"x": EVIL}, "failed", f"Traceback\n{EVIL}", [])
    good = ({"x": "b", EVIL: 1}, "finished", None, [{EVIL: 1}])
    text = page(run, sweep_store(failed, good, experiment=EVIL))
    assert "<script>alert" not in text
    found = Page(text)
    assert len(found.texts("script")) == 1
    assert found.texts("script")[0] == (
        (Path(report.__file__).parent / "report.js").read_text().strip()
    )
    for tag in ("h2", "th", "td", "dd", "pre", "text", "title", "code"):
        assert any(EVIL in content for content in found.texts(tag)), tag
    names = {name for _, held, _ in found.elements for name in held}
    assert not [name for name in names if name.startswith("on")]


def test_figures_share_no_ids_and_refer_to_their_own(run_folder, page):
    many = [f"figure_{index}" for index in range(report.MAX_FIGURES + 1)]
    text = page(run_folder(RECORDS, figures=many), run_folder([], name="two"))
    assert Page(text).texts("figcaption") == [f"{name}.svg" for name in many]
    assert "The other 1 of 5 figures" in text
    found = Page(text)
    counts = Counter(found.attributes("id"))
    assert max(counts.values()) == 1
    references = re.findall(r"url\(#([^)]*)\)", text)
    references += [link[1:] for link in found.attributes("href") if link[0] == "#"]
    assert len([name for name in references if name.startswith("s1-f2-")]) > 2
    assert set(references) <= set(counts)


def test_a_drawing_keeps_its_shapes_and_loses_what_acts():
    text = (
        '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)" width="72pt" '
        'height="36pt" xmlns:xlink="http://www.w3.org/1999/xlink">'
        "<script>alert(1)</script><style>* {color: red}</style>"
        '<foreignObject><p xmlns="http://www.w3.org/1999/xhtml">p</p></foreignObject>'
        '<a xlink:href="https://example.org"><path d="M 0 0"/></a>'
        '<image xlink:href="https://example.org/a.png"/>'
        '<image xlink:href="data:image/png;base64,AA=="/>'
        '<image xlink:href="data:image/svg+xml;base64,AA=="/>'
        '<path id="p" style="fill: url( &quot;#q&quot; )" clip-path="url(#q)"/>'
        '<path style="fill: url(https://example.org/#q)"/>'
        '<use xlink:href="#p" ONCLICK="alert(1)"/><text>a &lt; b</text></svg>'
    )
    found = inline(text, "x-", "a drawing")
    assert "alert" not in found
    assert "example.org" not in found
    for tag in ("script", "style>", "foreignObject", "<a", "svg+xml"):
        assert tag not in found
    assert found.count("<image") == 3
    assert found.count("data:image/png") == 1
    assert 'id="x-p"' in found
    assert 'href="#x-p"' in found
    assert found.count("url(#x-q)") == 2
    assert "a &lt; b" in found
    assert 'viewBox="0 0 72 36"' in found
    assert 'aria-label="a drawing"' in found


def test_points_of_a_figure_say_their_values_on_hovering():
    with figure_style():
        figure, (left, right) = panels(2)
        x, y = [1, 10, 100], [1 / 3, 1e-9, 2.5]
        left.plot(x, y, "o-", label=f"{EVIL} & η*")
        left.plot(x, [1e-3, math.nan, -1.0], "x")
        left.scatter([20.0, 30.0], [0.5, 0.25])
        left.set(xscale="log", yscale="log")
        right.bar(["a", "b"], [3.0, 4.5], label="bytes")
        found = inline(to_svg(figure), "x-", "")
    titles = Page(found).texts("title")
    label = f"{EVIL} & η*"
    assert titles == [
        "x = 20, y = 0.5",
        "x = 30, y = 0.25",
        label,
        f"{label}: x = 1, y = 0.3333333",
        f"{label}: x = 10, y = 1e-09",
        f"{label}: x = 100, y = 2.5",
        "x = 1, y = 0.001",
        "bytes: 3",
        "bytes: 4.5",
    ]


@pytest.mark.parametrize("text", ["", "<svg", "<html/>", "<svg/>"])
def test_what_is_no_drawing_is_refused(text):
    with pytest.raises(ConfigError, match=r"SVG"):
        inline(text, "x-", "")


def test_no_column_is_shown_twice(sweep_store, page):
    same = {"x": 1, "y": 2}, "finished", None, [{"x": 1, "y": 2, "z": 3}]
    other = {"x": 2, "y": 3}, "finished", None, [{"x": 2, "y": 4, "z": 3}]
    heads = Page(page(sweep_store(same, other))).texts("th")
    assert heads[:4] == ["x", "y", "record.y", "z"]


def test_a_long_text_is_cut_and_whole_on_hovering(run_folder, page):
    text = "UnexpectedTracerError: " + "a" * 200
    found = Page(page(run_folder([{"way": text}])))
    (shown,) = found.texts("td")
    assert len(shown) == report.MAX_TEXT
    assert shown.endswith("…")
    assert found.attributes("title") == [text]


def test_a_sweep_lists_each_point_without_a_result(sweep_store, page):
    points = [
        ({"x": 1, "part": {"y": 2}, "same": 7}, "finished", None, [{"square": 1.0}]),
        ({"x": 2, "part": {"y": 2}, "same": 7}, "failed", "Trace\nValueError: a", []),
        ({"x": 3, "part": {"y": 3}, "same": 7}, "timed_out", "after 5 s", []),
    ]
    found = Page(page(sweep_store(*points)))
    assert "2 without result" in found.texts("span")
    summaries = found.texts("summary")
    assert "failed: x = 2, part.y = 2ValueError: a" in summaries
    assert "timed out: x = 3, part.y = 3after 5 s" in summaries
    assert "Trace\nValueError: a" in found.texts("pre")
    assert found.texts("h3")[1:] == ["no_experiment", "points"]
    assert found.texts("th")[:3] == ["x", "part.y", "square"]
    assert found.texts("td")[:3] == ["1", "2", "1"]
    assert any("1 finished, 1 failed, 1 timed out" in p for p in found.texts("p"))


def test_many_points_without_a_result_are_folded_and_all_there(sweep_store, page):
    count = report.MAX_FAILURES + 3
    points = [({"x": i}, "failed", f"E{i}", []) for i in range(count)]
    found = Page(page(sweep_store(*points)))
    assert set(found.texts("pre")) >= {f"E{i}" for i in range(count)}
    assert any(text.startswith("The other 3") for text in found.texts("summary"))


def test_half_a_character_spoils_no_report(run_folder, page):
    """JSON can hold a lone surrogate, UTF-8 cannot."""
    assert Page(page(run_folder([{"name": "a\ud800b"}]))).texts("td") == ["a\\ud800b"]


def test_a_sweep_is_drawn_by_its_experiment_once_for_each_setting(sweep_store, page):
    def point(data, steps):
        curve = {"eta": [0.1, 0.2], "unrolled": [2.0, 3.0], "closed": [2.0, 3.0]}
        curve |= {"minimum": 1.0, "asymptotic_rate": 0.15}
        etas = {"eta_closed": 0.1, "eta_learned": 0.1}
        losses = {"loss_closed": 2.0, "loss_learned": 2.0}
        record = {"T": steps, **etas, **losses, "curve": curve}
        return {"data": {"name": data}, "steps": [steps]}, "finished", None, [record]

    points = [point("diabetes", 1), point("diabetes", 10), point("digits", 1)]
    found = Page(page(sweep_store(*points, experiment="learning_rate")))
    assert found.texts("figcaption") == [
        "learning_rate.svg (data.name = diabetes)",
        "learning_rate.svg (data.name = digits)",
    ]
    assert "T = 10" in found.texts("text")


def test_figures_that_cannot_be_drawn_are_named(sweep_store, page):
    broken = sweep_store(
        ({"x": 1}, "finished", None, [{"T": 1}]), experiment="learning_rate"
    )
    assert any("No figure: KeyError" in text for text in Page(page(broken)).texts("p"))
    unknown = sweep_store(({}, "finished", None, [{"T": 1}]), name="other")
    assert "No figures: there is no experiment no_experiment here." in Page(
        page(unknown)
    ).texts("p")


def test_a_store_without_points_says_so(sweep_store, page):
    assert "No point has been computed yet." in Page(page(sweep_store())).texts("p")


@pytest.mark.parametrize(
    ("status", "word"),
    [("running", "unfinished"), (f"failed: KeyError: {EVIL}", "failed")],
)
def test_a_run_that_is_not_finished_is_shown_as_such(run_folder, page, status, word):
    found = Page(page(run_folder(RECORDS[:2], status, tail='{"T": 1, "eta')))
    assert word in found.texts("span", **{"class": "badge"})
    assert "The last record is incomplete and left out." in found.texts("p")
    assert (status in found.texts("pre")) == (word == "failed")
    assert len(found.texts("tr")) == 3


def test_a_long_table_is_folded_and_its_csv_is_whole(run_folder, page):
    count = report.MAX_ROWS + 7
    records = [{"i": i, "third": i / 3, "list": [i], EVIL: EVIL} for i in range(count)]
    found = Page(page(run_folder(records)))
    columns = 3  # i, third and EVIL: lists are not shown
    assert len(found.texts("tr")) == (1 + columns) + (1 + count)
    assert f"All {count} rows" in found.texts("summary")
    cells = found.texts("td")[: 6 * columns]
    assert cells[:4] == ["i", "0", cell((count - 1) / 2), str(count - 1)]
    assert cells[4:6] == [f"{count} different", "0"]
    assert cells[12:18] == [EVIL, "", "", "", f"{EVIL} ({count})", "0"]
    (link,) = [x for x in found.attributes("href") if x.startswith("data:text/csv")]
    content = base64.b64decode(link.partition(",")[2]).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert [float(row["third"]) for row in rows] == [i / 3 for i in range(count)]
    assert rows[3]["list"] == "[3]"
    assert rows[3][EVIL] == EVIL


def test_what_is_neither_run_nor_store_is_named(tmp_path, capsys):
    text = tmp_path / "notes.txt"
    text.write_text("SQL" * 99)
    out = tmp_path / "out.html"
    for source in (tmp_path, text, tmp_path / "missing.sqlite"):
        assert cli.main(["report", str(source), "--out", str(out)]) == 2
        assert str(source) in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("provenance.json", "{"),
        ("provenance.json", "[]"),
        ("records.jsonl", "{\n{}\n"),
        ("records.jsonl", "[]\n"),
        ("config.yaml", "a: [\n"),
    ],
)
def test_a_damaged_run_is_named(run_folder, tmp_path, capsys, name, content):
    folder = run_folder([])
    (folder / name).write_text(content)
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "a.html")]) == 2
    assert name in capsys.readouterr().err


def test_only_a_report_is_overwritten(run_folder, tmp_path, capsys):
    folder, out = run_folder(RECORDS), tmp_path / "out.html"
    out.write_text("<p>my page</p>")
    assert cli.main(["report", str(folder), "--out", str(out)]) == 2
    assert str(out) in capsys.readouterr().err
    assert out.read_text() == "<p>my page</p>"
    assert cli.main(["report", str(folder), "--out", str(tmp_path)]) == 2
    out.unlink()
    for _ in range(2):
        assert cli.main(["report", str(folder), "--out", str(out)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "runs"]


# In a browser.

_PROBE = """
for (const folded of document.querySelectorAll("details")) folded.open = true;
const column = (name) => {
  const button = [...document.querySelectorAll("th button")]
    .find((b) => b.textContent === name);
  const index = button.closest("th").cellIndex;
  const read = () => [...document.querySelectorAll("table[data-group=s1-t1] tbody tr")]
    .map((row) => row.cells[index].textContent);
  button.focus();
  button.click();
  const up = read(), said = button.closest("th").ariaSort;
  button.click();
  return [up, said, read(), button.closest("th").ariaSort,
    document.activeElement === button];
};
const result = document.createElement("pre");
result.id = "probe";
result.textContent = JSON.stringify({
  numbers: column("eta learned"), texts: column("name"), whole: column("i"),
  width: [document.documentElement.scrollWidth, innerWidth],
  scripts: document.scripts.length,
  drawings: [...document.querySelectorAll("figure svg")]
    .map((svg) => svg.getBBox().width > 10),
  dark: getComputedStyle(document.body).backgroundColor,
});
document.body.append(result);
"""


_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--enable-logging=stderr",
]


def browse(page, folder, *flags):
    """What Chromium makes of a page: its DOM, its log, the addresses it asked for."""
    net = folder / "net.json"
    files = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={net}"]
    done = subprocess.run(
        [str(CHROMIUM), *_FLAGS, *files, *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    events = [
        event.get("params", {}) for event in json.loads(net.read_text())["events"]
    ]
    # What the browser itself wants to know (time, updates) has no origin.
    asked = {
        event["url"]
        for event in events
        if event.get("initiator", "not an origin") != "not an origin"
    }
    return done.stdout, done.stderr, asked


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_works_in_a_browser(run_folder, sweep_store, tmp_path, page):
    values = [10.0, 9.0, 1e-9, 1 / 3, float("nan"), -200.0, float("inf")]
    values += [float(i) for i in range(20, 20 + report.MAX_ROWS)]
    records = [
        {"i": i, "eta_learned": value, "name": f"{EVIL} {i}", "wide": "w" * 99}
        for i, value in enumerate(values)
    ]
    failed = sweep_store(({"x": EVIL * 20}, "failed", EVIL * 20, []))
    text = page(run_folder(records, figures=["a", "b"]), failed)
    digest = base64.b64encode(hashlib.sha256(_PROBE.encode()).digest()).decode()
    probed = text.replace("script-src", f"script-src 'sha256-{digest}'")
    probed = probed.replace("</body>", f"<script>{_PROBE}</script></body>")
    copy = tmp_path / "probed.html"
    copy.write_text(probed, encoding="utf-8")
    flags = ["--window-size=390,800", "--blink-settings=preferredColorScheme=0"]

    dom, log, asked = browse(copy, tmp_path, *flags)

    assert "CONSOLE" not in log
    assert not asked
    (found,) = re.findall(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    seen = json.loads(found.replace("&lt;", "<").replace("&gt;", ">"))
    up, said, down, then, focused = seen["numbers"]
    assert (said, then, focused) == ("ascending", "descending", True)
    finite = sorted(value for value in values if not math.isnan(value))
    assert up == [cell(value) for value in finite] + ["nan"]
    assert down == [cell(value) for value in reversed(finite)] + ["nan"]
    assert seen["texts"][0] == [f"{EVIL} {i}" for i in range(len(values))]
    assert seen["whole"][2] == [str(i) for i in reversed(range(len(values)))]
    assert seen["scripts"] == 2
    assert seen["drawings"] == [True, True]
    assert seen["width"][0] <= seen["width"][1] <= 500
    assert seen["dark"] == "rgb(20, 23, 28)"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_page_that_misbehaves_is_noticed(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>oops()</script>')
    _, log, asked = browse(bad, tmp_path)
    assert "CONSOLE" in log
    assert asked == {"http://127.0.0.1:9/x.png"}


def test_an_experiment_made_of_points_draws_all_of_them_together():
    from experiments._report.sweep_sections import _groups

    rows = [
        Row(
            key=str(seed),
            experiment="tuned_rate",
            config={"experiment": "tuned_rate", "seed": seed},
            status="finished",
            error=None,
            records=[{"T": seed}],
            provenance={},
            seconds=1.0,
            attempts=1,
            finished_at="2026-01-01T00:00:00+00:00",
        )
        for seed in range(3)
    ]
    assert _groups(rows, together=True) == {"": [{"T": 0}, {"T": 1}, {"T": 2}]}
    assert len(_groups(rows, together=False)) == 3
