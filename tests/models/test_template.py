"""Chat templates render as transformers renders them, and a hostile one costs two seconds and 256 MiB at the most."""

import ast
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from models import template as template_module
from models.footprint import footprint
from models.template import MEMORY, ChatTemplate
from quant.errors import TemplateError
from tests.quant.outside import names, outside

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather <of> a \"city\", é & 'all'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
FLOORS = ("server", "engine", "models", "kvcache", "quant")
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Lima"}}}


def turns(*contents: str) -> list[dict[str, Any]]:
    """Users and assistants by turns; a first word that begins with ! is the system's."""
    said: list[dict[str, Any]] = []
    for content in contents:
        if content.startswith("!"):
            said.append({"role": "system", "content": content[1:]})
        else:
            role = "assistant" if said and said[-1]["role"] == "user" else "user"
            said.append({"role": role, "content": content})
    return said


CONVERSATIONS = [
    [],
    turns("hi & <you> 🦙"),
    turns("!be brief", "hi"),
    turns("a", "b", "c"),
    turns("!be brief", "a", "<think>\nhm\n</think>\n\nb", "c"),
    [*turns("a"), *turns("two users in a row")],
    [
        *turns("weather?"),
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": '{"c": "18 <°>"}'},
    ],
]


@pytest.fixture
def template() -> Iterator[ChatTemplate]:
    """Says `fine` to a conversation of one message `ok`."""
    with ChatTemplate("{{ 'fine' if messages[0].content == 'ok' }}") as made:
        yield made


def transformers_text(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, add_generation_prompt: bool
) -> str:
    texts = render_jinja_template(
        [messages],
        tools=list(tools) if tools else None,
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )[0]
    return str(texts[0])


@pytest.mark.parametrize("name", names("templates", "*.jinja"))
def test_a_published_template_renders_as_transformers_renders_it(name: str) -> None:
    source = (outside("templates") / name).read_text()
    with ChatTemplate(source, "<s>", "</s>") as template:
        for messages in CONVERSATIONS:
            for tools in (None, TOOLS):
                for prompt in (True, False):
                    try:
                        expected = transformers_text(source, messages, tools, add_generation_prompt=prompt)
                    except Exception:  # jinja2's kinds of error and the templates' own
                        with pytest.raises(TemplateError):
                            template.render(messages, tools, add_generation_prompt=prompt)
                    else:
                        assert template.render(messages, tools, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }} {{ '<' | tojson }}",
        "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ nothing }}",
        "{{ strftime_now('%Y') }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'a b' | wordwrap(1) | indent }}",
        "{{ [1, {'a': none}] | pprint }} {{ '<b>x</b> &amp; y' | striptags }} {{ 'd' * 3 }} {{ '%3d' % 7 }}",
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('\u00e9\\n') }}{{ 'a' ~ 1 }}{{ range(3) | list }}",
    ],
)
def test_jinja_is_set_up_as_template_authors_know_it(source: str) -> None:
    messages = turns("!s", "é <x>", "b")
    with ChatTemplate(source, "<s>", "</s>") as template:
        assert template.render(messages) == transformers_text(source, messages, None, add_generation_prompt=True)


def test_further_variables_reach_the_template_and_replace_none_of_ours() -> None:
    with ChatTemplate("{{ mood }} {{ messages[0].content }} {{ bos_token }}", "<s>") as template:
        extra = {"mood": "calm", "messages": [], "bos_token": "!"}
        assert template.render(turns("hi"), extra=extra) == "calm hi <s>"


def test_a_template_for_tools_is_used_where_there_are_tools() -> None:
    with ChatTemplate("plain", with_tools="{{ tools | length }} tools") as template:
        assert template.render(turns("hi")) == "plain"
        assert template.render(turns("hi"), []) == "plain"
        assert template.render(turns("hi"), TOOLS) == "1 tools"


def test_what_a_template_raises_is_said_to_the_user_in_one_line() -> None:
    with (
        ChatTemplate("{{ raise_exception('Roles must\n  alternate') }}") as template,
        pytest.raises(TemplateError, match=r"^Roles must alternate$"),
    ):
        template.render(turns("hi"))


def test_a_template_that_is_none_says_where() -> None:
    with ChatTemplate("\n{% for %}") as template, pytest.raises(TemplateError, match="not valid: line 2"):
        template.render(turns("hi"))


# Hostile templates

BOMBS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a filler text": "{{ lipsum(200000) }}",
    "a power worked out while compiling": "{{ 9999999 ** 9999999 }}",
    "a repeated string": "{{ 'a' * 999999999 }}",
    "a string repeated past all memory": "{{ 'a' * 999999999999 }}",
    "a centred string": "{{ 'a'.center(999999999) }}",
    "a centred string, by filter": "{{ 'a' | center(999999999) }}",
    "a formatted string": "{{ '%999999999d' % 1 }}",
    "a formatted string, by filter": "{{ '%999999999d' | format(1) }}",
    "a formatted string, by method": "{{ '{:999999999}'.format(1) }}",
    "doubling": "{% set ns = namespace(x='aaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "lists of lists": "{% set x = [0] * 999999999 %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep nesting": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "more text than a prompt can have": "{% for i in range(99999) %}{{ 'a' * 2000 }}{% endfor %}",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_ends_in_time_and_the_next_render_works(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is short here, so that the tests are; how long the real one is, the next test says."""
    monkeypatch.setattr(template_module, "SECONDS", 0.4)
    harmless = "fine"
    with ChatTemplate(bomb, with_tools=harmless) as template:
        assert template.render(turns("ok"), TOOLS) == "fine"
        began = time.monotonic()
        with pytest.raises(TemplateError) as caught:
            template.render(turns("hi"))
        assert time.monotonic() - began < 1.4, "0.4 s, and a second for a busy machine"
        assert "\n" not in str(caught.value)
        assert template.render(turns("ok"), TOOLS) == "fine"


def test_an_endless_template_ends_after_two_seconds() -> None:
    with ChatTemplate(BOMBS["loops in loops"], with_tools="fine") as template:
        template.render(turns("ok"), TOOLS)
        began = time.monotonic()
        with pytest.raises(TemplateError, match="more than 2 s"):
            template.render(turns("hi"))
        assert 2 <= time.monotonic() - began <= 2.5


def test_memory_is_bounded_while_a_bomb_runs() -> None:
    """The largest the process ever was: VmHWM of itself, read by the template's own process at its end."""
    bomb = "{% set ns = namespace(x='aaaa') %}{% for i in range(24) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    with ChatTemplate(bomb, with_tools="fine") as template:
        template.render(turns("ok"), TOOLS)
        assert template._process is not None
        began = footprint(template._process._popen.pid)
        template.render(turns("hi"))
        status = Path(f"/proc/{template._process._popen.pid}/status").read_text()
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        assert began < peak <= began + MEMORY


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os.system('id') }}",
    "{{ namespace.__init__.__globals__.os.getpid() }}",
    "{{ lipsum.__globals__['os'].getpid() }}",
    "{{ lipsum | attr('__globals__') | attr('get') }}",
    "{{ (lipsum | attr('__globals__')).os }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ '{a.__class__.__mro__[1].__subclasses__}'.format_map({'a': 1}) }}",
    "{% set f = '{0.__globals__}'.format %}{{ f(raise_exception) }}",
    "{{ ['{0.__globals__}'] | map('format', raise_exception) | list }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__code__ }}",
    "{{ [].append.__self__.__class__.__base__.__subclasses__() }}",
    "{{ config.__class__.from_envvar }}",
    "{% import 'os' as os %}{{ os }}",
    "{% include '/etc/passwd' %}",
    "{% from 'os' import popen %}",
    "{% extends '/etc/passwd' %}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ messages[0].update(content='changed') }}{{ messages[0].content }}",
    "{{ ().__getattribute__('__class__') }}",
    "{{ (1).__class__.__base__ }}",
    "{{ caller.__globals__ }}",
    "{% for f in messages[0].__class__.__mro__ %}{{ f }}{% endfor %}",
    "{{ joiner | attr('__init__') | attr('__globals__') | attr('__getitem__')('__builtins__') }}",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_the_way_out_of_the_sandbox_is_closed(escape: str) -> None:
    """Either an error, or a text that shows nothing of Python: jinja2 makes some attributes undefined."""
    with ChatTemplate(escape) as template:
        try:
            text = template.render(turns("hi"))
        except TemplateError:
            return
        assert not [word for word in ("<", "root:", "uid=", "changed", "module") if word in text], text


def test_the_process_that_renders_opens_nothing_and_starts_nothing(template: ChatTemplate) -> None:
    """Were the sandbox left by a way that nobody knows yet, there would be little to do outside."""
    template.render(turns("ok"))
    assert template._process is not None
    limits = Path(f"/proc/{template._process._popen.pid}/limits").read_text().splitlines()
    soft_and_hard = {line[:26].strip(): line[26:].split()[:2] for line in limits[1:]}
    assert soft_and_hard["Max open files"] == ["3", "3"]
    assert soft_and_hard["Max processes"] == soft_and_hard["Max file size"] == ["0", "0"]
    assert "PATH" not in Path(f"/proc/{template._process._popen.pid}/environ").read_text()


def test_only_the_worker_builds_a_template_environment() -> None:
    """models/cria makes the demo model: it renders its own template while training, and is no part of a server."""
    root = Path(__file__).parents[2]
    files = [path for floor in FLOORS for path in (root / floor).rglob("*.py") if "cria" not in path.parts]
    assert [path.name for path in files if "jinja2" in modules(path)] == ["template_worker.py"]


def modules(path: Path) -> set[str]:
    """The outermost packages that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in plain | froms}


# The process


def test_a_process_that_was_killed_is_replaced(template: ChatTemplate) -> None:
    assert template.render(turns("ok")) == "fine"
    assert template._process is not None
    os.kill(template._process._popen.pid, signal.SIGKILL)
    template._process._popen.wait()
    assert template.render(turns("ok")) == "fine"


def test_threads_share_one_template(template: ChatTemplate) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: template.render(turns("ok")), range(200))) == {"fine"}


def test_long_conversations_pass_both_ways() -> None:
    long = "a llama \ud83e\udd99 é " * 300_000
    with ChatTemplate("{{ messages[0].content }}") as template:
        assert template.render(turns(long)) == json.loads(json.dumps(long))


def test_close_ends_the_process_and_may_be_repeated(template: ChatTemplate) -> None:
    template.render(turns("ok"))
    assert template._process is not None
    popen = template._process._popen
    template.close()
    assert popen.returncode == -signal.SIGKILL
    template.close()


def test_a_template_longer_than_any_is_refused() -> None:
    with pytest.raises(TemplateError, match="longer than"):
        ChatTemplate("a" * (1 << 20) + "a")


def test_footprint_knows_this_process_and_no_dead_one() -> None:
    held = bytearray(64 << 20)
    assert footprint(os.getpid()) > len(held)
    assert footprint(2**30) == 0
