"""README and docs: short, with links that lead somewhere, and a tree that is that of the code."""

import re
import subprocess

import pytest

from tests.conftest import ROOT
from tests.docs.test_commands import PAGES
from tests.soak.faults import FAULTS, FOR_PEERS

MAX_README, MAX_PAGE = 9_000, 10_000  # bytes


def test_readme_and_pages_are_short():
    assert len((ROOT / "README.md").read_bytes()) <= MAX_README
    assert {page.name for page in ROOT.glob("docs/*.md") if len(page.read_bytes()) > MAX_PAGE} == set()


def test_tree_of_the_readme_names_every_file():
    (tree,) = re.findall(r"```\n(run_sweep\.py .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    folders, named = [], set()
    for line in tree.splitlines():
        names = re.findall(r"[\w/]+\.(?:py|css|html)|[\w/]+/(?=\s|$)", line)
        depth = (len(line) - len(line.lstrip())) // 2
        files = [name for name in names if not name.endswith("/")]
        if names and names[0].endswith("/") and line.lstrip().startswith(names[0]):
            folders = [*folders[:depth], names[0]]
            depth += 1
        named |= {"".join([*folders[:depth], name]) for name in files}
    listed = subprocess.run(
        ["git", "ls-files", "shell", "catdog", "search", "pipeline"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    files = {name for name in listed if not name.endswith("__init__.py") and (ROOT / name).exists()}
    assert {name for name in named if name.split("/")[0] in ("shell", "catdog", "search", "pipeline")} == files


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_fault_of_the_soak_is_in_the_docs():
    page = (ROOT / "docs/resume-and-faults.md").read_text()
    assert [name for name in (*FAULTS, *FOR_PEERS) if f"| {name} |" not in page] == []
