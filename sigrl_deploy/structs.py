"""Records that check themselves: typed, bounded fields, read from files that anybody may have written."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from sigrl_deploy.errors import printable

_LONGEST = 300  # characters of a problem: the names of unknown fields are the file's
_Self = TypeVar("_Self", bound="Checked")


class Checked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen record without unknown fields.

    Its constructor runs `__post_init__` only, where a record compares its fields with each other. Types and bounds, which are
    annotations, are checked by `from_plain` and `checked`.
    """

    @classmethod
    def from_plain(cls: type[_Self], values: object) -> _Self:
        """A record from dicts, lists, strings and numbers, as `json.loads` gives them. Nothing is converted to another type.

        Raises ValueError, of one line that names the field.
        """
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(problem_of(error)) from None
        except UnicodeError:  # half of a character, which JSON can write as an escape
            raise ValueError("holds text that is no valid Unicode") from None

    def to_plain(self) -> dict[str, Any]:
        """The inverse of `from_plain`."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    def checked(self: _Self) -> _Self:
        """The same record, after all of its checks. Raises ValueError as `from_plain` does."""
        return self.from_plain(self.to_plain())


def problem_of(error: msgspec.ValidationError) -> str:
    """What msgspec found wrong: `Expected `int` >= 1 - at `$.vision.width`` → "vision.width: expected int >= 1"."""
    what, _, place = str(error).replace("`", "").partition(" - at ")
    where = place.replace("key in $.", "a name in ").replace("$.", "").replace("$", "")
    what = what[:1].lower() + what[1:]
    return printable(f"{where}: {what}" if where else what)[:_LONGEST]
