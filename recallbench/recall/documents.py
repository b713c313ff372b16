"""Documents of one's own: a file of texts, each with a key and the value that stands in the text."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from models.settings import SettingError


class Document(BaseModel):
    """One question: `value` is what a reader of `text` says to `key`."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    text: str
    key: str
    value: str


def read_documents(path: str) -> tuple[list[Document], str]:
    """The documents of a JSON-lines file, and the digest of what it says.

    **Raises** `SettingError` naming the line that is no document, or whose text does not contain its value.
    """
    documents: list[Document] = []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingError("path", path, f"it must be a file of JSON lines; {reason}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = Document.model_validate(json.loads(line))
        except (ValueError, ValidationError):
            expected = f"line {number} must be a JSON object with the strings text, key and value"
            raise SettingError("path", path, expected) from None
        if not document.value.strip() or not occurrences(document.value.strip(), document.text):
            raise SettingError("path", path, f"the text of line {number} does not contain its value {document.value!r}")
        documents.append(document)
    if not documents:
        raise SettingError("path", path, "it must hold one document at the least")
    told = json.dumps([document.model_dump() for document in documents])
    return documents, hashlib.sha256(told.encode()).hexdigest()[:16]


def occurrences(value: str, text: str) -> list[tuple[int, int]]:
    """Where a value stands in a text, in whatever case: first character and the one behind the last."""
    return [found.span() for found in re.finditer(re.escape(value), text, re.IGNORECASE)]


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """A JSON-lines file of them."""
    path.write_text("".join(json.dumps(d.model_dump(), ensure_ascii=False) + "\n" for d in documents), encoding="utf-8")
