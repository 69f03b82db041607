"""Label sets: labels with their wordings, parents and thresholds, and what else is scored beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from typing import Literal

import msgspec

from sigrl_deploy.errors import LabelError, kind_of
from sigrl_deploy.labels.names import check_labels, in_order, text_problem
from sigrl_deploy.structs import Checked

MOST_WORDINGS = 1_000_000  # of a label set: texts to encode
MOST_LEVELS = 32  # of parents, their parents and so on
MOST_THRESHOLD = 1e6  # scores are within ±1
FEW_LABELS = 10  # with fewer, and no background, even a wrong label may score high
SLOT = "{label}"
_SHOWN = 60  # characters of a name in a message
_MOST_OF_CIRCLE = 8  # names in a message

Place = Callable[[int, str], str]  # the number of a label in the set, and a field → what a message calls it


class Match(str, Enum):
    """How several wordings of a label become its score.

    `mean` takes the mean of their embeddings: best for wordings of one meaning. `any` scores the name and each synonym apart
    and takes the best: for words that look unlike, such as the two meanings of "crane".

    >>> Label("crane", synonyms=("crane bird", "tower crane"), match=Match.ANY).match.value
    'any'
    """

    MEAN = "mean"
    ANY = "any"


class Label(Checked, frozen=True):
    """One label of a set.

    >>> Label("sofa", synonyms=("couch", "settee"), parents=("furniture",)).name
    'sofa'

    Attributes:
        name: what pictures are tagged with.
        synonyms: other words for it, which are looked for too.
        templates: in place of the set's, each with {label} in it once.
        parents: names of what every such thing also is. A picture that gets this label gets them as well.
        threshold: leave the label out where it scores below; None leaves that to the run.
        emit: False for a label that is scored beside the others and is no tag itself.
        match: how name and synonyms become one score.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    threshold: float | None = None
    emit: bool = True
    match: Match = Match.MEAN


class LabelSet(Checked, frozen=True):
    """Labels that pictures are scored against together. A score holds for one label set only.

    >>> labels = LabelSet((Label("sofa", synonyms=("couch",)), Label("chair"), Label("lamp")), background="common")
    >>> labels.names
    ('sofa', 'chair', 'lamp')

    Attributes:
        labels: in the order of the file.
        version: of the schema of label files.
        templates: what each label is put into; by default the bundle's one template. Of several, the mean is taken.
        background: labels that are scored beside these and are never tags: "bundle", those that the bundle was exported with,
            "common", some 300 everyday labels, or the path of another label file.
    """

    labels: tuple[Label, ...]
    version: Literal[1] = 1
    templates: tuple[str, ...] = ()
    background: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The labels that may become tags."""
        return tuple(label.name for label in self.labels if label.emit)

    @property
    def is_plain(self) -> bool:
        """Whether it is a list of names and nothing more."""
        return self == LabelSet(tuple(Label(label.name) for label in self.labels))

    def only(self, names: Collection[str]) -> LabelSet:
        """The set without the other labels that may become tags. What is never one stays."""
        wanted = set(names)
        kept = tuple(label for label in self.labels if label.name in wanted or not label.emit)
        return msgspec.structs.replace(self, labels=kept)


def label_set(labels: Iterable[str | Label] | LabelSet) -> LabelSet:
    """Labels from code, checked: names, `Label`s or both.

    Raises LabelError for a set, no labels, a label without a name, and for what `check_label_set` refuses.
    """
    if isinstance(labels, LabelSet):
        return _checked_types(labels)
    items = list(in_order(labels))
    if all(isinstance(item, str) for item in items):
        return LabelSet(tuple(map(Label, check_labels(item for item in items if isinstance(item, str)))))
    found = []
    for i, item in enumerate(items):
        if not isinstance(item, (str, Label)):
            raise LabelError(f"item {i} is {kind_of(item)}, expected text or a Label", argument="labels")
        found.append(Label(item) if isinstance(item, str) else item)
    return _checked_types(LabelSet(tuple(found)))


def _checked_types(labels: LabelSet) -> LabelSet:
    def error(problem: str) -> LabelError:
        return LabelError(problem, argument="labels")

    try:
        return check_label_set(labels.checked(), key_of(labels), error)
    except (TypeError, ValueError) as problem:
        raise error(str(problem)) from None


def key_of(labels: LabelSet) -> Place:
    """Names fields of a set's labels as `labels[3].threshold of 'sofa'`."""

    def place(i: int, field: str) -> str:
        key, name = f"labels[{i}].{field}", labels.labels[i].name
        return key if field == "name" else f"{key} of {name[:_SHOWN]!r}"

    return place


def check_label_set(labels: LabelSet, place: Place, error: Callable[[str], LabelError]) -> LabelSet:
    """The set with its texts stripped. `error` makes an exception of a problem, which is raised for:

    an empty, overlong or odd text, a name or wording that two labels share, a parent that is a synonym, a circle of parents, a
    template without its slot, a threshold that is not finite, a set without a label that may become a tag.
    """
    stripped = msgspec.structs.replace(labels, labels=tuple(map(_stripped, labels.labels)))
    if not any(label.emit for label in stripped.labels):
        raise error("holds no labels that may become tags; expected at least one")
    for template in stripped.templates:
        if problem := template_problem(template):
            raise error(f"templates: {problem}")
    owners: dict[str, tuple[int, str]] = {}
    for i, label in enumerate(stripped.labels):
        for field, text in _texts(label):
            if problem := text_problem(text):
                raise error(f"{place(i, field)}: {problem}")
        for field, text in _texts(label):
            if field != "parents" and text in owners:
                raise error(f"{place(i, field)}: {text!r} repeats {place(*owners[text])}; remove one of the two")
            if field != "parents":
                owners[text] = (i, field)
        for template in label.templates:
            if problem := template_problem(template):
                raise error(f"{place(i, 'templates')}: {problem}")
        if label.threshold is not None and not abs(label.threshold) <= MOST_THRESHOLD:
            raise error(f"{place(i, 'threshold')}: is {label.threshold}, expected a finite number, such as 0.25")
    if (texts := count_texts(stripped)) > MOST_WORDINGS:
        raise error(f"holds {texts:,} texts, synonyms times templates, expected {MOST_WORDINGS:,} at most; use fewer templates")
    _check_parents(stripped, place, error)
    return stripped


def count_rows(labels: LabelSet) -> int:
    """The rows that a set's pictures are scored against: one a label, or one a wording where the best of them counts."""
    return sum(1 + (len(label.synonyms) if label.match is Match.ANY else 0) for label in labels.labels)


def count_texts(labels: LabelSet) -> int:
    """The texts that a set has encoded: of each label, its name and synonyms times its templates."""
    return sum((1 + len(label.synonyms)) * max(1, len(label.templates or labels.templates)) for label in labels.labels)


def _texts(label: Label) -> Iterator[tuple[str, str]]:
    yield "name", label.name
    for field in ("synonyms", "parents"):
        for text in getattr(label, field):
            yield field, text


def _stripped(label: Label) -> Label:
    texts = {field: tuple(text.strip() for text in getattr(label, field)) for field in ("synonyms", "parents")}
    return msgspec.structs.replace(label, name=label.name.strip(), **texts)


def template_problem(template: str) -> str:
    """What is wrong with a template; "" where nothing is."""
    if template.count(SLOT) != 1 or not template.isprintable():
        return f"{template[:100]!r}, expected one line of text with {SLOT} in it, once"
    return text_problem(template)


def _check_parents(labels: LabelSet, place: Place, error: Callable[[str], LabelError]) -> None:
    of_synonym = {text: label.name for label in labels.labels for text in label.synonyms}
    for i, label in enumerate(labels.labels):
        for parent in label.parents:
            if parent in of_synonym:
                problem = f"{parent!r} is a synonym of {of_synonym[parent]!r}; name the parent {of_synonym[parent]!r}"
                raise error(f"{place(i, 'parents')}: {problem}")
    parents = parents_of(labels)
    depth: dict[str, int] = {}
    try:
        for name in TopologicalSorter(parents).static_order():  # parents before their children
            depth[name] = 1 + max((depth[parent] for parent in parents.get(name, ())), default=0)
            if depth[name] > MOST_LEVELS:
                raise error(f"{name!r} has more than {MOST_LEVELS} levels of parents above it; leave out the highest")
    except CycleError as found:
        circle: list[str] = found.args[1][::-1]  # from child to parent
        shown = " → ".join(name[:_SHOWN] for name in circle[:_MOST_OF_CIRCLE]) + " …" * (len(circle) > _MOST_OF_CIRCLE)
        i = next(i for i, label in enumerate(labels.labels) if label.name == circle[0])
        raise error(f"{place(i, 'parents')}: {shown} is a circle; remove one of these parents") from None


def parents_of(labels: LabelSet) -> dict[str, tuple[str, ...]]:
    """The parents of each label of a set, by its name."""
    return {label.name: label.parents for label in labels.labels}


def ancestors(name: str, parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Parents of a label, their parents, and so on, each once, the nearest first. There may be no circle among them."""
    found: dict[str, None] = {}
    level = [name]
    while level:
        level = list(dict.fromkeys(parent for child in level for parent in parents.get(child, ()) if parent not in found))
        found.update(dict.fromkeys(level))
    return tuple(found)
