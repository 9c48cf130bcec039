"""Prove from a chat template's source that one rendering of a conversation shows what several would.

Where a turn begins and ends is otherwise found by rendering the conversation up to it, twice a turn. Most templates are
a loop over the messages that never looks ahead, and write after it what depends on ``add_generation_prompt`` alone:

    text(messages[:k], prompt) = before + turn 1 + ... + turn k + after(prompt)

The positions of the turns in one rendering then give all the shorter ones. The proof is by syntax and errs on the safe
side: whatever is not known to be harmless leaves the template unproved, and its conversations are rendered turn by
turn. A branch for messages of one role (tools, mostly) may look ahead: then rows with that role are left unproved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes

from align.core.data.template_sandbox import environment
from align.schemas.records import Message

_CAUSAL = frozenset({"index", "index0", "first", "previtem", "changed", "cycle", "depth", "depth0"})
"""Attributes of ``loop`` that depend on this iteration and those before it."""
_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block, nodes.Break)
_OPAQUE = frozenset({"add_generation_prompt", "self", "lipsum"})
"""Names that no turn may depend on: the first differs between renderings; the others are out of sight, or random."""
_TOOLS = frozenset({"tools", "custom_tools"})
"""Names of a row's tools. The second (Llama) comes with chat_template_kwargs, and rows with those are never covered."""
_TAIL = (
    *(nodes.If, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.And, nodes.Or, nodes.Not, nodes.Test),
    *(nodes.Compare, nodes.Operand, nodes.CondExpr, nodes.Concat, nodes.Add),
)
"""Syntax that may stand after the loop: it calls nothing and keeps nothing."""


class TemplateForm(NamedTuple):
    """The facts that a template's syntax proves.

    loop: the number, among the template's loops, of the one whose iterations are the turns; None where nothing is
    proved. unless_roles, unless_tools: rows with such messages, or with tools, are not covered. marks_are_output: True
    if what ``{% generation %}`` marks enclose goes straight to the output, so that they change nothing else.
    """

    loop: int | None
    unless_roles: frozenset[str]
    unless_tools: bool
    marks_are_output: bool

    def covers(self, messages: Iterable[Message], tools: Any) -> bool:
        """Return True if the turns of one rendering of these messages show what its beginnings would be."""
        if self.loop is None or (self.unless_tools and tools is not None):
            return False
        return not self.unless_roles or self.unless_roles.isdisjoint(str(m.get("role")) for m in messages)


@lru_cache(maxsize=8)
def analyse(source: str) -> TemplateForm:
    """Return what the syntax of the template ``source`` proves; of one that cannot be parsed, nothing."""
    try:
        parsed = environment().parse(source)
        proof = _Proof(parsed)
        loop = proof.loop()
        return TemplateForm(
            loop, frozenset(proof.roles), proof.tools, set(_marks(parsed)) <= set(_marks_in_output(parsed.body))
        )
    except (jinja2.TemplateError, RecursionError):  # the first is reported when it is rendered
        return TemplateForm(None, frozenset(), False, False)


def _marks(node: nodes.Node) -> Iterator[nodes.CallBlock]:
    """Yield the ``{% generation %}`` blocks: the only calls of an extension that a template can have."""
    for block in node.find_all(nodes.CallBlock):
        if isinstance(block.call.node, nodes.ExtensionAttribute):
            yield block


def _marks_in_output(body: Iterable[nodes.Node]) -> Iterator[nodes.CallBlock]:
    """Yield the blocks of ``_marks`` whose output nothing captures: not in a macro, filter, ``set`` or each other."""
    for node in body:
        if isinstance(node, nodes.CallBlock):
            if isinstance(node.call.node, nodes.ExtensionAttribute):
                yield node
        elif isinstance(node, nodes.If):
            yield from _marks_in_output([*node.body, *node.elif_, *node.else_])
        elif isinstance(node, nodes.For):
            yield from _marks_in_output([*node.body, *node.else_])


class _Proof:
    """The search for a loop over the messages that never looks ahead."""

    def __init__(self, template: nodes.Template) -> None:
        self._template = template
        self._lists = {"messages"}  # names of the messages, or of all but the first
        self._message = ""  # the loop's variable
        self._replaced = False  # True once ``messages`` itself has been assigned
        self._assigned = list(template.find_all(nodes.Assign))
        self.roles = set[str]()
        self.tools = False

    def loop(self) -> int | None:
        """Return the number of the loop among all loops of the template; None where it is not proved."""
        for _ in range(2):  # a name may be assigned from a name that is assigned later
            self._lists |= {
                each.target.name
                for each in self._assigned
                if isinstance(each.target, nodes.Name) and self._is_list(each.node)
            }
        body = self._template.body
        at = [i for i, node in enumerate(body) if isinstance(node, nodes.For) and self._names_list(node.iter)]
        if len(at) != 1:
            return None
        loop = body[at[0]]
        assert isinstance(loop, nodes.For)
        if not isinstance(loop.target, nodes.Name) or loop.else_ or loop.test or loop.recursive:
            return None
        self._message = loop.target.name
        before, after = body[: at[0]], body[at[0] + 1 :]
        proved = (
            self._message not in {*self._lists, "loop"}
            and all(self._is_harmless(node, inside=False, own=False) for node in before)
            and all(self._is_harmless(node, inside=True, own=True) for node in loop.body)
            and all(self._is_tail(node) for node in after)
        )
        # By identity: nodes are equal to others of the same text.
        numbers = (number for number, each in enumerate(self._template.find_all(nodes.For)) if each is loop)
        return next(numbers) if proved else None

    def _names_list(self, node: nodes.Node | None) -> bool:
        return isinstance(node, nodes.Name) and node.name in self._lists

    def _is_list(self, node: nodes.Node) -> bool:
        """Return True for the messages, and for all but the first of them: ``messages[1:]``."""
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            start, rest = node.arg.start, (node.arg.stop, node.arg.step)
            whole = isinstance(node.node, nodes.Name) and node.node.name == "messages" and not self._replaced
            return whole and _is_const(start, 1) and rest == (None, None)
        return self._names_list(node)

    def _is_harmless(self, node: nodes.Node, inside: bool, own: bool) -> bool:
        """Return True if what a node writes and keeps depends on no later message, nor on the generation prompt.

        inside: the node is in the loop over the messages. own: ``loop`` there means that loop, no inner one.
        """
        if isinstance(node, _REFUSED) or (isinstance(node, nodes.Filter) and node.name == "random"):
            return False
        if isinstance(node, nodes.Name):
            hidden = node.name in self._lists or node.name in _OPAQUE or (own and node.name == "loop")
            return not hidden and not (node.ctx != "load" and node.name in (self._message, "loop"))
        if isinstance(node, nodes.Getitem) and self._names_list(node.node) and _is_const(node.arg, 0):
            # The first message is there in every shorter conversation, unless the name has come to mean the others.
            return not self._replaced and isinstance(node.node, nodes.Name) and node.node.name == "messages"
        if own and isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop":
            return node.attr in _CAUSAL
        if isinstance(node, nodes.Assign) and self._names_list(node.target):
            is_list = self._is_list(node.node)
            self._replaced = self._replaced or (isinstance(node.target, nodes.Name) and node.target.name == "messages")
            return not inside and is_list
        if isinstance(node, nodes.Macro):
            # A macro is executed where it is called, when names of the messages may mean something else.
            out_of_reach = {*self._lists, *_OPAQUE}.isdisjoint(name.name for name in node.find_all(nodes.Name))
            return out_of_reach and self._are_harmless(node.iter_child_nodes(), inside, own)
        if isinstance(node, nodes.For):
            shared = [node.target, node.iter, *([node.test] if node.test else []), *node.else_]
            return self._are_harmless(shared, inside, own) and self._are_harmless(node.body, inside, own=False)
        if isinstance(node, nodes.If):
            return (  # in the order of the text, for ``_replaced``
                self._is_harmless(node.test, inside, own)
                and self._is_branch_harmless(node, inside, own)
                and self._are_harmless([*node.elif_, *node.else_], inside, own)
            )
        return self._are_harmless(node.iter_child_nodes(), inside, own)

    def _are_harmless(self, some: Iterable[nodes.Node], inside: bool, own: bool) -> bool:
        return all(self._is_harmless(node, inside, own) for node in some)

    def _is_branch_harmless(self, node: nodes.If, inside: bool, own: bool) -> bool:
        """Return True if the branch is harmless, or taken for rows only that are then left unproved."""
        if self._are_harmless(node.body, inside, own):
            return True
        conditions = list(_conjuncts(node.test))
        role = next((role for each in conditions if (role := self._role(each)) is not None), None)
        if role is not None:
            self.roles.add(role)
        elif any(map(_needs_tools, conditions)) and self._has_own_tools():
            self.tools = True
        else:
            return False
        return True

    def _role(self, test: nodes.Node) -> str | None:
        """Return R of the condition ``message.role == "R"``."""
        if not (isinstance(test, nodes.Compare) and len(test.ops) == 1 and test.ops[0].op == "eq"):
            return None
        of, role = test.expr, test.ops[0].expr
        named = (isinstance(of, nodes.Getattr) and of.attr == "role") or (
            isinstance(of, nodes.Getitem) and _is_const(of.arg, "role")
        )
        if not named or not isinstance(of, nodes.Getattr | nodes.Getitem) or not isinstance(role, nodes.Const):
            return None
        mine = isinstance(of.node, nodes.Name) and of.node.name == self._message
        return role.value if mine and isinstance(role.value, str) else None

    def _has_own_tools(self) -> bool:
        """Return True if ``tools`` is nowhere anything but the row's tools or none."""
        kept = [each.target for each in self._assigned if _is_none(each.node) or _is_tools(each.node)]
        bound = (name for name in self._template.find_all(nodes.Name) if name.name in _TOOLS and name.ctx != "load")
        return all(any(name is target for target in kept) for name in bound)

    def _is_tail(self, node: nodes.Node) -> bool:
        """Return True if a node after the loop depends on ``add_generation_prompt`` and constants alone."""
        inner = [node, *node.find_all(nodes.Node)]
        names = {each.name for each in inner if isinstance(each, nodes.Name)}
        kept = {name.name for name in self._template.find_all(nodes.Name) if name.ctx != "load"}
        return all(isinstance(each, _TAIL) for each in inner) and not names & {*kept, "messages", "tools", "loop"}


def _is_const(node: nodes.Node | None, value: str | int) -> bool:
    return isinstance(node, nodes.Const) and type(node.value) is type(value) and node.value == value


def _is_none(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and node.value is None


def _is_tools(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name in _TOOLS


def _conjuncts(test: nodes.Node) -> Iterator[nodes.Node]:
    """Yield conditions that all hold where the test does."""
    if isinstance(test, nodes.And):
        yield from _conjuncts(test.left)
        yield from _conjuncts(test.right)
    else:
        yield test


def _needs_tools(test: nodes.Node) -> bool:
    """Return True for ``tools`` and for ``tools is not none``: neither holds in a row without tools."""
    if isinstance(test, nodes.Not) and isinstance(test.node, nodes.Test) and test.node.name == "none":
        test = test.node.node
    return isinstance(test, nodes.Name) and test.name == "tools"
