"""RESULTS.md, README and the gallery show what the records hold, and no more."""

import json
import re

import pytest

from experiments._command import cli, registry
from experiments._command.config import ConfigError
from experiments._report import gallery, keeping, records
from experiments._report.keeping import command
from experiments._report.publish import faults, results_page
from experiments._report.records import Kept, KeptTable, headline
from experiments._store import store
from experiments._store.store import Row

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def finished_origin():
    return {
        "started": "2026-01-02T03:04:05+00:00",
        "git_commit": "0123456789",
        "git_dirty": False,
        "python": "3.11",
        "versions": {"jax": "0.10.2"},
        "device": ["cpu"],
        "backend": "cpu",
    }


@pytest.fixture
def finished(tmp_path):
    """Make a run folder: records, status to its path."""

    def make(rows, status="finished", words=("run", "configs/mine.yaml")):
        folder = tmp_path / "runs" / "learning_rate" / "one"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(
            "experiment: learning_rate\ndtype: float64\n"
        )
        provenance = finished_origin() | {
            "command": ["__main__.py", *words, "--runs", "/somewhere"],
            "status": status,
            "wall_seconds": 12.34,
            "other_cores": 0.0,
        }
        (folder / "provenance.json").write_text(json.dumps(provenance))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "records.jsonl").write_text(lines)
        (folder / "learning_rate.png").write_bytes(PNG)
        (folder / "learning_rate-second.png").write_bytes(PNG)
        return folder

    return make


@pytest.fixture
def configs(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    return folder


ROWS = [
    {"T": 1, "x_error": 1 / 3, "curve": [1], "name": "a|b"},
    {"T": 2, "x_error": 1e-9},
]


def publish(*arguments, configs):
    return cli.main(["publish", *map(str, arguments), "--configs", str(configs)])


def test_what_is_published_here_is_what_the_records_say(capsys):
    assert cli.main(["publish", "--check"]) == 0, capsys.readouterr().err


def test_a_run_becomes_a_record_a_section_and_a_figure(finished, configs):
    readme = configs.parent / "README.md"
    readme.write_text("# a\n<!-- record mine: T -->\nold\n<!-- end -->\nlast\n")
    assert publish(finished(ROWS), configs=configs) == 0
    kept = records.read_record(configs / "records" / "mine.json")
    assert kept.command == "python -m experiments run configs/mine.yaml"
    assert kept.tables[0].rows[0] == {"T": 1, "x_error": 1 / 3, "name": "a|b"}
    assert kept.undisturbed
    files = sorted(path.name for path in (configs / "figures").iterdir())
    assert files == ["mine-learning_rate-second.png", "mine.png"]
    page = (configs / "RESULTS.md").read_text(encoding="utf-8")
    assert "| 1 | 0.3333 | a\\|b |" in page
    assert "12 s; float64, cpu; JAX 0.10.2, Python 3.11; commit 0123456, " in page
    assert "![mine: mine](figures/mine.png)" in page
    text = readme.read_text()
    assert "| T |\n| ---: |\n| 1 |\n| 2 |\n" in text
    assert "old" not in text
    assert text.endswith("<!-- end -->\nlast\n")
    assert publish("--check", configs=configs) == 0


SPOILS = {
    "another number": lambda c: (c / "RESULTS.md").write_text("| 1 | 0.9999 |"),
    "another figure": lambda c: (c / "figures" / "mine.png").write_bytes(b"another"),
    "no figure": lambda c: (c / "figures" / "mine.png").unlink(),
    "a figure of no record": lambda c: (c / "figures" / "of.png").write_bytes(PNG),
    "no record": lambda c: (c / "records" / "mine.json").unlink(),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_whatever_no_record_holds_is_a_fault(finished, configs, spoil, capsys):
    assert publish(finished(ROWS), configs=configs) == 0
    assert faults(configs) == []
    spoil(configs)
    assert publish("--check", configs=configs) == 1
    assert capsys.readouterr().err


def test_a_second_run_replaces_the_first(finished, configs):
    assert publish(finished(ROWS), configs=configs) == 0
    assert publish(finished([{"T": 7}]), configs=configs) == 0
    (kept,) = records.read_all(configs)
    assert kept.tables[0].rows == [{"T": 7}]
    assert publish("--check", configs=configs) == 0


def test_times_of_a_disturbed_run_are_left_out(finished, configs):
    folder = finished(
        [
            {
                "x": 1,
                "wall_seconds": 2.0,
                "step_ms": 3.0,
                "cost_ratio": 1.2,
                "second_error": 4.0,
            }
        ]
    )
    path = folder / "provenance.json"
    quiet = path.read_text()
    path.write_text(quiet.replace('"other_cores": 0.0', '"other_cores": 0.7'))
    assert publish(folder, configs=configs) == 0
    (kept,) = records.read_all(configs)
    assert kept.tables[0].rows == [{"x": 1, "second_error": 4.0}]
    assert "while other work ran" in (configs / "RESULTS.md").read_text()
    path.write_text(quiet)
    assert publish(folder, configs=configs) == 0
    (kept,) = records.read_all(configs)
    assert kept.tables[0].rows[0]["step_ms"] == 3.0


def test_a_sweep_is_kept_if_every_point_has_a_result(
    configs, tmp_path, capsys, monkeypatch
):
    from experiments import tuned_rate

    monkeypatch.setattr(tuned_rate, "figures", lambda records: {})

    def sweep(status, count=2):
        path = tmp_path / f"{status}{count}.sqlite"
        with store.writing(path) as writer:
            for index in range(count):
                config = {"experiment": "tuned_rate", "seed": index, "dtype": "float64"}
                found = {"T": 1, "eta_learned": 0.25, "eta_closed": 0.25, "loss": index}
                found |= {"optimizer": "sgd", "relative_error": 1e-9}
                origin = finished_origin() | {
                    "command": ["__main__.py", "sweep", "s.yaml"]
                }
                writer.write(
                    Row(
                        str(index),
                        "tuned_rate",
                        config,
                        status if index == 0 else "finished",
                        None,
                        [found],
                        origin,
                        0.5,
                        1,
                        f"2026-01-01T00:00:{index:02}",
                    )
                )
        return path

    assert publish(sweep("failed"), configs=configs) == 2
    assert "1 of 2 points have no result" in capsys.readouterr().err
    assert publish(sweep("finished"), configs=configs) == 0
    (kept,) = records.read_all(configs)
    assert (kept.name, kept.seconds) == ("s", 1.0)
    assert kept.command == "python -m experiments sweep s.yaml"
    assert [row["seed"] for row in kept.tables[0].rows] == [0, 1]
    many = keeping.MAX_POINTS + 1
    assert publish(sweep("finished", many), configs=configs) == 0
    (kept,) = records.read_all(configs)
    (seed,) = [row for row in kept.tables[0].rows if row["column"] == "seed"]
    assert (seed["least"], seed["median"], seed["greatest"]) == (0, 30, 60)


def test_a_headline_that_no_table_holds_is_a_fault(finished, configs, capsys):
    assert publish(finished(ROWS), configs=configs) == 0
    path = configs / "records" / "mine.json"
    said = "largest x error 0.3333"
    assert said in path.read_text()
    path.write_text(path.read_text().replace(said, "largest x error 1e-9"))
    assert publish("--check", configs=configs) == 1
    assert "headline" in capsys.readouterr().err


def test_only_a_finished_run_is_kept(finished, configs, capsys):
    folder = finished(ROWS, status="failed: KeyError: x")
    assert publish(folder, configs=configs) == 2
    assert "not 'finished'" in capsys.readouterr().err
    assert not (configs / "records").exists()


def test_readme_shows_no_record_that_is_not_kept(finished, configs, capsys):
    (configs.parent / "README.md").write_text("<!-- record gone: T -->\n<!-- end -->")
    assert publish(finished(ROWS), configs=configs) == 2
    assert "'gone'" in capsys.readouterr().err


def test_a_damaged_record_is_named(finished, configs, capsys):
    assert publish(finished(ROWS), configs=configs) == 0
    path = configs / "records" / "mine.json"
    for text in ("{", "[]", '{"name": "mine"}', path.read_text().replace("mine", "x")):
        path.write_text(text)
        assert publish("--check", configs=configs) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_numbers_that_are_not_finite_survive_the_record(finished, configs):
    rows = [{"x_error": float("nan")}, {"x_error": float("inf")}]
    assert publish(finished(rows), configs=configs) == 0
    raw = (configs / "records" / "mine.json").read_text()
    json.loads(raw, parse_constant=pytest.fail)
    (kept,) = records.read_all(configs)
    assert [str(row["x_error"]) for row in kept.tables[0].rows] == ["nan", "inf"]
    assert "| inf |" in results_page([kept])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["__main__.py", "run", "a.yaml", "--runs", "r", "x=[1, 2]"],
            " run a.yaml 'x=[1, 2]'",
        ),
        (["maml.py", "--runs=r", "steps=3"], ".maml steps=3"),
    ],
)
def test_a_command_is_said_as_it_is_given_again(words, expected):
    assert command(words) == f"python -m experiments{expected}"


def test_the_headline_is_the_worst_row():
    table = KeptTable(
        title="a",
        rows=[{"agrees": True, "x_error": 1e-3}, {"agrees": False, "x_error": -0.25}],
    )
    assert headline([table]) == "agrees: yes in 1 of 2; largest x error -0.25"
    assert headline([KeptTable(title="a", rows=[{"T": 1}])]) == "1 rows"


def test_the_gallery_shows_every_record(finished, configs, tmp_path):
    from experiments._report.page import write_gallery

    with pytest.raises(ConfigError, match="holds no record"):
        write_gallery(tmp_path / "empty.html", configs)
    assert publish(finished(ROWS), configs=configs) == 0
    out = tmp_path / "gallery.html"
    write_gallery(out, configs)
    text = out.read_text(encoding="utf-8")
    (kept,) = records.read_all(configs)
    for part in (kept.command, kept.headline, "Which learning rate is best", "12 s"):
        assert part in text
    assert len(re.findall(r'<img src="data:image/png;base64,', text)) == 2
    (configs / "figures" / "mine.png").unlink()
    with pytest.raises(ConfigError, match=r"mine\.png"):
        write_gallery(out, configs)
    assert out.read_text(encoding="utf-8") == text


def test_every_experiment_has_its_place_in_the_gallery():
    found = [name for names in gallery.GROUPS.values() for name in names]
    assert sorted(found) == sorted(registry.names())


def test_every_record_has_a_question_and_a_claim():
    for kept in records.read_all(records.CONFIGS):
        assert registry.questions()[kept.experiment]
        assert registry.claim(kept.experiment), kept.name


def test_a_claim_shows_code_as_code_and_nothing_in_it_acts():
    text = str(gallery._with_code("`a<b` and <i>"))
    assert text == "<code>a&lt;b</code> and &lt;i&gt;"


def test_every_record_says_where_it_comes_from():
    kept: list[Kept] = records.read_all(records.CONFIGS)
    assert kept
    for one in kept:
        assert one.git_commit
        assert one.seconds > 0
        assert "jax" in one.versions
        assert any(table.rows for table in one.tables)
