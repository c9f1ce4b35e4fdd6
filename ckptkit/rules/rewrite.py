"""Applying rules to a graph: match every name, prove that all is accounted for, compose the new tensors lazily.

Nothing is read: shapes and dtypes of all results are known when this ends, and every problem is told at once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptkit.core.collector import paused
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.ops.equal import counted, same
from ckptkit.ops.fill import fill
from ckptkit.rules import coupled, outcome
from ckptkit.rules.compose import MOST, Group, Key, Maker
from ckptkit.rules.expressions import Bound, Environment, Expression, Value
from ckptkit.rules.language import Parsed
from ckptkit.rules.matching import Hit, Index
from ckptkit.rules.model import Made, Rule
from ckptkit.rules.nearest import Nearest
from ckptkit.rules.outcome import Product, Rewrite, RulesError
from ckptkit.rules.template import like_a_pattern
from ckptkit.rules.values import Sizes, Values


def rewrite(parsed: Parsed, graph: TensorGraph, given: Mapping[str, str | int]) -> Rewrite:
    """Raises RulesError with every problem."""
    found, findings = prove(parsed, graph, given)
    if found is None:
        raise RulesError(findings)
    return found


@paused()
def prove(
    parsed: Parsed, graph: TensorGraph, given: Mapping[str, str | int]
) -> tuple[Rewrite | None, list[Finding]]:
    """The new graph, if there are no errors among the findings."""
    try:
        env = Values(graph, parsed.let, parsed.tables, given)
        if parsed.done is not None and parsed.done.value(env):
            note = Finding(
                "already-converted", "note", parsed.name, "the names are converted already; nothing was done"
            )
            return outcome.unchanged(graph, note), [note]
    except CkptError as error:
        return None, [_problem(error, parsed.name)]
    return Proof(parsed, graph, env).run()


def _problem(error: CkptError, where: str, what: str = "") -> Finding:
    message = f"{what}: {error.message}" if what else error.message
    return Finding(error.code, "error", error.where or where, message, error.hint or "")


@dataclass
class Proof:
    """One application of rules to a graph; `run` it once.

    Attributes:
        off: rules whose guard does not hold; guarded: rules whose guard asks about each name.
        groups: rule → its own holes' values → the sources of one result, for rules that do more than rename.
        holes: rule → its own holes, and those that its joins run over.
    """

    parsed: Parsed
    graph: TensorGraph
    env: Values
    findings: list[Finding] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rules = self.parsed.rules
        self.known = {*self.parsed.let, *self.parsed.tables, "config"}
        self.order = {name: place for place, name in enumerate(self.graph)}
        self.renaming = [rule.renames for rule in self.rules]
        self.index = Index()
        self.off: set[int] = set()  # rules whose guard does not hold
        self.guarded: dict[int, tuple[Expression, ...]] = {}  # rules whose guard asks about the name
        self.used: set[int] = set()
        self.groups: dict[int, dict[tuple[Value, ...], Group]] = {}
        self.holes: dict[int, tuple[list[str], list[str]]] = {}  # rule → its own holes, those of its joins
        self.copy_of: dict[str, str] = {}  # dropped source → the one that it must equal
        self.equal: dict[str, list[str]] = {}  # source → dropped ones that must equal it
        self.checks: list[tuple[str, Tensor]] = []  # dropped ones, and what they must hold
        self.dropped: list[str] = []
        self.unwrapped = False
        self.told: dict[int, tuple[str, ...]] = {}  # rule → its operations in words
        self.taken: dict[str, int] = {}  # source → the rule that takes it

    def run(self) -> tuple[Rewrite | None, list[Finding]]:
        for number, rule in enumerate(self.rules):
            self.prepare(number, rule)
        left = [] if self.findings else self.match()
        if not self.findings:
            left = [name for name in left if not self.follows(name)]
            self.leftover(left)
            self.originals()
            self.compose()
            self.check_rules()
            self.collisions()
        if any(finding.severity == "error" for finding in self.findings):
            return None, self.findings
        self.products.sort(key=lambda product: product.place)
        made = outcome.rewritten(self.graph, self.products, self.dropped, self.findings, self.checks)
        return made, self.findings

    def error(self, code: str, where: str, message: str, hint: str = "") -> None:
        self.findings.append(Finding(code, "error", where, message, hint))

    # before the names

    def prepare(self, number: int, rule: Rule) -> None:
        own = {name for side in rule.sources for name in side.template.names} - self.known
        asks = []
        try:
            for guard in rule.when:
                free = guard.names | {name for call in guard.calls for name in _holes(call.template)}
                if free & own:
                    asks.append(guard)
                elif not guard.value(self.env):
                    self.off.add(number)
                    return
            joined = [str(step.args["over"]) for step in rule.joins if "over" in step.args]
            self.holes[number] = (sorted(own - set(joined)), joined)
            for place, side in enumerate(rule.sources):
                self.index.add(number, place, side.template, self.env, self.known)
        except CkptError as error:
            self.findings.append(_problem(error, rule.where))
        if asks:
            self.guarded[number] = tuple(asks)

    # names

    def match(self) -> list[str]:
        """Give every name to its rule; the names that no rule speaks of."""
        left = []
        shared = frozenset(n for n, rule in enumerate(self.rules) if rule.kind == "shared")
        for name in self.graph:
            hits = self.hits(self.plain(name) if self.parsed.unwrap else name)
            if hits is None:
                continue
            if self.guarded:
                hits = [hit for hit in hits if self.holds(hit)]
            if not hits:
                left.append(name)
                continue
            if len(hits) > 1:
                several = any(hit.rule in shared for hit in hits)
                self.used.update(hit.rule for hit in hits)
                hits = [hit for hit in hits if hit.rule not in shared]
                if len(hits) > 1 and not several:
                    self.overlap(name, hits)
                    continue
            for hit in hits:
                self.take(name, hit)
        return left

    def hits(self, name: str) -> list[Hit] | None:
        """The rules that speak of a name; None, and a problem, where that cannot be told."""
        try:
            return self.index.hits(name)
        except CkptError as error:
            if sum(finding.code == error.code for finding in self.findings) < _TOLD:
                self.findings.append(_problem(error, self.parsed.name))
            return None

    def plain(self, name: str) -> str:
        """The name without its wrappers."""
        if not any(wrapper in name for wrapper in self.parsed.unwrap):
            return name
        self.unwrapped = True
        return ".".join(part for part in name.split(".") if part not in self.parsed.unwrap) or name

    def holds(self, hit: Hit) -> bool:
        guards = self.guarded.get(hit.rule, ())
        try:
            return all(guard.value(Bound(self.env, hit.bound)) for guard in guards)
        except CkptError as error:
            self.findings.append(_problem(error, self.rules[hit.rule].where))
            return False

    def overlap(self, name: str, hits: Sequence[Hit]) -> None:
        rules = [self.rules[hit.rule] for hit in hits]
        if len({rule.where for rule in rules}) == 1:
            message = f"{name!r} is matched twice by one rule: {rules[0]}"
        else:
            message = f"{name!r} is matched by two rules: {rules[0]} and {rules[1].where}: {rules[1]}"
        if sum(f.code == "rule-overlap" for f in self.findings) < _TOLD:
            hint = "give each name to one rule, or declare it shared"
            self.error("rule-overlap", rules[0].where, message, hint)

    def take(self, name: str, hit: Hit) -> None:
        rule = self.rules[hit.rule]
        self.used.add(hit.rule)
        if rule.kind == "shared":
            self.error("rule-incomplete", rule.where, f"{name!r} is shared, but no rule takes it")
            return
        self.taken[name] = hit.rule
        if rule.kind == "drop":
            self.dropped.append(name)
            if rule.other is not None:
                self.same_as(name, rule, hit.bound)
            if rule.made is not None:
                self.holding(name, rule, rule.made)
            return
        bound = hit.bound
        if self.renaming[hit.rule]:
            side = rule.targets[0]
            try:
                new = side.template.fill(bound, self.env)
            except CkptError as error:
                self.findings.append(_problem(error, rule.where, name))
                return
            self.products.append(Product(self.order[name], new, (name,), rule.where))
            return
        own, joined = self.holes[hit.rule]
        key = tuple([bound.get(hole) for hole in own])
        group = self.groups.setdefault(hit.rule, {}).setdefault(key, Group(bound))
        place = Key(hit.side, tuple([bound[hole] for hole in joined]))
        if place in group.names:
            self.error(
                "rule-overlap", rule.where, f"{group.names[place]!r} and {name!r} take one place of {rule}"
            )
        group.names[place] = name

    def same_as(self, name: str, rule: Rule, bound: Mapping[str, Value]) -> None:
        assert rule.other is not None
        try:
            other = rule.other.fill(bound, self.env)
        except CkptError as error:
            self.findings.append(_problem(error, rule.where, name))
            return
        if other not in self.graph:
            self.error("rule-incomplete", rule.where, f"{name!r} must equal {other!r}, which is not there")
            return
        self.copy_of[name] = other
        try:
            same([self.graph[other], self.graph[name]])
        except CkptError as error:
            self.findings.append(_problem(error, rule.where, name))

    def holding(self, name: str, rule: Rule, made: Made) -> None:
        tensor = self.graph[name]
        try:
            self.checks.append((name, counted(tensor, _filled(made, self.env, tensor))))
        except CkptError as error:
            self.findings.append(_problem(error, rule.where, name))

    def originals(self) -> None:
        """What the copies that are dropped have to equal is itself not dropped as a copy."""
        for name, other in self.copy_of.items():
            way = {name}
            while other in self.copy_of and other not in way:
                way.add(other)
                other = self.copy_of[other]
            if other in way:
                where = self.rules[self.taken[name]].where
                self.error(
                    "rule-incomplete", where, f"{name!r} and {other!r} are dropped as copies of each other"
                )
                return
            for copy in way:
                self.copy_of[copy] = other
            self.equal.setdefault(other, []).append(name)
        dropped = set(self.dropped)
        self.checks += [(name, self.source(name)) for name in self.equal if name in dropped]

    def follows(self, name: str) -> bool:
        """Whether a tensor that no rule names goes along with the weight it belongs to."""
        for found in coupled.companion(name, self.graph):
            hits = self.hits(found.weight)
            if hits is None or len(hits) != 1:
                continue
            hit, rule = hits[0], self.rules[hits[0].rule]
            self.used.add(hit.rule)
            if rule.kind == "drop":
                self.dropped.append(name)
                return True
            if rule.renames:
                new = rule.targets[0].template.fill(hit.bound, self.env)
                if not found.instead or new.endswith("weight"):
                    product = Product(self.order[name], found.beside(new), (name,), rule.where)
                    self.products.append(product)
                    return True
            message = f"{name!r} belongs to {found.weight!r}, which {rule} changes"
            hint = "give it a rule of its own, or dequantise before"
            self.error("rule-quantized", rule.where, message, hint)
            return True
        return False

    def leftover(self, names: Sequence[str]) -> None:
        """What no rule takes is kept, or an error for each kind of name."""
        if self.parsed.keep_others:
            self.products += [Product(self.order[name], self.plain(name), (name,), "") for name in names]
            return
        kinds: dict[str, list[str]] = {}
        for name in names:
            kinds.setdefault(re.sub("[0-9]+", "#", name), []).append(name)
        templates = Nearest(side.template.text for rule in self.rules for side in rule.sources)
        for count, alike in enumerate(kinds.values()):
            more = f" and {len(alike) - 1} more of its kind" if len(alike) > 1 else ""
            near = templates.of(alike[0]) if count < _TOLD else []
            hint = (
                f"nearest: {', '.join(near)}"
                if near
                else "drop it, name its target, or set keep_others: true"
            )
            self.error("rule-leftover", self.parsed.name, f"no rule speaks of {alike[0]!r}{more}", hint)

    def check_rules(self) -> None:
        if self.parsed.unwrap and not self.unwrapped:
            message = f"no name has {' or '.join(self.parsed.unwrap)} in it"
            self.error("rule-unmatched", self.parsed.name, message)
        silent = [
            rule
            for number, rule in enumerate(self.rules)
            if rule.sources and not rule.optional and number not in self.used and number not in self.off
        ]
        if silent:
            names = Nearest(self.graph)
            for count, rule in enumerate(silent):
                text = rule.sources[0].template.text
                near = names.of(text) if count < _TOLD else []
                hint = f"nearest: {', '.join(near)}" if near else "optional: true allows that"
                if like_a_pattern(text):
                    hint = "names are no patterns: {i} is a number, {x:*} a segment, {rest:**} anything"
                self.error("rule-unmatched", rule.where, f"no name matches {rule}", hint)

    def collisions(self) -> None:
        """Each name must be made once; rules that speak of what was made, ties and fills like it, come last."""
        made: dict[str, Product] = {}
        for product in self.products:
            before = made.setdefault(product.name, product)
            if before is not product:
                sources = " and ".join(repr(p.sources[0]) if p.sources else p.rule for p in (before, product))
                self.error(
                    "name-collision",
                    product.rule or self.parsed.name,
                    f"{sources} both become {product.name!r}",
                )
        self.beside(made)

    def beside(self, made: dict[str, Product]) -> None:
        """What ties and fills like another target make: these speak of targets of other rules, not of each other."""
        index = Index()
        silent: dict[int, Rule] = {}
        for number, rule in enumerate(self.rules):
            if rule.targets and rule.other is not None and number not in self.off:
                silent[number] = rule
                try:
                    index.add(number, 0, rule.other, self.env, self.known)
                except CkptError as error:
                    self.findings.append(_problem(error, rule.where))
        for product in list(made.values()) if silent else ():
            for hit in index.hits(product.name):
                rule = self.rules[hit.rule]
                silent.pop(hit.rule, None)
                if self.full(rule):
                    return
                try:
                    new = self.new(rule, product, hit.bound)
                except CkptError as error:
                    self.findings.append(_problem(error, rule.where))
                    continue
                if new.name in made:
                    self.error("name-collision", rule.where, f"{new.name!r} is made already")
                    continue
                made[new.name] = new
                self.products.append(new)
        for rule in silent.values():
            if not rule.optional and rule.other is not None:
                self.error("rule-unmatched", rule.where, f"no target {rule.other.text!r} for {rule}")

    def new(self, rule: Rule, product: Product, bound: Mapping[str, Value]) -> Product:
        """A target again under another name, or a new one like it."""
        name = rule.targets[0].template.fill(bound, self.env)
        place = product.place + 0.5
        if rule.made is None:
            return product._replace(name=name, place=place, rule=rule.where, operations=("tie",))
        like = self.graph[product.sources[0]] if product.tensor is None else product.tensor
        tensor = _filled(rule.made, Sizes(self.env, bound, like), like)
        return Product(place, name, (), rule.where, (f"fill({rule.made.value})",), tensor)

    def full(self, rule: Rule) -> bool:
        """Whether the rules have made all that they may; tells it."""
        allowed = len(self.order) + _MADE
        if len(self.products) > allowed:
            self.error("over-budget", rule.where, f"the rules make more than {allowed:,} tensors")
        return len(self.products) > allowed

    # tensors

    def compose(self) -> None:
        for number, groups in self.groups.items():
            rule = self.rules[number]
            own = [op for side in rule.sources[:1] for op in side.ops]
            self.told[number] = tuple(map(str, (*own, *rule.joins, *rule.ops)))
            for group in groups.values():
                if self.full(rule):
                    return
                try:
                    self.products += Maker(self, number, group).make()
                except CkptError as error:
                    what = next(iter(group.names.values()))
                    self.findings.append(_problem(error, rule.where, what))
        for number, rule in enumerate(self.rules):
            if (
                rule.kind == "fill"
                and rule.made is not None
                and rule.other is None
                and number not in self.off
            ):
                if self.full(rule):
                    return
                try:
                    self.products += self.fill(rule, rule.made)
                except CkptError as error:
                    self.findings.append(_problem(error, rule.where))
        for place, product in enumerate(self.products):
            if self.equal and product.tensor is None and product.sources[0] in self.equal:
                self.products[place] = product._replace(tensor=self.source(product.sources[0]))

    def fill(self, rule: Rule, made: Made) -> Iterator[Product]:
        counts = {hole: count.integer(self.env) for hole, count in made.over.items()}
        total = 1
        for count in counts.values():
            total *= count
        if min(counts.values(), default=0) < 0 or total > MOST:
            raise CkptError("rule-value", f"a fill of {total} tensors")
        if max(counts.values(), default=0) > MOST:  # beside a count of 0
            raise CkptError("rule-value", f"a fill that counts to {max(counts.values())}")
        tensor = _filled(made, self.env)
        template = rule.targets[0].template
        for bound in _indices(counts):
            name = template.fill(bound, self.env)
            yield Product(len(self.order), name, (), rule.where, (f"fill({made.value})",), tensor)

    def source(self, name: str) -> Tensor:
        """A tensor of the graph, which is compared with those dropped as its copies."""
        tensor = self.graph[name]
        copies = self.equal.get(name)
        if not copies:
            return tensor
        return same([tensor, *(self.graph[copy] for copy in copies)], f"{name}, {', '.join(copies[:_TOLD])}")


def _filled(made: Made, env: Environment, like: Tensor | None = None) -> Tensor:
    """What a fill makes; `like` has the shape and dtype that the rule does not state."""
    stated = tuple([size.integer(env) for size in made.shape or ()])
    shape = like.shape if made.shape is None and like else stated
    if min(shape, default=0) < 0:
        raise CkptError("rule-value", f"a fill of shape {list(shape)}")
    dtype = made.dtype or (like.dtype if like else DTYPES["float32"])
    kind: Any = made.value if made.value in ("arange", "causal", "eye") else "constant"
    return fill(dtype, shape, kind, float(made.value) if kind == "constant" else 0)


_MADE = 500_000  # tensors made beyond those there were
_TOLD = 20  # problems of one kind that get a hint of their own


def _holes(text: str) -> frozenset[str]:
    from ckptkit.rules.template import template

    return template(text).names if "{" in text else frozenset()


def _indices(counts: Mapping[str, int]) -> Iterator[dict[str, Value]]:
    from itertools import product

    for index in product(*map(range, counts.values())):
        yield dict(zip(counts, index, strict=True))
