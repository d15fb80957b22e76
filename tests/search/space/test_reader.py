import ast
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.space.reader import read_file

CONTENT = {"algorithm": "bayes", "parameters": {"x": [1, 2]}, "spec": {"maxCombo": 3, "seed": None, "randomize": True}}


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "optimizer.json"
    path.write_bytes(text.encode(encoding))
    return path


def mistake(path):
    with pytest.raises(ValueError, match=str(path)) as error:
        read_file(path)
    return str(error.value).removeprefix(f"{path}: ")


WAYS = {
    "JSON": json.dumps(CONTENT),
    "Python": str(CONTENT),
    "comments": f"# narrow networks\n// and few\n/* of\nthem */ {json.dumps(CONTENT, indent=1)} # end",
    "a mixture": "{'algorithm': \"bayes\", 'parameters': {'x': (1, 2,),}, 'spec': {'maxCombo': 3, 'seed': null, 'randomize': true}}",
    "other numbers": str(CONTENT).replace("3", "0x3").replace("1", "+1"),
    "old Python": str(CONTENT).replace("'a", "u'a"),
    "three quotes": str(CONTENT).replace("'bayes'", '"""bayes"""'),
    "Windows": json.dumps(CONTENT, indent=1).replace("\n", "\r\n"),
    "spaces of a web page": json.dumps(CONTENT, indent=1).replace("\n", "\n\u00a0\u200b"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_file_is_read_as_people_write_it(tmp_path, way, encoding):
    assert read_file(written(tmp_path, WAYS[way], encoding)) == CONTENT


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.text(), VALUES, max_size=3))
def test_reader_agrees_with_those_of_json_and_of_comet(tmp_path, content):
    """Comet's client reads its file with ast.literal_eval."""
    for text, read in ((json.dumps(content), json.loads), (str(content), ast.literal_eval)):
        assert read_file(written(tmp_path, text)) == read(text) == content


MISSING = [  # the text, the line that lacks a comma, the line with it
    ('{"algorithm": "bayes"\n "trials": 1}', 1, '{"algorithm": "bayes",'),
    ('{"a": [1, 2]  # few\n\n "b": 1}', 1, '{"a": [1, 2], # few'),
    ('{"a": {"b": 1}\n\n\n// more\n "c": 1}', 1, '{"a": {"b": 1},'),
    ("{'a': 1,\n 'b': ['constant' 'cosine']}", 2, "'b': ['constant', 'cosine']}"),
    ('{"a": [1\n 2]}', 1, '{"a": [1,'),
    ('{"a": true "b": 2}', 1, '{"a": true, "b": 2}'),
]


@pytest.mark.parametrize(("text", "line", "repaired"), MISSING)
def test_missing_comma_is_looked_for_in_the_line_before(tmp_path, text, line, repaired):
    message = mistake(written(tmp_path, text))
    assert message.startswith(f"line {line} lacks a comma after ")
    assert message.endswith(f"; write {repaired}")
    lines = text.split("\n")
    lines[line - 1] = repaired
    read_file(written(tmp_path, "\n".join(lines)))


MISTAKES = {
    '{"a" 1}': 'line 1 lacks a colon after "a"; write {"a": 1}',
    '{"a": 1,\n "b": 2,\n "a": 3}': 'line 3 repeats the key "a" of line 1; keep one of them',
    "{a: 1}": 'line 1 has the key a; write "a"',
    '{"a": bayes}': 'line 1 has bayes; write a text in quotes: "bayes"',
    '{"a": NaN}': "line 1 has NaN; write a finite number",
    '{"a": -Infinity}': "line 1 has -Infinity; write a finite number",
    '{"a": 1e999}': "line 1 has 1e999; write a smaller number",
    '{"a": 3px}': "line 1 has 3px; write a number such as 8 or 0.001, or a text in quotes",
    '{"a": \u201cx\u201d}': '\u201c in line 1 stands where a value is expected; write straight quotes: "',
    '{"a":\n "x}': 'line 2 has a text without its closing quote: "x}',
    '{"a: "x"}': "x in line 1 stands where a colon is expected; check the quotes before it",
    '{"a": "C:\\Users"}': 'line 1 has a wrong backslash in "C:\\Users"; write two for one, or / in a path',
    '{"a": "\\ud800"}': 'line 1 has half of a pair of \\u codes in "\\ud800"; write the character itself',
    '{"a": 1} /* nets {': "the comment of line 1 is not closed; add */",
    '{"a": $LR_MIN}': 'line 1 has $LR_MIN, which is no plain value; write the value itself, such as 8, 0.001 or "text"',
    '{"a": [0,001]}': "line 1 has 001; write 0.001 with a point if 0,001 is meant, or no zero before",
    '{"a": 1,000}': "line 1 has 1,000; write 1000",
    '{"a": {8, 16}}': "line 1 has 8 in braces without a value; write a list in [ ], or a key with its value",
    '{"a": 1; "b": 2}': "; in line 1 stands where a comma (or } for the { of line 1) is expected; correct that line",
    '{"a": [1, 2}': "} in line 1 stands where a comma (or ] for the [ of line 1) is expected; correct that line",
    '{"a":\n {"b": 1}': "the { of line 1 is not closed; add }",
    '{"a": 1},\n "b": 2}': "line 1 closes the first {, but , in line 1 follows; remove what is too much, perhaps a bracket",
    '{"a":': "ends in line 1 where a value is expected; write the rest",
    '{"a": ' + "[" * 10**5: "line 1 nests more than 20 brackets; close some",
    "": "is empty; write a search space, like that of configs/optimizer.json",
    " \n# nothing": "is empty; write a search space, like that of configs/optimizer.json",
    "[1]": "begins with [, not with {; write it like configs/optimizer.json",
    "algorithm: bayes": "begins with algorithm, not with {; write it like configs/optimizer.json",
    '{"a": "x\x00"}': "is not text; write it as JSON",
    "{" + " " * 10**6: "has more than 1,000,000 bytes; name a search space, which has a few thousand",
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: repr(text[:20]))
def test_mistake_is_one_sentence_with_its_line(tmp_path, text):
    assert mistake(written(tmp_path, text)) == MISTAKES[text]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not text; write it as JSON"),
        (b"PK\x03\x04\x14\x00\x00\x00", "is not text; write it as JSON"),
        (b"\xff\xfe\x00", "is not text; write it as JSON"),
        ('{\n"name": "Größe"}'.encode("latin-1"), "line 2 is not UTF-8; save the file with the encoding UTF-8"),
    ],
)
def test_file_that_is_no_text_or_has_another_encoding_is_named(tmp_path, content, message):
    path = tmp_path / "optimizer.json"
    path.write_bytes(content)
    assert mistake(path) == message


def test_file_that_cannot_be_read_leads_to_one_that_can(tmp_path):
    answer = f"name the file of a search space, or give --data {tmp_path} if it holds images"
    assert mistake(tmp_path) == f"cannot be read (Is a directory); {answer}"
    path = written(tmp_path, "{}")
    assert mistake(tmp_path) == f"cannot be read (Is a directory); name a file in it, such as {path}"
    wrong = tmp_path / "optimiser.json"
    assert mistake(wrong) == f"cannot be read (No such file or directory); did you mean {path}?"
