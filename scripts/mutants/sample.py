"""Which small faults the core can have, and a seeded choice among them.

The faults are cosmic-ray's. Left out is what no test should know: texts (docstrings, f-strings,
what is raised, logged or printed), annotations, decorators, our own assertions (`assert`,
`strict=`), and the defaults of a training stage's command line.
"""

from __future__ import annotations

import ast
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

from .tree import FOLDERS, Tree

_BINARY = {
    "Add": "Sub",
    "Sub": "Add",
    "Mul": "Div",
    "Div": "Mul",
    "FloorDiv": "Mul",
    "Mod": "Mul",
    "Pow": "Mul",
    "LShift": "RShift",
    "RShift": "LShift",
    "BitOr": "BitAnd",
    "BitAnd": "BitOr",
}
# the border moved, and the side changed
_COMPARISONS = {
    "Lt": ("LtE", "GtE"),
    "LtE": ("Lt", "Gt"),
    "Gt": ("GtE", "LtE"),
    "GtE": ("Gt", "Lt"),
    "Eq": ("NotEq",),
    "NotEq": ("Eq",),
    "Is": ("IsNot",),
    "IsNot": ("Is",),
}
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{a}_{b}" for a, b in _BINARY.items()),
    *(f"core/ReplaceComparisonOperator_{a}_{b}" for a, to in _COMPARISONS.items() for b in to),
    "core/ReplaceUnaryOperator_Delete_USub",
    "core/ReplaceUnaryOperator_Delete_Invert",
    "core/ReplaceUnaryOperator_Delete_Not",
    "core/AddNot",
    "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/ExceptionReplacer",
    "core/NumberReplacer",
    "core/ZeroIterationForLoop",
)
_SPEAKING = ("logger", "logging", "warnings", "print", "add_argument", "cast", "TypeVar")
Place = tuple[int, int]
"""Line, counted from 1, and column."""


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    file: str
    line: int
    column: int
    operator: str
    occurrence: int
    """Number of the place among the operator's in this file."""
    first_line: int
    """Of the statement that it is in, without the statements inside that."""
    last_line: int
    at_import: bool
    """Whether the statement runs when the file is imported."""

    @property
    def folder(self) -> str:
        """Of the core."""
        return self.file.split("/")[1]

    @property
    def name(self) -> str:
        """Tells it from all others of a commit."""
        operator = self.operator.removeprefix("core/")
        return f"{self.file}:{self.line}:{self.column} {operator} {self.occurrence}"

    def plant(self, source: str) -> str:
        """Return the file's source with the fault."""
        mutated = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        assert mutated is not None, self.name
        return mutated


def choose(tree: Tree, count: int, least: int, seed: int) -> list[Mutant]:
    """Draw faults, each at a place of its own: so many in every folder, more where more code is.

    Args:
        tree: The copy.
        count: Of all folders together.
        least: Of each folder.
        seed: Of the draw.

    Returns:
        They, folders taking turns, so that a part of the list is a fair sample too.
    """
    draw = random.Random(seed)
    places: dict[str, list[list[Mutant]]] = {}
    for folder in FOLDERS:
        files = tree.sources(folder)
        places[folder] = [place for file in files for place in find(file, tree.read(file))]
    total = sum(map(len, places.values()))
    left = count - least * len(FOLDERS)
    chosen = {}
    for folder, found in places.items():
        wanted = least + math.ceil(max(0, left) * len(found) / total)
        drawn = (_draw_one(tree, place, draw) for place in draw.sample(found, len(found)))
        chosen[folder] = list(islice(filter(None, drawn), wanted))
    longest = max(map(len, chosen.values()))
    return [chosen[f][turn] for turn in range(longest) for f in FOLDERS if turn < len(chosen[f])]


def find(file: str, source: str) -> list[list[Mutant]]:
    """All faults of a file, those of one place together."""
    module = ast.parse(source)
    silent = list(_left_out(module))
    statements = _Statements(module)
    places: dict[Place, list[Mutant]] = defaultdict(list)
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = get_operator(name)()
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(positions):
            if not any(first <= start < last for first, last in silent):
                statement = statements.around(start[0])
                mutant = Mutant(file, start[0], start[1], name, occurrence, *statement)
                places[start].append(mutant)
    return [places[place] for place in sorted(places)]


def _draw_one(tree: Tree, place: Sequence[Mutant], draw: random.Random) -> Mutant | None:
    """One fault of a place that changes the program, in whatever order that is found."""
    source = tree.read(place[0].file)
    for mutant in draw.sample(place, len(place)):
        try:
            changed = ast.dump(ast.parse(mutant.plant(source))) != ast.dump(ast.parse(source))
        except SyntaxError:
            continue
        if changed:
            return mutant
    return None


def _left_out(module: ast.Module) -> Iterator[tuple[Place, Place]]:
    """From where to where no fault is planted."""
    for node in ast.walk(module):
        match node:
            case ast.Raise() | ast.Assert() | ast.JoinedStr():
                yield _span(node)
            case ast.Call(func=function) if _is_speaking(function):
                yield _span(node)
            case ast.AnnAssign(annotation=annotation):
                yield _span(annotation)
            case ast.keyword(arg="strict"):
                yield _span(node)
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                yield _span(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _around_defaults(node)
            case ast.ClassDef(decorator_list=decorators):
                yield from map(_span, decorators)


def _around_defaults(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator:
    """Yield what is left of a function's head when the default values are taken out."""
    yield from map(_span, function.decorator_list)
    given = [*function.args.defaults, *filter(None, function.args.kw_defaults)]
    start: Place = (function.lineno, function.col_offset)
    for first, last in sorted(map(_span, given)):
        yield start, first
        start = last
    yield start, (function.body[0].lineno, function.body[0].col_offset)


def _is_speaking(function: ast.expr) -> bool:
    while isinstance(function, ast.Attribute):
        if function.attr in _SPEAKING:
            return True
        function = function.value
    return isinstance(function, ast.Name) and function.id in _SPEAKING


def _span(node: ast.expr | ast.stmt | ast.keyword) -> tuple[Place, Place]:
    last = (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)
    return (node.lineno, node.col_offset), last


class _Statements:
    """Tells which statement a line is in."""

    def __init__(self, module: ast.Module) -> None:
        self._heads = list(self._walk(module.body, at_import=True))

    def around(self, line: int) -> tuple[int, int, bool]:
        """First and last line of the innermost statement, and whether it runs at import."""
        around = [head for head in self._heads if head[0] <= line <= head[1]]
        return min(around, key=lambda head: head[1] - head[0])

    def _walk(
        self, body: Iterable[ast.stmt], *, at_import: bool
    ) -> Iterator[tuple[int, int, bool]]:
        for statement in body:
            inner = [child for child in ast.walk(statement) if isinstance(child, ast.stmt)]
            inside = [child.lineno for child in inner if child is not statement]
            end = statement.end_lineno or statement.lineno
            last = end if not inside else max(statement.lineno, min(inside) - 1)
            yield statement.lineno, last, at_import
            is_function = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            for name in ("body", "orelse", "finalbody"):
                below = getattr(statement, name, [])
                yield from self._walk(below, at_import=at_import and not is_function)
            for handler in getattr(statement, "handlers", []):
                yield handler.lineno, handler.body[0].lineno, at_import and not is_function
                yield from self._walk(handler.body, at_import=at_import and not is_function)
