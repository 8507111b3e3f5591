"""The documentation site's own code: which file is which page, and what counts as a broken link."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import find_browser
from docsite import viewed_site
from docsite.built_site import problems
from docsite.markdown import anchors, links, replace_links, slug
from docsite.repository import BrokenLinkError, Repository, page_of, relative_link, render_source, source_page_of
from docsite.source_links import broken_links, external_problem

ROOT = Path(__file__).parents[1]


def test_every_link_between_files_of_the_repository_leads_somewhere() -> None:
    assert list(broken_links(Repository(ROOT))) == []


@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("docs/reference/cli.md", "reference/cli.md"),
        ("README.md", "index.md"),
        ("packages/archon-moe/README.md", "packages/archon-moe.md"),
        ("packages/archon-moe/CHANGELOG.md", "changelog/archon-moe.md"),
        ("packages/archon-moe/src/archon_moe/README.md", None),
        ("tests/test_site.py", None),
    ],
)
def test_files_have_their_pages(file: str, page: str | None) -> None:
    assert page_of(file) == page


def test_links_are_those_of_prose() -> None:
    text = "See [a](a.md#x) and ![p](p.svg), not `[b](b.md)`.\n\n```text\n[c](c.md)\n```\n[d](https://d.org/e)\n"
    assert [link.target for link in links(text)] == ["a.md#x", "p.svg", "https://d.org/e"]
    assert [link.is_external for link in links(text)] == [False, False, True]
    assert replace_links(text, lambda link: link.target.upper()).count("A.MD#X") == 1
    assert "`[b](b.md)`" in replace_links(text, lambda link: "changed")


def test_anchors_are_those_of_code_hosts() -> None:
    assert slug("For authors of models: `ModelPluginSuite`") == "for-authors-of-models-modelpluginsuite"
    assert slug("A [link](x.md) & more") == "a-link--more"
    assert anchors("# One\n## Two\n## Two\n```\n# three\n```\n") == {"one"}


def test_links_between_pages_are_relative_to_the_page() -> None:
    assert relative_link("reference/cli.md", "verify.md") == "../verify.md"
    assert relative_link("index.md", source_page_of("tests/a.py")) == "source/tests/a.py.md"


def test_a_source_is_fenced_whatever_it_holds() -> None:
    assert render_source("a.py", "x = '''\n```\n'''\n") == "# a.py\n\n````python\nx = '''\n```\n'''\n````\n"
    with pytest.raises(BrokenLinkError, match="shown as source are"):
        render_source("a.bin", "")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Read me\n")
    (tmp_path / "src").mkdir()
    return Repository(tmp_path)


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("gone.md", "docs/page.md:1: docs/page.md: found a link to gone.md; there is no docs/gone.md"),
        ("../src", "docs/page.md:1: docs/page.md: found a link to the folder ../src, which has no README; name a file"),
        ("../README.md#x", "docs/page.md:1: found #x; README.md has no such heading, or has it twice"),
        ("/README.md", "docs/page.md:1: found /README.md; links between files are relative"),
        ("ftp://a.org", "docs/page.md:1: found ftp://a.org; allowed are relative links, https: and mailto:"),
    ],
)
def test_a_broken_link_is_named_with_its_line(repository: Repository, link: str, problem: str) -> None:
    (repository.root / "docs/page.md").write_text(f"[text]({link})\n")
    assert list(broken_links(repository)) == [problem]


def test_external_links_are_judged_by_their_text() -> None:
    assert external_problem("https://arxiv.org/abs/2402.03300") is None
    assert external_problem("https://nowhere") == "found https://nowhere; there is no host in it"


PAGE = "<h2 id='there'>There</h2><p><a href='{link}'>x</a></p>{more}"


@pytest.mark.parametrize(
    ("link", "more", "problem"),
    [
        ("other.html", "", "a.html: found a link to other.html; there is no such file"),
        ("#gone", "", "a.html: found a link to #gone; there is no such anchor"),
        ("../outside.html", "", "a.html: found a link to ../outside.html; there is no such file"),
        ("#there", "<script src='https://a.org/b.js'></script>", "a.html: loads https://a.org/b.js; a page loads "),
        ("#there", "<link rel='stylesheet' href='gone.css'>", "a.html: found a link to gone.css; there is no such"),
        ("#there", "<p>text\n| a | b |\n</p>", "a.html: found Markdown that was not understood: | a | b |"),
        ("#there", "<p>text:\n- item</p>", "a.html: found Markdown that was not understood: - item"),
    ],
)
def test_a_mistake_in_the_built_site_is_found(tmp_path: Path, link: str, more: str, problem: str) -> None:
    (tmp_path / "a.html").write_text(PAGE.format(link=link, more=more))
    [found] = problems(tmp_path)
    assert found.startswith(problem)


def test_a_site_without_mistakes_passes(tmp_path: Path) -> None:
    more = "<pre><code>| a | b |</code></pre><p><code>- x</code> a - b</p>"
    (tmp_path / "a.html").write_text(PAGE.format(link="#there", more=more))
    assert list(problems(tmp_path)) == []


def test_a_browser_sees_what_a_page_does_on_a_phone(tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("Chromium is not installed")
    icon = "<link rel='icon' href='data:,'>"  # or the browser asks for favicon.ico, at any moment
    head = f"{icon}<meta name='viewport' content='width=device-width, initial-scale=1'>"
    (tmp_path / "wide.html").write_text(f"{head}<div style='width: 900px'>wide</div>")
    (tmp_path / "loud.html").write_text(f"{head}<script>console.error('no', 1); undefinedName</script>")
    (tmp_path / "lost.html").write_text(f"{head}<script src='gone.js'></script>")
    drawing = "<svg xmlns='http://www.w3.org/2000/svg' width='900' height='90'></svg>"
    (tmp_path / "drawing.svg").write_text(drawing)
    picture = "<article><p style='overflow-x: auto'><img src='drawing.svg' style='max-width: {}'></article>"
    (tmp_path / "small.html").write_text(head + picture.format("100%"))
    (tmp_path / "scrolled.html").write_text(head + picture.format("none"))
    found = list(viewed_site.page_by_page(tmp_path, program))
    assert [text for text in found if text.startswith(("wide", "small", "scrolled"))] == [
        "small.html: found drawing.svg at 40% of its size on a phone; allowed is 70% and more, in a box that scrolls",
        "wide.html: found 908 pixels of content on a phone of 375: the page scrolls sideways",
    ]
    assert any(text == "loud.html: console.error: no 1" for text in found)
    assert any("loud.html: ReferenceError" in text for text in found)
    assert any(text.startswith("lost.html: 404: ") for text in found)
