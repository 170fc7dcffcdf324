"""Between texts and tokens, in an engine's process: conversations in, pieces of answers out.

X1  a conversation becomes the very tokens that adapters were trained with
    (:func:`shared.models.pytorch.prompt_ids`), without torch, which transformers' tokenizers import
X2  pieces put together are the whole answer decoded at once, up to the first stop string
X3  a piece holds whole characters only, and nothing in which a stop string may still begin
X4  a token costs the same wherever it stands, whatever the model writes: all requests of a process
    wait for it
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from coordinator.inference.engine import Alternative, ChatMessage, Piece, TokenLogprob
from coordinator.inference.token_runtime import Emitted
from shared.errors import ModelError, PromptRefused
from shared.extras import require

_EXTRA: Final = "llm"
_CUT: Final = "\N{REPLACEMENT CHARACTER}"
"""What half a character decodes to: tokens are pieces of bytes."""

_NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_PENDING: Final = 16
"""Tokens that may wait for the rest of a character, of which four suffice; more are no character."""
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


class TextModel:
    """A model's tokenizer and chat template, read from its folder."""

    def __init__(self, folder: Path) -> None:
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        Raises:
            ModelError: one of them is damaged, or the template is none.
            DependencyMissing: the extra ``llm`` is not installed.
        """
        tokenizers: Any = require("tokenizers", extra=_EXTRA)
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            table = json.loads(path.read_text(encoding="utf-8"))
        except Exception as err:  # the library raises bare Exception for a bad file
            raise ModelError(f"{path} is no tokenizer that can be used: {err}") from err
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        decoder = table.get("decoder")
        self._in_bytes = "ByteLevel" in json.dumps(decoder)
        self._bytes_alone = isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
        added: Mapping[int, Any] = self._tokenizer.get_added_tokens_decoder()
        self._hidden = frozenset(token for token, each in added.items() if each.special)
        config = _object_in(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:  # older models name them in a file of their own
            config = {**config, **_object_in(folder / "special_tokens_map.json")}
        special = {name: _content(config.get(name)) for name in _NAMES}
        self._special = {name: text for name, text in special.items() if text is not None}
        self._end = self._tokenizer.token_to_id(self._special.get("eos_token", ""))
        self._template = _template(folder, config)
        size = _object_in(folder / "config.json").get("vocab_size")
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        # Models may have more places than tokens, and are asked with any of them.
        self._vocabulary = size if isinstance(size, int) else max(known.values(), default=-1) + 1

    def tokens_of(self, prompt: Sequence[ChatMessage] | Sequence[int] | str) -> list[int]:
        """Tokens of a conversation up to where the model's turn begins (X1), or of a text.

        Raises:
            PromptRefused: there is nothing in it, the template does not take such a conversation,
                or the model has no such token.
        """
        tokens = self._tokens_of(prompt)
        if not tokens:
            raise PromptRefused("the prompt is empty: 0 tokens")
        return tokens

    def _tokens_of(self, prompt: Sequence[ChatMessage] | Sequence[int] | str) -> list[int]:
        if isinstance(prompt, str):
            return list(self._encoded(prompt, special=True))
        turns = [turn for turn in prompt if isinstance(turn, ChatMessage)]
        if turns and len(turns) == len(prompt):
            return self._conversation(turns)
        tokens: list[int] = []
        for token in prompt:
            # Beyond the model's places it would end the process, and with it everybody's answers.
            if type(token) is not int or not 0 <= token < self._vocabulary:
                raise PromptRefused(
                    f"{token!r} is no token of the model: they go from 0 to {self._vocabulary - 1}"
                )
            tokens.append(token)
        return tokens

    def _conversation(self, turns: Sequence[ChatMessage]) -> list[int]:
        if self._template is None:
            ids = list(self._encoded("".join(turn.content for turn in turns), special=True))
            if ids and ids[-1] == self._end:  # some tokenizers end every text, but this one goes on
                ids.pop()
            return ids or ([self._end] if self._end is not None else [])
        jinja2: Any = require("jinja2", extra=_EXTRA)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as err:
            raise PromptRefused(f"the model's chat template refuses this: {err}") from err
        return list(self._encoded(text, special=False))

    def _encoded(self, text: str, *, special: bool) -> Sequence[int]:
        try:
            ids: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        except (TypeError, UnicodeError) as err:  # half a character, which JSON can spell
            raise PromptRefused("the text holds half a character (a lone surrogate)") from err
        return ids

    def stream(
        self, *, stop: Sequence[str], ends: Collection[int], logprobs: bool = False
    ) -> TextStream:
        """Begin to turn the tokens of one answer into text.

        Args:
            stop: The text ends before the first of these.
            ends: Tokens that end the turn, which are not shown.
            logprobs: Whether pieces carry them.
        """
        characters = _Utf8(self._bytes) if self._bytes_alone else _Window(self._decoded)
        return TextStream(
            characters,
            stop=stop,
            ends=ends,
            hidden=self._is_hidden,
            alternative=self.alternative if logprobs else None,
        )

    def _is_hidden(self, token: int) -> bool:
        """Whether decoding passes over it: a special token, or one that the tokenizer lacks."""
        return token in self._hidden or self._tokenizer.id_to_token(token) is None

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def alternative(self, token: int, logprob: float) -> Alternative:
        """A token as text and bytes."""
        data = self._bytes(token)
        return Alternative(data.decode(errors="replace"), data, logprob)

    def _bytes(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # models have more places than their tokenizers have tokens
            return b""
        if self._in_bytes:
            try:
                return bytes(_byte_of()[character] for character in piece)
            except KeyError:  # an added token, written as it is
                return str(piece).encode()
        if (match := _BYTE.fullmatch(piece)) is not None:
            return bytes([int(match.group(1), 16)])
        return str(piece).replace("▁", " ").encode()


class _Characters(Protocol):
    """Tokens in, whole characters out."""

    def feed(self, token: int) -> str:
        """What is whole with this token and was not said before."""
        ...

    def finish(self) -> str:
        """What is left when no token follows, without half a character."""
        ...


class _Utf8:
    """Of tokens that are pieces of UTF-8 and nothing else."""

    def __init__(self, data_of: Callable[[int], bytes]) -> None:
        self._data_of = data_of
        # It gives one replacement character for as many bytes as the tokenizers' decoder does.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._data_of(token))

    def finish(self) -> str:
        return ""


class _Window:
    """Of tokens whose neighbours decide how they are written.

    Decoded is from the last token that was shown on, since the whole answer would be decoded again
    for each of its tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._shown: list[int] = []
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        self._pending.append(token)
        new = self._new()
        if len(self._pending) <= _PENDING and (not new or new.endswith(_CUT)):
            return ""
        self._shown, self._pending = self._pending, []
        return new

    def finish(self) -> str:
        return self._new().rstrip(_CUT)

    def _new(self) -> str:
        before = self._decode(self._shown)
        now = self._decode(self._shown + self._pending)
        if now.startswith(before):
            return now[len(before) :]
        # A byte that belongs to no character makes the decoder take back the whole characters
        # before it that are spelt in bytes as well; those were shown.
        return self._decode(self._pending)


class TextStream:
    """The text of one answer while its tokens come in (X2, X3)."""

    def __init__(
        self,
        characters: _Characters,
        *,
        stop: Sequence[str],
        ends: Collection[int],
        hidden: Callable[[int], bool],
        alternative: Callable[[int, float], Alternative] | None,
    ) -> None:
        self._characters = characters
        self._stop = tuple(stop)
        self._ends = ends
        self._is_hidden = hidden
        self._alternative = alternative
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: the rest is not wanted."""
        return self._stopped

    def feed(self, emitted: Emitted) -> Piece | None:
        """Take a token; what may be shown now, or ``None``. Nothing is after a stop string."""
        if self._stopped:
            return None
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._alternative is not None:
            chosen = self._alternative(emitted.token, emitted.logprob)
            others = tuple(self._alternative(*each) for each in emitted.likeliest)
            logprobs = (TokenLogprob(chosen, others),)
        text = ""
        if emitted.token not in self._ends and not self._is_hidden(emitted.token):
            text = self._shown(self._characters.feed(emitted.token))
        return Piece(text, logprobs) if text or logprobs else None

    def finish(self) -> Piece | None:
        """What was held back, when no more tokens come."""
        if self._stopped:
            return None
        text = self._shown(self._characters.finish())
        if not self._stopped:
            text, self._held = text + self._held, ""
        return Piece(text) if text else None

    def _shown(self, new: str) -> str:
        """What may be shown of the text held so far and ``new``; looks for stop strings."""
        text, self._held = self._held + new, ""
        places = ((text.find(each), len(each)) for each in self._stop)
        if cuts := [(at + length, at) for at, length in places if at >= 0]:
            # The one that is whole first, so that it does not matter how tokens cut the text.
            self._stopped = True
            return text[: min(cuts)[1]]
        held = max((_overlap(text, each) for each in self._stop), default=0)
        if held:
            text, self._held = text[:-held], text[-held:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How much of the end of ``text`` may be the beginning of ``stop``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@cache
def _byte_of() -> Mapping[str, int]:
    """Which byte each character of a byte-level vocabulary stands for.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: printable
    characters of Latin-1 stand for themselves, the other bytes for characters from 256 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def _object_in(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; an empty one if there is no file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        raise ModelError(f"{path} cannot be read: {err}") from err
    if not isinstance(table, dict):
        raise ModelError(f"{path} is not one JSON object")
    return table


def _content(token: Any) -> str | None:
    """The text of a special token, which is written alone or with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers spells JSON in templates; that of jinja2 escapes what HTML would."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _template(folder: Path, config: Mapping[str, Any]) -> Any:
    """The chat template, or ``None``: read and rendered as transformers does.

    Raises:
        ModelError: it is no template.
    """
    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(text, list):  # several by name
        text = next((each.get("template") for each in text if each.get("name") == "default"), None)
    if not isinstance(text, str):
        return None
    jinja2: Any = require("jinja2", extra=_EXTRA)
    extensions: Any = require("jinja2.ext", extra=_EXTRA)
    sandbox: Any = require("jinja2.sandbox", extra=_EXTRA)

    class Generation(extensions.Extension):  # type: ignore[misc]  # the library is met here only
        """Marks what the model wrote; of no meaning when a template is only rendered."""

        tags: Final = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as err:
        raise ModelError(f"the chat template of {folder} is none: {err}") from err
