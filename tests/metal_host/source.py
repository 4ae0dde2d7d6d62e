"""The source of a kernel rewritten for a parser of this machine: line for line, so that errors name its own lines."""

import re
from collections.abc import Iterator

from engine.metal.kernel import Kernel, Template

# How the entry calls the kernel: the value of each attribute, of the type that the signature gives it.
PLACES = {
    "dispatch_quadgroups_per_threadgroup": "(launch->group.x * launch->group.y * launch->group.z + 3) / 4",
    "dispatch_simdgroups_per_threadgroup": "(launch->group.x * launch->group.y * launch->group.z + 31) / 32",
    "dispatch_threads_per_threadgroup": "as_uint3(launch->group)",
    "grid_origin": "uint3(0)",
    "grid_size": "as_uint3(launch->grid)",
    "quadgroup_index_in_threadgroup": "self->index / 4",
    "quadgroups_per_threadgroup": "(group->count + 3) / 4",
    "simdgroup_index_in_threadgroup": "self->index / 32",
    "simdgroups_per_threadgroup": "(group->count + 31) / 32",
    "thread_execution_width": "32",
    "thread_index_in_quadgroup": "self->index % 4",
    "thread_index_in_simdgroup": "self->index % 32",
    "thread_index_in_threadgroup": "self->index",
    "thread_position_in_grid": "as_uint3(self->in_grid)",
    "thread_position_in_threadgroup": "as_uint3(self->in_group)",
    "threadgroup_position_in_grid": "as_uint3(group->position)",
    "threadgroups_per_grid": "as_uint3(launch->groups)",
    "threads_per_grid": "as_uint3(launch->grid)",
    "threads_per_simdgroup": "32",
    "threads_per_threadgroup": "as_uint3(group->threads)",
}

COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
ARRAY = re.compile(
    r"(?<![\w(,<])(?P<before>(?:alignas\([^()]*\)\s*)?)threadgroup\s+"
    r"(?P<align>(?:alignas\([^()]*\)\s*)?)"
    r"(?P<type>(?:const\s+)?[A-Za-z_][\w:]*(?:\s*<[^;{}]*?>)?(?:\s+(?:int|char|short|long))?)\s+"
    r"(?P<names>[A-Za-z_]\w*\s*(?:\[[^;{}=]*\])?(?:\s*,\s*[A-Za-z_]\w*\s*(?:\[[^;{}=]*\])?)*)\s*;"
)


def without_comments(source: str) -> str:
    """The source with its comments blank, every line where it was."""

    def blank(found: re.Match[str]) -> str:
        text = found[0]
        return text if text[0] == '"' else re.sub(r"[^\n]", " ", text)

    return COMMENT_OR_STRING.sub(blank, source)


def declarators(names: str) -> Iterator[tuple[str, str]]:
    """`a[2], b` as names and extents, a comma within brackets left alone."""
    for one in re.split(r",(?![^\[]*\])", names):
        name, extents = re.fullmatch(r"\s*(\w+)\s*(.*?)\s*", one, re.DOTALL).groups()  # type: ignore[union-attr]
        yield name, extents


def shared_arrays(source: str) -> str:
    """Declarations in threadgroup memory as references to one array for all threads of the threadgroup."""
    count = 0

    def rewritten(found: re.Match[str]) -> str:
        nonlocal count
        parts = []
        for name, extents in declarators(found["names"]):
            align = found["before"] or found["align"]
            parts.append(
                f"typedef {found['type']} metal_host_{name} {extents}; "
                f"auto &{name} = METAL_HOST_SHARED({count}, {name});{'/* ' + align + '*/' if align else ''}"
            )
            count += 1
        return " ".join(parts) + "\n" * found[0].count("\n")

    return ARRAY.sub(rewritten, source)


def located(kernel: Kernel, source: str) -> str:
    """The source with the lines of header and body counted as in their own files."""
    assert source.startswith(kernel.header)
    start = source.index(kernel.body, len(kernel.header))
    end = start + len(kernel.body)
    return (
        f'#line 1 "{kernel.name} header"\n{source[: len(kernel.header)]}\n#line 1 "{kernel.name} signature"\n'
        f'{source[len(kernel.header) : start]}\n#line 1 "{kernel.name} body"\n{source[start:end]}'
        f'\n#line 1 "{kernel.name} end"\n{source[end:]}'
    )


def entry(source: str) -> str:
    """A function that calls the kernel for one thread, with what its signature asks for."""
    name, parameters = re.search(r"\[\[kernel\]\] void (\w+)\(\n(.*?)\) \{\n", source, re.DOTALL).groups()  # type: ignore[union-attr]
    arguments = []
    for parameter in parameters.split(",\n"):
        kind, attribute = re.fullmatch(r"\s*(.*?[*&]?) \w+ \[\[(.*)\]\]", parameter).groups()  # type: ignore[union-attr]
        if attribute in PLACES:
            arguments.append(PLACES[attribute])
            continue
        index = int(attribute.removeprefix("buffer(").removesuffix(")"))
        pointer = f"static_cast<{kind.replace('&', '*')}>(buffers[{index}])"
        arguments.append(f"*{pointer}" if kind.endswith("&") else pointer)
    instance = re.search(rf"decltype\(({name}<[^<>]*>)\)", source)
    call = f"    ::{instance[1] if instance else name}({', '.join(arguments)});"
    return (
        f"namespace metal_host {{\nvoid thread_main(void *const *buffers) {{\n{call}\n}}\n}} // namespace metal_host\n"
    )


def may_contract(kernel: Kernel) -> bool:
    """Whether Metal may fuse a * b + c: unless the first thing that the header says is that it must not."""
    forbids = re.compile(r"#\s*pragma\s+METAL\s+fp\s+contract\s*\(\s*off\s*\)")
    text = without_comments(kernel.header)
    found = forbids.search(text)
    if not found:
        assert not forbids.search(without_comments(kernel.body)), (
            f"{kernel.name}: say contract(off) in the header, first"
        )
        return True
    assert "(" not in re.sub(r"#[^\n]*", "", text[: found.start()]), f"{kernel.name}: contract(off) comes too late"
    return False


def translated(kernel: Kernel, template: Template) -> str:
    source = without_comments(located(kernel, kernel.source(template)))
    return shared_arrays(source) + "\n" + entry(kernel.source(template))
