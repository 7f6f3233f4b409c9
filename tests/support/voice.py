"""Rules of voice for docstring summaries and texts.

A summary is one plain sentence. A function's begins with a verb in the imperative, a class's or module's with a noun.
"""

import ast
import re
from collections.abc import Iterable, Iterator

MAX_WORDS = 14
VERBS = frozenset(
    """
    accept acquire add adjust admit advance aggregate agree align allocate allow announce answer append apply
    archive ask assert assign attach attack audit average begin bind bound break bring build cache calculate
    calibrate call cancel capture cast change charge check choose classify clear clip close collect combine commit
    compare compose compress compute configure confirm connect consume continue convert copy correct count create
    crop cross cut deal decide declare decode decrypt delete deliver derive describe detect deterministically
    discard distribute divide do download draw drop dump embed emit encode encrypt end enroll ensure enter enumerate
    erase escape estimate evaluate examine exchange execute exit expand expect explain export express extend extract
    fail fetch fill filter find finish fit flatten flip flush fold follow forget fork format forward freeze gather
    generate get give grant group guard guess handle hash hide hold identify ignore import impose increase index
    infer initialize inject insert inspect install interpolate interrupt invert issue iterate join judge keep kill
    label lay learn leave lend let limit link list listen load locate lock log look make map mark mask match measure
    meet merge mix model move multiply name nest normalize note notify number observe omit open order own pack pad
    pair parse partition pass pause perform permit pick pin plan plant play plot poll pool prefix prepare preprocess
    print process produce project promise protect prove provide publish pull push put query quote raise randomize
    rank read rebuild receive reconnect reconstruct record recover redirect reduce refer refuse register reject
    release reload remember remove rename render repeat replace replay reply report represent request require
    rescale reserve reset resize resolve restore restrict resume retain retry return review revoke rewrite rotate
    round route run sample save say scale scan schedule score search seed select send separate serve set shape share
    shift show shrink shuffle sign simulate skip sleep smooth snapshot solve sort spend split spread stage start
    state stay steer stop store stream stretch strip submit subtract sum summarize suppress swap switch synthesize
    take tell terminate test throw time tokenize total trace track train transform translate trim try turn undo
    unflatten unlock unpack update upload use validate verify view visit wait walk warn watch weigh wrap write yield
    zero
    """.split()  # noqa: SIM905 -- a list of words is read as a text
)
NO_OPENING = frozenset(
    """
    all also and anybody anything as at but each every everybody everything for from how if in inside it no nobody
    not nothing on one only or outside so somebody something that these this those what when where whether who why
    with without
    """.split()  # noqa: SIM905
)
_VERBS_AT_THE_START = frozenset(verb.capitalize() for verb in VERBS)
_SECOND_CLAUSE = re.compile(
    r", (and|but|so|or|which|who|that|because|whatever|whoever|where|if|then|else|since|while|for)\b"
)
_NOUN_PHRASE = re.compile(r"\w+ (of|for|behind|in|on|between|that|with|from|by|and)\b")
_IS_NO = re.compile(r"(?<!there )(?<!There )\b(is|are) no (?!longer\b|more\b)")


def summary_of(docstring: str) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join(docstring.strip().split("\n\n")[0].split())


def faults_in(summary: str, kind: str) -> Iterator[str]:
    """Yield what is wrong with a summary.

    Args:
        summary: One line.
        kind: `module`, `class`, `property` or `function`.
    """
    words = summary.split()
    first = re.sub(r"[^\w'-]", "", words[0]) if words else ""
    if len(words) > MAX_WORDS:
        yield f"{len(words)} words"
    if re.search(r"[:;]", re.sub(r"`[^`]*`", "x", summary)):
        yield "colon or semicolon"
    if not summary.endswith("."):
        yield "no full stop at its end"
    elif re.search(r"[.?!]\s", summary[:-1]):
        yield "more than one sentence"
    if _SECOND_CLAUSE.search(summary):
        yield "more than one clause"
    if kind == "function" and first.lower() not in VERBS:
        yield f"{first!r} is not a verb in the imperative"
    if kind != "function" and first.lower() in NO_OPENING:
        yield f"{first!r} does not open a noun phrase"
    reads_as_verb = first in _VERBS_AT_THE_START and not _NOUN_PHRASE.match(summary)
    if kind in ("module", "class") and reads_as_verb:
        yield f"{first!r} reads as a verb"


def faults_of(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield `line: what is wrong` for every docstring and text among a module's nodes."""
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            for fault in faults_in(summary_of(docstring), _kind_of(node)) if docstring else ():
                yield f"{getattr(node, 'lineno', 1)}: {fault}: {summary_of(docstring or '')!r}"
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if _IS_NO.search(text) and isinstance(node, ast.Constant):
            yield f"{node.lineno}: says 'is no' where 'is not a' is plain: {text[:60]!r}"


def _kind_of(node: ast.AST) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    decorators = [ast.unparse(item) for item in getattr(node, "decorator_list", [])]
    return "property" if any("property" in text for text in decorators) else "function"
