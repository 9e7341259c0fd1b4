"""The modules of the program stand on floors: none is used, however indirectly, by what it uses itself."""
import re
from pathlib import Path

from helpers import ROOT

PATH = re.compile(r"\b(crate|super|self)((?:::super)*)::(\w+(?:::\w+)*)?(?:(?:::)?(\{))?")


def code(text):
    """Source without comments, texts and tests."""
    text = re.sub(r'//[^\n]*|/\*.*?\*/|r(#*)".*?"\1|"(?:\\.|[^"\\])*"|\'(?:\\[^\n]|[^\\\'])\'', " ", text, flags=re.DOTALL)
    while test := re.search(r"#\[cfg\(test\)\]\s*(?:pub(?:\(crate\))?\s+)?(mod|fn|use|impl|struct)\b[^{;]*([{;])", text):
        end = test.end()
        if test[2] == "{":
            depth = 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
        text = text[: test.start()] + text[end:]
    return text


def tree(text, start):
    """Paths in a `use` tree that begins after an opening brace, as tuples."""
    paths, prefix, i = [], [()], start
    word = ()
    while prefix:
        if name := re.compile(r"\s*(\w+)(?:\s+as\s+\w+)?\s*").match(text, i):
            word, i = (*word, name[1]), name.end()
        if text.startswith("::", i):
            i += 2
            continue
        symbol, i = text[i], i + 1
        if symbol == "{":
            prefix.append(prefix[-1] + word)
            word = ()
        elif symbol in ",}":
            if word:
                paths.append(prefix[-1] + word)
            word = ()
            if symbol == "}":
                prefix.pop()
    return paths


def modules(src):
    """Each file's module path, and its code."""
    found = {}
    for file in sorted(src.rglob("*.rs")):
        parts = file.relative_to(src).with_suffix("").parts
        if parts[-1] != "tests" and parts not in [("main",), ("lib",)]:
            found[parts[:-1] if parts[-1] == "mod" else parts] = code(file.read_text())
    return found


def uses(found):
    """The modules that each module names, and the children that it is made of. What a child takes from the module around it is no
    floor of its own."""
    graph = {}
    for module, text in found.items():
        paths = {(*module, child) for child in re.findall(r"\bmod (\w+);", text)}
        for match in PATH.finditer(text):
            supers = (match[1] == "super") + match[2].count("super")
            base = {"crate": (), "self": module}.get(match[1], module[: len(module) - supers])
            base += tuple(match[3].split("::")) if match[3] else ()
            paths |= {base + path for path in tree(text, match.end())} if match[4] else {base}
        targets = set()
        for path in paths:
            while path and path not in found:
                path = path[:-1]
            if path and path != module[: len(path)]:
                targets.add(path)
        graph[module] = targets
    return graph


def circles(graph):
    """The groups of modules that use one another, each as a list of who uses whom."""
    reach = {}
    for module in graph:
        seen, todo = set(), list(graph[module])
        while todo:
            if (next_one := todo.pop()) not in seen:
                seen.add(next_one)
                todo += graph[next_one]
        reach[module] = seen
    groups = {frozenset(m for m in graph if m in reach[n] and n in reach[m]) for n in graph if n in reach[n]}
    name = "::".join
    within = lambda group: sorted(f"{name(m)} -> {name(used)}" for m in group for used in graph[m] & group)
    return sorted(map(within, groups))


def test_no_module_is_used_by_what_it_uses():
    found = modules(ROOT / "src")
    assert len(found) > 100 and circles(uses(found)) == []


def test_circles_are_found(tmp_path):
    files = {
        "lib.rs": "pub mod floor; pub mod roof; mod house;",
        "floor.rs": "use super::{house::{self as home, Door}, dim};",
        "house/mod.rs": "mod door; mod window; pub use door::Door; pub struct Wall;",
        # From the module around them, in a comment, in a text and in tests: none of it counts.
        "house/door.rs": "use super::Wall; const C: char = '\"'; // crate::floor\nconst S: &str = \"crate::floor\";\n"
        "#[cfg(test)]\nmod tests { use crate::roof::{Tile}; fn f() { { } } }",
        "house/tests.rs": "use crate::floor::F;",
        "house/window.rs": "fn light() { crate::roof::Tile::new() }",
        "roof.rs": "pub(crate) use crate::{floor::F, house::Wall};",
    }
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    graph = uses(modules(tmp_path))
    assert graph[("floor",)] == {("house",)} and graph[("house", "door")] == set()
    [circle] = circles(graph)
    # By way of what the house is made of.
    ways = ["floor -> house", "house -> house::window", "house::window -> roof", "roof -> floor", "roof -> house"]
    assert circle == ways
    (tmp_path / "house/window.rs").write_text("use super::Wall;")
    assert circles(uses(modules(tmp_path))) == []
