"""README and docs/: short, readable, and true where a test can see it: links, paths, commands and their flags."""
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache

import pytest
from helpers import ROOT, pretext3d

README = ROOT / "README.md"
GUIDE = [README, *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*GUIDE, *(ROOT / folder / "README.md" for folder in ("scripts", "benches", "data", "weights"))]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

LINK = re.compile(r"\]\(([^)\s]+)\)")
FLAG = re.compile(r"--[a-z][a-z0-9-]*")
# Of torchrun and srun, which start several processes.
LAUNCHER_FLAGS = {"--standalone", "--no-python", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"} | {
    "--nodes", "--ntasks-per-node", "--gpus-per-node"
}
# Flags of the programs beside the binary, which the guide names too, and of pip.
SCRIPTS_FLAGS = set(FLAG.findall("".join(p.read_text() for d in ("scripts", "benches") for p in (ROOT / d).glob("*.py")))) | {"--no-deps"}


def parts(page):
    """Lines of prose and tables as (number, text), and code as (language, text): the blocks, and spans without a language."""
    prose, code, fence = [], [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            fence = None if fence is not None else [line[3:], ""]
            if fence:
                code.append(fence)
        elif fence:
            fence[1] += line + "\n"
        else:
            prose.append((number, line))
    assert fence is None, f"{page}: a code block has no end"
    spans = re.findall(r"`([^`]+)`", "\n".join(text for _, text in prose))
    return prose, [*code, *(["", span] for span in spans)]


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = [text.lstrip("# ") for _, text in parts(page)[0] if text.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def commands():
    """Flags of each command, from its help."""
    names = re.findall(r"^  ([a-z]+)  ", pretext3d("--help").stdout, re.M)
    return {name: set(FLAG.findall(pretext3d(name, "--help").stdout)) for name in names if name != "help"}


def calls(code):
    """Calls of the binary in lines of a shell, directly or by make, as (command, arguments)."""
    for line in code.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a span of another language
            words = line.split()
        for at, word in enumerate(words):
            following = words[at + 1] if at + 1 < len(words) else ""
            if word.endswith("/pretext3d") or (word == "pretext3d" and following in commands()):
                yield following, words[at + 2 :]
            elif word.startswith("PREPROCESS_ARGS="):
                yield "preprocess", word.removeprefix("PREPROCESS_ARGS=").split()
            elif word.startswith("ARGS="):
                yield ("sweep" if "reproduce" in words else "pretrain"), word.removeprefix("ARGS=").split()
        if len(words) > 1 and words[0] in commands():
            yield words[0], words[1:]


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150, "README.md: move what is more than a start to docs/"


@EACH_PAGE
def test_lines_of_prose_are_short(page):
    lines = [(n, LINK.sub("]()", text)) for n, text in parts(page)[0] if not text.startswith("|")]
    long = [n for n, text in lines if len(text) > 120]
    assert not long, f"{page}: more than 120 characters in lines {long}"


@EACH_PAGE
def test_links_and_paths_lead_somewhere(page):
    prose, code = parts(page)
    for link in LINK.findall("\n".join(text for _, text in prose)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{page}: {link} names a heading that {target} does not have"
    for _, text in code:
        for path in re.findall(r"(?<![\w./-])(?:src|scripts|benches|experiments|tests)/[\w./-]+", text):
            assert (ROOT / path).exists(), f"{page}: {path} does not exist"


@EACH_PAGE
def test_commands_and_flags_exist(page):
    every = set().union(*commands().values())
    for language, text in parts(page)[1]:
        for command, arguments in calls(text) if language in ("", "sh") else ():
            assert command in commands(), f"{page}: there is no command {command}: {text}"
            unknown = {f for a in arguments for f in FLAG.findall(a.split("=")[0])} - commands()[command]
            assert not unknown, f"{page}: {command} does not know {unknown}: {text}"
        if page in GUIDE and language in ("", "sh"):
            for flag in FLAG.findall(text):
                known = any(f.startswith(flag) for f in every) if flag.endswith("-") else flag in every | SCRIPTS_FLAGS | LAUNCHER_FLAGS
                assert known, f"{page}: no command knows {flag}: {text}"


def test_files_of_settings_are_accepted(tmp_path):
    # Of the size of the store that the pages name.
    pretext3d("phantom", "--kind", "brain", "--subjects", 12, "--size", 64, "--seed", 0, "--out", tmp_path / "brains")
    pretext3d("preprocess", "--data", tmp_path / "brains", "--out", tmp_path / "store", "--size", 64)
    files = [text for page in GUIDE for language, text in parts(page)[1] if language == "toml"]
    sweeps = [text for text in files if "arms =" in text]
    assert sweeps and len(files) > len(sweeps)
    for text in files:
        (tmp_path / "file.toml").write_text(text)
        if text in sweeps:
            planned = pretext3d("sweep", "--config", "file.toml", "--data", "store", "--dry-run", cwd=tmp_path)
            assert " finetune " in planned.stdout and "refused" not in planned.stderr, planned.stderr
        else:
            assert {f"--{key}" for key in tomllib.loads(text)} <= commands()["pretrain"], text


def test_tables_have_every_task_and_command():
    text = README.read_text()
    rows = {title: set(re.findall(r"^\| `(\w+)` \|", section, re.M)) for title, section in
            (section.split("\n", 1) for section in text.split("\n## ")[1:])}
    tasks = re.search(r"^TASKS := (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert rows["Tasks"] == set(tasks)
    assert rows["Commands"] == set(commands())


def test_expected_scaling_is_what_its_formula_gives():
    table = subprocess.run([sys.executable, ROOT / "benches/scale_model.py"], capture_output=True, text=True, check=True).stdout
    assert table in (ROOT / "docs/scale.md").read_text()


def test_the_page_of_faults_is_what_its_record_gives(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benches")
    import faults
    record = json.loads(faults.RECORD.read_text())
    assert set(record["cases"]) == set(faults.CASES)
    assert faults.page(record) == faults.PAGE.read_text()
