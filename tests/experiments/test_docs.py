"""The site: whole, with links that lead somewhere, and nothing asked of a network."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import pytest

pytest.importorskip("pdoc")
pytest.importorskip("latex2mathml")

from experiments._command import cli
from experiments._docs import site
from experiments._docs.formulas import with_formulas

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src"}


class Page(HTMLParser):
    """What a page links to, loads, and has anchors for; its text outside of code."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors, self.prose = [], [], set(), []
        self.silent = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in _LOADS and given.get(_LOADS[tag]):
            self.loads.append(given[_LOADS[tag]])
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.silent += tag in ("code", "pre", "script", "style", "math")

    def handle_endtag(self, tag):
        self.silent -= tag in ("code", "pre", "script", "style", "math")

    def handle_data(self, data):
        if not self.silent:
            self.prose.append(data)


@pytest.fixture(scope="module")
def files():
    return site.pages()


@pytest.fixture(scope="module")
def pages(files):
    return {name: Page(text) for name, text in files.items() if name.endswith(".html")}


def resolve(start, link):
    """The file and the anchor that a relative link means."""
    path, _, anchor = link.partition("#")
    if not path:
        return start, anchor
    parts = []
    for part in (PurePosixPath(start).parent / path).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts), anchor


def test_there_is_a_page_for_each_module_and_guide(files):
    for name in site.PAGES:
        assert f"{name.replace('.', '/')}.html" in files
    for name in site.guides():
        assert f"metalr/guides/{name}.html" in files
    assert 'url=./metalr.html"' in files["index.html"]


def test_every_link_and_anchor_leads_somewhere(pages):
    seen = 0
    for name, page in pages.items():
        for link in page.links:
            if link.startswith("https://"):
                continue
            target, anchor = resolve(name, link)
            assert target in pages, f"{name}: {link}"
            assert not anchor or anchor in pages[target].anchors, f"{name}: {link}"
            seen += 1
    assert seen > 500
    assert "recipes.html#maml" in pages["metalr/guides/coming_from.html"].links


def test_a_link_that_leads_nowhere_would_be_seen(pages):
    page = Page('<a href="memory.html#nothing">x</a>')
    target, anchor = resolve("metalr/guides/limits.html", page.links[0])
    assert target == "metalr/guides/memory.html"
    assert anchor not in pages[target].anchors


def test_nothing_is_loaded_from_elsewhere(files, pages):
    for name, page in pages.items():
        assert not [x for x in page.loads if not x.startswith("data:")], name
        assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", files[name])
        assert "mathjax" not in files[name].lower()


def test_formulas_are_mathml(files, pages):
    made = 0
    for name, page in pages.items():
        assert "$" not in "".join(page.prose), name
        assert "formulablock" not in files[name]
        assert "formulainline" not in files[name]
        for formula in re.findall(r"<math .*?</math>", files[name], re.DOTALL):
            root = ET.fromstring(formula.replace("&nbsp;", " "))
            # A command that the converter does not know stays in the formula as it is.
            assert not re.search(r"\\[a-z]", "".join(root.itertext())), formula
            made += 1
    assert made > 100


def test_code_is_left_alone_and_prose_keeps_its_words():
    convert = with_formulas(lambda text: f"<p>{text}</p>")
    page = convert("of `a$b$` and $x_1$")
    assert "<code>" not in page
    assert "`a$b$`" in page
    assert page.startswith("<p>of ")
    assert page.count("<math") == 1
    assert convert("$$x$$").startswith('<div class="formula">')


def test_every_public_name_is_on_its_page(pages):
    import metalr

    for name in ("Unrolled", "hypergradient", "learn", "check_hypergrad", "windows"):
        assert name in pages["metalr.html"].anchors
    assert set(site.offered(metalr)) <= pages["metalr.html"].anchors


def test_the_search_knows_the_sections_of_guides(files):
    assert "metalr.guides.recipes" in files["search.js"]
    assert '"fullname": "Recipes: MAML", "heading": "MAML"' in files["search.js"]
    for name in site.guides():
        assert f'"modulename": "metalr.guides.{name}"' in files["search.js"]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs a browser")
@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("memory", "metalr/guides/memory.html#memory"),
        ("maml", "metalr/guides/recipes.html#maml"),
        ("reversible", "metalr.html#Reversible"),  # in no heading: the name itself
    ],
)
def test_words_of_a_guides_heading_find_the_guide_first(files, tmp_path, asked, first):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    page = in_chromium(f"file://{tmp_path}/metalr.html?search={asked}")
    assert re.findall(r'<a href="([^"]+)" class="attr', page)[0] == first


def in_chromium(address):
    """The page as the browser has it when its scripts are done."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=10000", address]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_the_command_writes_it_and_spares_what_is_not_its_own(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(site, "pages", lambda: {"index.html": "x", "search.js": ""})
    out = tmp_path / "site"
    for _ in range(2):  # again over itself
        assert cli.main(["docs", str(out)]) == 0
    assert (out / "index.html").read_text() == "x"
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert cli.main(["docs", str(other)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["mine.txt"]
    assert cli.main(["docs", str(other / "mine.txt")]) == 2
