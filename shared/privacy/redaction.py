"""Find personal data in a text, and put a placeholder in its place.

Recognisers of our own, from the published standards, for English and Chinese text; nothing but
the standard library. What is promised:

1. **Offsets are true.** A finding's ``start`` and ``end`` are character positions in the text as
   it was given. Full-width forms, digits of other scripts, long dashes and invisible characters
   are folded before anything is looked for, through a map that keeps positions.
2. **Findings are disjoint and in order**, and a function of the text alone (no clock, no locale).
   Where two overlap the longer wins, then the more specific kind (`_PRECEDENCE`).
3. **What is redacted holds no finding**, so redacting twice changes nothing. Taking one value out
   can bring out another (a word before an address no longer says that it is a version);
   therefore the search runs again until it finds nothing; a text that was made to go on for
   ever is withheld as a whole.
4. **Work grows in step with the text.** Every pattern starts at a fixed mark, and what follows is
   bounded in length or possessive; no repeat stands in a repeat that could share its characters.

Where people may differ, this is what a finding covers:

* PHONE: the number as written, with country code, brackets and extension. Short codes (911, 110,
  12315, 95588) belong to the public and are no findings; a 400 or 1-800 number is one, for it
  cannot be told from a subscriber's. A number right after "order", "单号" and the like is none.
* EMAIL: the address without ``mailto:``. ``git@host:path``, ``name@2x.png``, ``@handle@host``,
  systemd units and package versions are none. "sam at example dot com" is one only where the
  local part or a word before it says so.
* IP_ADDRESS: the address without port, prefix length or zone; loopback and masks too. Four
  numbers behind a word or sign of a version, or a section, are a version.
* SECRET: only the value: ``password: `` stays, so that the text can still be understood; of
  a URL with credentials only the password. One-time codes (验证码) are not looked for: they are
  worth nothing minutes later.
* RESIDENT_ID, PAYMENT_CARD, IBAN: with their separators; a wrong check digit is no finding.

What patterns cannot see (names, street addresses, a password that is a plain word in a sentence)
stays in the text: redaction is the second line, after the policy that keeps a question here.
"""

from __future__ import annotations

import bisect
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum


class Kind(StrEnum):
    """What was recognised; the value names it in logs and reports."""

    EMAIL = "email"
    PHONE = "phone"
    RESIDENT_ID = "resident_id"
    PAYMENT_CARD = "payment_card"
    IBAN = "iban"
    IP_ADDRESS = "ip_address"
    SECRET = "secret"  # noqa: S105 - the name of a kind

    @property
    def placeholder(self) -> str:
        """What stands in the text afterwards, such as ``[EMAIL]``.

        Equal values are not numbered: whoever reads the redacted text learns that there was an
        address, not whether two were the same.
        """
        return f"[{self.name}]"


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of personal data: ``text[start:end]``, in characters."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text with placeholders, and what they stand for in the text that was given."""

    text: str
    findings: tuple[Finding, ...]


_MOST_PASSES = 12
"""Ordinary text needs two: one that finds, one that finds no more. Three were seen."""


def find_personal_data(text: str) -> tuple[Finding, ...]:
    """Every piece of personal data in ``text``, disjoint and in order.

    Example:
        >>> [(f.kind.value, f.start, f.end) for f in find_personal_data("致电13812345678，谢谢")]
        [('phone', 2, 13)]
    """
    findings: list[Finding] = []
    for _ in range(_MOST_PASSES):
        redacted = _Substituted(text, findings)
        found = _scan(redacted.text)
        if not found:
            return tuple(findings)
        outer = [redacted.original(finding) for finding in found]
        # A new finding may enclose an old placeholder (a password that holds an address).
        starts = [finding.start for finding in outer]
        kept = [
            old
            for old in findings
            if not ((at := bisect.bisect_right(starts, old.start)) and old.end <= outer[at - 1].end)
        ]
        findings = sorted(kept + outer, key=lambda finding: finding.start)
    # Nobody writes such a text by accident: it was made so that each pass brings out one more.
    return (Finding(Kind.SECRET, 0, len(text)),)


def redact(text: str) -> Redacted:
    """``text`` with every finding replaced by the placeholder of its kind.

    Example:
        >>> redact("Mail anna@example.com or call +49 30 901820.").text
        'Mail [EMAIL] or call [PHONE].'
    """
    findings = find_personal_data(text)
    return Redacted(_Substituted(text, findings).text, findings)


class _Substituted:
    """A text with placeholders for some findings, and the way back to the original's positions."""

    def __init__(self, text: str, findings: list[Finding] | tuple[Finding, ...]) -> None:
        pieces: list[str] = []
        # Marks (position here, position there): between two marks, either plain text, where
        # positions run alike, or one placeholder.
        self._here, self._there = [0], [0]
        here = there = 0
        for finding in findings:
            pieces += [text[there : finding.start], finding.kind.placeholder]
            here += finding.start - there
            self._mark(here, finding.start)
            here += len(finding.kind.placeholder)
            there = finding.end
            self._mark(here, there)
        pieces.append(text[there:])
        self.text = "".join(pieces)

    def _mark(self, here: int, there: int) -> None:
        self._here.append(here)
        self._there.append(there)

    def original(self, finding: Finding) -> Finding:
        """The finding at the positions of the original text; placeholders count as a whole."""
        return Finding(
            finding.kind, self._back(finding.start, up=False), self._back(finding.end, up=True)
        )

    def _back(self, position: int, *, up: bool) -> int:
        # Marks come as 0, (start, end) of the first placeholder, (start, end) of the second, …:
        # an odd one begins a placeholder.
        at = (
            bisect.bisect_left(self._here, position) - 1
            if up
            else bisect.bisect_right(self._here, position) - 1
        )
        at = max(at, 0)
        if at % 2:
            return self._there[at + 1] if up else self._there[at]
        return self._there[at] + position - self._here[at]


# --- Folding -------------------------------------------------------------------------------------


class _Fold(dict[int, str | None]):
    """What each character is read as; filled as characters are met, for ``str.translate``."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        self[code] = folded = _fold(char)
        return folded


def _fold(char: str) -> str | None:
    """One character as the recognisers read it: at most one character, or None to skip it."""
    if char.isascii():
        return char
    category = unicodedata.category(char)
    if category == "Cf":  # zero-width spaces, soft hyphens, marks of direction
        return None
    if category == "Zs":
        return " "
    if category == "Pd":
        return "-"
    if category == "Nd":  # every script's digits, full-width ones among them
        return str(unicodedata.decimal(char))
    narrow = unicodedata.normalize("NFKC", char)
    # Only forms of one ASCII character: "²" is no 2, and a ligature would change lengths.
    return narrow if len(narrow) == 1 and narrow.isascii() and category != "No" else char


_FOLD = _Fold()
_Span = tuple[int, int]
_Recogniser = Callable[[str], Iterator[_Span]]


def _scan(text: str) -> list[Finding]:
    """One pass: the findings of every recogniser, overlaps resolved, in order."""
    folded = text.translate(_FOLD)
    skipped = len(folded) != len(text)
    places = [at for at, char in enumerate(text) if _FOLD[ord(char)] is not None] if skipped else []
    found = [
        (kind, start, end) for kind, recognise in _RECOGNISERS for start, end in recognise(folded)
    ]
    found.sort(key=lambda one: (one[1] - one[2], _PRECEDENCE[one[0]], one[1]))
    taken: list[tuple[int, int, Kind]] = []
    for kind, start, end in found:
        at = bisect.bisect_left(taken, (start, end, kind))
        free_before = at == 0 or taken[at - 1][1] <= start
        free_after = at == len(taken) or end <= taken[at][0]
        if free_before and free_after:
            taken.insert(at, (start, end, kind))
    if skipped:
        return [Finding(kind, places[start], places[end - 1] + 1) for start, end, kind in taken]
    return [Finding(kind, start, end) for start, end, kind in taken]


# --- Shared pieces -------------------------------------------------------------------------------

# Han, kana and hangul: written without spaces, so a word of ASCII ends where they begin.
_CJK = r"\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_IS_CJK = re.compile(f"[{_CJK}]")
_DIGITS = re.compile(r"[0-9]++")
_ALNUM = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_NO_NEIGHBOURS = frozenset("$€£¥%°元*")  # amounts, and numbers that were masked already

# Words directly before a number which say that it numbers something else than a person.
_OTHER_NUMBER = re.compile(
    r"(?:\b(?:order|po|invoice|bill|ticket|case|ref|reference|track|tracking|parcel|shipment|waybill"
    r"|serial|part|article|item|sku|model|batch|lot|isbn|issn|barcode|bar code|imei|iccid|ean|upc|vin|doi|asin"
    r"|booking|confirmation|transaction|receipt|claim|member|membership|employee|staff|student"
    r"|version|build|commit|bestellung|auftrag|rechnung|vorgang|commande|facture|pedido|id)"
    r"|订单|訂單|单|單|编|編|流水|批次|序列|学|工|考|会员|會員|会议|合同|发票|條碼|条|商品|货|包裹"
    r"|税|期|群|qq|案件|产品|型|件)"
    r"(?:number|nummer|slip|code|was|is|nr|no|id|号|號|码|碼|编|编号|为|是|[ :#=.\-]){0,8}\Z",
    re.IGNORECASE,
)


def _before(text: str, start: int, length: int) -> str:
    return text[max(0, start - length) : start]


def _stands_free(text: str, start: int, end: int) -> bool:
    """Whether no longer word, decimal or hyphenated code runs through these borders."""
    return _free_before(text, start) and _free_after(text, end)


def _free_before(text: str, start: int, floor: int = 0) -> bool:
    before, far = text[max(floor, start - 1) : start], text[max(floor, start - 2) : start - 1]
    joined = before in {"-", "/"} and far in _ALNUM
    decimal = before == "." and far.isdigit()
    return not (before in _ALNUM or before in _NO_NEIGHBOURS or joined or decimal)


def _free_after(text: str, end: int) -> bool:
    after, far = text[end : end + 1], text[end + 1 : end + 2]
    joined = after == "-" and far in _ALNUM
    decimal = after in {".", ","} and far.isdigit()
    return not (after in _ALNUM or after in _NO_NEIGHBOURS or joined or decimal)


@dataclass(frozen=True, slots=True)
class _Groups:
    """The runs of digits of a text, for numbers that are written in groups."""

    text: str
    spans: list[_Span]

    @classmethod
    def of(cls, text: str) -> _Groups:
        return cls(text, [match.span() for match in _DIGITS.finditer(text)])

    def digits(self, at: int) -> str:
        start, end = self.spans[at]
        return self.text[start:end]

    def joined(
        self, at: int, joints: frozenset[str], *, least: int, most: int
    ) -> Iterator[_Number]:
        """The numbers of up to eight groups from group ``at``, shortest first."""
        digits: list[str] = []
        seams: list[str] = []
        total = 0
        for last in range(at, min(at + 8, len(self.spans))):
            start, end = self.spans[last]
            if last > at:
                before = self.spans[last - 1][1]
                if start - before > 3 or (seam := self.text[before:start]) not in joints:
                    return
                seams.append(seam)
            total += end - start
            if total > most:
                return
            digits.append(self.text[start:end])
            if total >= least:
                yield _Number(self.spans[at][0], end, tuple(digits), tuple(seams), last)


@dataclass(frozen=True, slots=True)
class _Number:
    """Groups of digits, what stands between them, and the index of the last one."""

    start: int
    end: int
    groups: tuple[str, ...]
    seams: tuple[str, ...]
    last: int

    @property
    def digits(self) -> str:
        return "".join(self.groups)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.groups))


# --- E-mail --------------------------------------------------------------------------------------

_LETTER = rf"[^\W_{_CJK}]"  # a letter or digit of a script that writes spaces
_IN_LOCAL = re.compile(rf"{_LETTER}|[._+\-']")
_AT = re.compile(
    r"@|%40| ?(?:\[ ?(?:at|@|a) ?\]|\( ?(?:at|@|a) ?\)|\{ ?(?:at|@|a) ?\}|< ?at ?>) ?| at ",
    re.IGNORECASE,
)
_DOT = r"(?:\.| ?(?:\[ ?(?:dot|\.) ?\]|\( ?(?:dot|\.) ?\)|\{ ?(?:dot|\.) ?\}) ?| dot )"
_DOMAIN_LABEL = re.compile(r"[^\W_](?:[^\W_]|-){0,62}+")
_DOMAIN_DOT = re.compile(_DOT, re.IGNORECASE)
_DOMAIN_LITERAL = re.compile(r"\[(?:IPv6:)?([0-9A-Fa-f:.]{3,45}+)\]")
_TOP_LABEL = re.compile(rf"(?:xn--[a-z0-9\-]{{2,59}}|(?:(?!\d){_LETTER}){{2,24}}+)", re.IGNORECASE)
# Top-level domains in Han characters: in Chinese text nothing else tells where a domain ends.
_TOP_HAN = re.compile(
    r"中国|中國|公司|网络|網絡|网址|网站|香港|台湾|台灣|新加坡|在线|中文网|集团|我爱你|商城|商店|移动"
    r"|手机|广告|政务|公益|佛山|广东|世界|信息|娱乐|企业|餐厅|健康|时尚|游戏|购物|招聘|慈善"
    r"|みんな|닷컴|닷넷|한국"
)
_NO_TOP_LABEL = re.compile(
    r"service|socket|timer|mount|target|slice|png|jpe?g|gif|svg|webp|json|ya?ml|txt|xml",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"://[^\s/@]*\Z")
_EMAIL_CUE = re.compile(r"mail|邮箱|邮件|电邮|contact|reach|write", re.IGNORECASE)


def _emails(text: str) -> Iterator[_Span]:
    """Addresses of RFC 5321 and 6531 as people write them, hidden ones such as "(at)" too.

    The local part is the part of RFC 5322's atoms that is met in practice: letters of any
    script, digits and ``. _ + - '``; the others (``= / & ? |`` …) separate addresses from their
    surroundings far more often than they belong to them. A quoted local part is taken whole.
    """
    for match in _AT.finditer(text):
        words = match[0] == " at "
        domain_end = _domain_end(text, match.end(), words=words)
        if domain_end is None:
            continue
        start = _local_start(text, match.start(), text[match.end() : domain_end])
        if (
            start is None
            or text[start - 1 : start] == "@"
            or text[domain_end : domain_end + 1] == "@"
        ):
            continue
        local = text[start : match.start()]
        if words and not (
            re.search(r"[._0-9]", local) or _EMAIL_CUE.search(_before(text, start, 24))
        ):
            continue
        after = text[domain_end : domain_end + 2]
        remote_path = after in {":/", ":~"} or (local == "git" and after[:1] == ":")
        if remote_path or _USERINFO.search(_before(text, start, 80)):
            continue
        yield start, domain_end


def _local_start(text: str, end: int, domain: str) -> int | None:
    """Where the local part that ends at ``end`` begins, or None where there is none."""
    if text[end - 1 : end] == '"':
        opening = text.rfind('"', max(0, end - 64), end - 1)
        return (
            opening
            if opening >= 0 and "\n" not in text[opening:end] and end - opening > 2
            else None
        )
    start = end
    while start > 0 and end - start <= 64 and _IN_LOCAL.match(text[start - 1]):
        start -= 1
    if start == end and _IS_CJK.search(domain):
        # A local part in Han characters, only where something other than a word precedes it.
        while start > 0 and end - start <= 12 and _IS_CJK.match(text[start - 1]):
            start -= 1
    if (dots := text.rfind("..", start, end)) >= 0:
        start = dots + 2
    while start < end and text[start] in ".-'":
        start += 1
    return start if 0 < end - start <= 64 and text[end - 1] != "." else None


def _domain_end(text: str, start: int, *, words: bool) -> int | None:
    """Where the domain that begins at ``start`` ends, or None where none begins there."""
    if literal := _DOMAIN_LITERAL.match(text, start):
        return literal.end() if _is_address(literal[1]) else None
    labels: list[str] = []
    best = None
    at = start
    while len(labels) < 10 and (label := _DOMAIN_LABEL.match(text, at)):
        name = label[0]
        foreign = _IS_CJK.search(name)
        goes_on = foreign is not None and foreign.start() > 0  # "example.com请": the sentence does
        if foreign and goes_on:
            name = name[: foreign.start()]
        name = name.rstrip("-")
        end = at + len(name)
        if foreign and not goes_on:
            if labels and (han := _TOP_HAN.match(name)):
                best = at + han.end()
        elif labels:
            is_top = _TOP_LABEL.fullmatch(name) and not _NO_TOP_LABEL.fullmatch(name)
            best = end if is_top else None
        labels.append(name)
        dot = None if goes_on else _DOMAIN_DOT.match(text, end)
        if dot is None or (dot[0] == " dot " and not words):
            break
        at = dot.end()
    if len(labels) > 2 and labels[0].isdigit() and labels[1].isdigit():
        return None  # pkg@1.2.3-beta.rc
    if labels and re.fullmatch(r"[1-9]x", labels[0]) and len(labels) == 2:
        return None  # icon@2x.png
    return best


# --- Phone numbers -------------------------------------------------------------------------------

_PHONE_SEAMS = frozenset(
    [
        " ",
        "  ",
        "-",
        ".",
        "/",
        " - ",
        " / ",
        "- ",
        "/ ",
        ")",
        ") ",
        ")-",
        ")/",
        ").",
        " (",
        "(",
        "-(",
    ]
)
# Telephone country codes of ITU-T E.164: those of one and two digits, and those of three.
_COUNTRY_CODE = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|21[1-368]|2[2-46]\d|25[0-8]|29[0179]|3[57]\d|38[0-35-79]|42[013]|5[09]\d|67[02-9]"
    r"|68[0-35-9]|69[0-2]|80[08]|85[02356]|87[08]|88[0-368]|96[0-8]|97[0-79]|99[2-68]"
)
# Digits of a national number, from the national numbering plans; what is not listed has 7 to 12.
_NATIONAL_LENGTHS: dict[str, range] = {
    "1": range(10, 11), "7": range(10, 11), "27": range(9, 10), "30": range(10, 11),
    "31": range(9, 10), "32": range(8, 10), "33": range(9, 10), "34": range(9, 10),
    "36": range(8, 10), "39": range(8, 12), "41": range(9, 10), "43": range(7, 13),
    "44": range(9, 11), "45": range(8, 9), "46": range(7, 11), "47": range(8, 9),
    "48": range(9, 10), "49": range(6, 12), "52": range(10, 12), "54": range(10, 12),
    "55": range(10, 12), "60": range(8, 11), "61": range(9, 10), "63": range(8, 11),
    "64": range(8, 11), "65": range(8, 9), "66": range(8, 10), "81": range(9, 11),
    "82": range(8, 11), "84": range(9, 11), "86": range(9, 12), "90": range(10, 11),
    "91": range(10, 11), "351": range(9, 10), "353": range(7, 10), "380": range(9, 10),
    "420": range(9, 10), "852": range(8, 9), "853": range(8, 9), "886": range(8, 10),
    "966": range(8, 10), "971": range(8, 10), "972": range(8, 10),
}  # fmt: skip
_CHINA_MOBILE = re.compile(r"1[3-9][0-9]{9}")
_CHINA_MOBILE_SHAPES = {(11,), (3, 4, 4), (3, 8), (7, 4), (4, 3, 4), (3, 3, 5), (5, 6), (4, 4, 3)}
_NORTH_AMERICA = re.compile(r"[2-9][0-9]{2}[2-9][0-9]{6}")
# Mobile numbers that are often written without a separator: United Kingdom, France, Germany, Japan.
_PLAIN_MOBILE = re.compile(r"07[1-57-9][0-9]{8}|0[67][0-9]{8}|01[567][0-9]{8,9}|0[789]0[0-9]{8}")
_PHONE_CUE = re.compile(
    r"(?:\b(?:phone|telephone|tel|telefon|tele?fono|tél|téléphone|telefoon|mobile|mobil|mob|cell|landline"
    r"|celular|móvil|handy|portable|fax|call|ring|dial|text|sms|whatsapp|hotline|rufnummer|rückruf"
    r"|anrufen|ph)(?![a-z])|phone|[a-z]tel\b|电话|電話|手机|手機|座机|座機|热线|熱線|传真|傳真|拨打"
    r"|致电|致電|来电|联系方式|固话|总机|前台)"
    r"[^0-9!?;。\[\]\n]{0,20}\Z",
    re.IGNORECASE,
)
_EXTENSION = re.compile(
    r" ?(?:(?:ext|extn|extension|durchwahl|dw)[.:]? ?|x ?|[转轉] ?|分机号?:? ?|#)[0-9]{1,6}(?![0-9])",
    re.IGNORECASE,
)
_CALENDAR_DATE = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")


def _phones(text: str) -> Iterator[_Span]:
    """Telephone numbers: ITU-T E.164 and the national forms that ITU-T E.123 describes.

    Groups of digits are joined and compared with the shapes of the numbering plans; the longest
    number of the first plan that fits is taken. Chinese numbers follow the plan of the MIIT:
    mobiles are 1[3-9] and nine digits, landlines an area code from 0 and seven or eight digits.
    """
    groups = _Groups.of(text)
    at = floor = 0
    while at < len(groups.spans):
        found = _phone_at(groups, at, floor)
        if found is None:
            at += 1
            continue
        start, floor, last = found
        yield start, floor
        at = last + 1
        while at < len(groups.spans) and groups.spans[at][0] < floor:  # digits of an extension
            at += 1


@dataclass(frozen=True, slots=True)
class _Lead:
    """What stands before a number that might be a telephone number."""

    start: int
    plus: bool
    bracket: bool
    cue: bool

    @classmethod
    def of(cls, text: str, number: int, floor: int) -> _Lead:
        start = number
        if text[start - 1 : start] == "+":
            start -= 1
        elif text[max(0, start - 2) : start] == "+ ":
            start -= 2
        cue = _PHONE_CUE.search(text, max(floor, start - 32), start) is not None
        bracket = text[start - 1 : start] == "("
        return cls(start=start, plus=start < number, bracket=bracket, cue=cue)


def _phone_at(groups: _Groups, at: int, floor: int) -> tuple[int, int, int] | None:
    """The telephone number that begins with group ``at``: its span and its last group.

    What stands before ``floor`` belongs to the number before, and says nothing about this one.
    """
    text = groups.text
    first, first_end = groups.spans[at]
    if first_end - first > 15:
        return None
    numbers = list(groups.joined(at, _PHONE_SEAMS, least=7, most=20))
    if not numbers:
        return None
    words = groups.spans[at - 1][1] if at else 0  # a cue holds no digits, so it begins behind them
    lead = _Lead.of(text, first, words)
    other = _OTHER_NUMBER.search(text, max(words, lead.start - 40), lead.start)
    if other and not lead.plus and not lead.cue:
        return None
    inside = text[max(floor, first - 2) : first]
    if not lead.plus and text[first] == "0" and re.fullmatch("[0-9] ", inside):
        return None  # a group inside a longer number, such as an IBAN
    for fits in _PLUS_PLANS if lead.plus else _PLANS:
        for number in reversed(numbers):
            if not fits(number, lead) or _pairs_go_on(groups, number):
                continue
            start = lead.start
            if lead.bracket and ")" in text[first : number.end]:
                start -= 1
            extension = _EXTENSION.match(text, number.end)
            end = extension.end() if extension else number.end
            glued = lead.cue and text[start - 1 : start] not in {"-", "/", "."}  # "tel138…"
            if _free_after(text, end) and (glued or _free_before(text, start, floor)):
                return start, end, number.last
    return None


def _pairs_go_on(groups: _Groups, number: _Number) -> bool:
    """Whether pairs of digits go on behind it: a list of numbers, not one in the French manner."""
    if set(number.lengths) != {2} or number.last + 1 >= len(groups.spans):
        return False
    start, end = groups.spans[number.last + 1]
    return end - start == 2 and groups.text[number.end : start] == number.seams[-1]


def _international(number: _Number, lead: _Lead) -> bool:
    """E.164: "+" or the prefix 00 or 011, a country code, a national number of its length."""
    groups, seams = list(number.groups), list(number.seams)
    if not lead.plus:
        if groups[0] == "011" and seams:
            groups, seams = groups[1:], seams[1:]
        elif groups[0].startswith("00"):
            groups[0] = groups[0][2:]
        else:
            return False
    for at, (seam, group) in enumerate(zip(seams, groups[1:], strict=True), start=1):
        if group == "0" and seam.endswith("("):  # +44 (0)20: the 0 is dialled only inside
            groups[at] = ""
    digits = "".join(groups)
    code = match[0] if (match := _COUNTRY_CODE.match(digits)) else ""
    national = digits[len(code) :]
    if code == "1" and not _NORTH_AMERICA.fullmatch(national):
        return False
    plain = not lead.plus and not lead.cue and len(number.groups) == 1
    if not code or (plain and code not in _NATIONAL_LENGTHS.keys() - {"1", "7"}):
        return False  # 00 and a row of digits is a bar code before it is a call to Tonga
    return len(national) in _NATIONAL_LENGTHS.get(code, range(7, 13)) and len(digits) <= 15


def _china_mobile(number: _Number, lead: _Lead) -> bool:
    digits, lengths = number.digits, number.lengths
    if digits.startswith("86") and len(digits) == 13:
        digits = digits[2:]
        lengths = (lengths[0] - 2, *lengths[1:]) if lengths[0] > 2 else lengths[1:]
    return _CHINA_MOBILE.fullmatch(digits) is not None and lengths in _CHINA_MOBILE_SHAPES


def _north_america(number: _Number, lead: _Lead) -> bool:
    """The numbering plan of North America, and the service numbers 400 and 800 of China."""
    digits, lengths = number.digits, number.lengths
    if len(digits) == 11 and digits[0] == "1":
        if lengths[0] != 1:
            return False
        digits, lengths = digits[1:], lengths[1:]
    if re.fullmatch(r"[48]00[0-9]{7}", digits) and lengths in {(3, 4, 3), (4, 3, 3), (3, 7)}:
        return True
    shaped = lengths == (3, 3, 4) or (lengths == (3, 7) and ")" in number.seams[-1])
    return shaped and _NORTH_AMERICA.fullmatch(digits) is not None


def _trunk(number: _Number, lead: _Lead) -> bool:
    """National numbers that begin with the trunk prefix 0, in two groups or more."""
    lengths, seams = number.lengths, number.seams
    if len(lengths) < 2 or number.groups[0][:2] == "00" or number.groups[0][0] != "0":
        return False
    if not 2 <= lengths[0] <= 5:
        return False
    if lengths[:2] in {(3, 7), (3, 8), (4, 7), (4, 8)} and seams[1:] == ("-",):
        return lengths[2] <= 6  # a Chinese landline with an extension: 0571-88886666-8001
    if any(n == 1 and seam != "-" for n, seam in zip(lengths[1:], seams, strict=True)):
        return False
    if lengths == (3, 2, 4) and set(seams) == {"-"}:
        return False  # a social security number of the United States
    is_date = lengths[:3] == (2, 2, 4) and seams[0] == seams[1] and seams[0] in {".", "-", "/"}
    decimal = "." in seams and set(seams) != {"."}
    longest = 12 if lengths[0] >= 4 else 11
    return not is_date and not decimal and 9 <= sum(lengths) <= longest


def _plain_mobile(number: _Number, lead: _Lead) -> bool:
    return len(number.groups) == 1 and _PLAIN_MOBILE.fullmatch(number.digits) is not None


def _bracketed(number: _Number, lead: _Lead) -> bool:
    """Brazil's "(11) 91234-5678" and Russia's "8 (916) 123-45-67"."""
    lengths, seams = number.lengths, number.seams
    if lengths in {(1, 3, 3, 2, 2), (1, 3, 3, 4)} and number.digits[0] == "8":
        return seams[0].endswith("(") and seams[1].startswith(")")
    return (
        lead.bracket
        and lengths in {(2, 4, 4), (2, 5, 4), (3, 3, 4), (3, 4, 4)}
        and seams[0].startswith(")")
        and seams[1] == "-"
    )


def _cued(number: _Number, lead: _Lead) -> bool:
    """Any seven to twelve digits right after a word such as "phone" or "电话"."""
    lengths, digits = number.lengths, number.digits
    if not lead.cue or len(lengths) > 5 or min(lengths[1:], default=2) < 2:
        return False
    is_date = lengths[:3] in {(4, 2, 2), (2, 2, 4)} or _CALENDAR_DATE.fullmatch(digits)
    return not is_date and 7 <= sum(lengths) <= 12


_Plan = Callable[[_Number, _Lead], bool]
_PLUS_PLANS: tuple[_Plan, ...] = (_international,)
_PLANS: tuple[_Plan, ...] = (
    _international, _china_mobile, _north_america, _trunk, _plain_mobile, _bracketed, _cued,
)  # fmt: skip


# --- Numbers with a check digit ------------------------------------------------------------------

# The first two digits of GB/T 2260: the provinces, and 83 for residents from Taiwan.
_PROVINCE = re.compile(r"1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]")
_RESIDENT_ID = re.compile(r"[1-9](?:[ \-]?[0-9]){16}[ \-]?[0-9Xx]")
_RESIDENT_ID_CUE = re.compile(
    r"身份证|身份證|证件|公民身份|\bid(?:entity|entification)?\b[ -]?(?:card|number|no)",
    re.IGNORECASE,
)
_RESIDENT_ID_WEIGHTS = tuple(2 ** (17 - place) % 11 for place in range(17))


def _resident_ids(text: str) -> Iterator[_Span]:
    """Chinese citizen identification numbers, GB 11643-1999, and the 15 digits before 1999.

    Eighteen characters: division (GB/T 2260), birth date, sequence, and the check character of
    ISO 7064 MOD 11-2. Permanent residence cards of foreigners (2023) carry a 9 before the
    province and are checked alike. Fifteen digits have no check character, so a word such as
    身份证 must stand near. A birth date is plausible from 1900 to 2049: whether it has passed is
    not asked, for an answer that changes with the day could not be repeated.
    """
    for match in _DIGITS.finditer(text):
        start, end = match.span()
        if end - start == 15:
            near = _before(text, start, 24) + " " + text[end : end + 12]
            plausible = _PROVINCE.match(match[0]) and _is_date("19" + match[0][6:12])
            other = _OTHER_NUMBER.search(_before(text, start, 6))
            cued = _RESIDENT_ID_CUE.search(near) and not other
            if plausible and cued and _stands_free(text, start, end):
                yield start, end
            continue
        number = _RESIDENT_ID.match(text, start)
        if number is None:
            continue
        stop = number.end()
        compact = number[0].replace(" ", "").replace("-", "").upper()
        labelled = _before(text, start, 2).lower() in {"id", "no"}
        free = _free_after(text, stop) and (labelled or _free_before(text, start))
        if free and _is_resident_id(compact):
            yield start, stop


def _is_resident_id(number: str) -> bool:
    province = number[1:3] if number[0] == "9" else number[:2]
    if not _PROVINCE.match(province) or not _is_date(number[6:14]):
        return False
    weighted = zip(_RESIDENT_ID_WEIGHTS, number[:17], strict=True)
    return number[17] == "10X98765432"[sum(weight * int(digit) for weight, digit in weighted) % 11]


def _is_date(digits: str) -> bool:
    year, month, day = int(digits[:4]), int(digits[4:6]), int(digits[6:8])
    try:
        date(year, month, day)
    except ValueError:
        return False
    return 1900 <= year <= 2049


# Issuer ranges of ISO/IEC 7812-1 and the lengths of their numbers: Visa; Mastercard; Amex;
# Discover; JCB; Diners Club; UnionPay; Maestro; Mir and
# Troy. RuPay's and UnionPay's 81 are left to the cue: they would take one order number in 50.
_CARD = re.compile(
    r"4(?:[0-9]{15}|[0-9]{18})"
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|3[47][0-9]{13}"
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12}"
    r"|35[0-9]{14}|(?:2131|1800)[0-9]{11}"
    r"|3(?:0[0-59]|[689][0-9])[0-9]{11}"
    r"|62[0-9]{14,17}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{8,15}"
    r"|(?:220[0-4]|9792)[0-9]{12}"
)
_CARD_CUE = re.compile(
    r"(?:card|visa|debit|credit|maestro|卡号?|卡號|账号|户)[^0-9.;。]{0,12}\Z", re.IGNORECASE
)
_CARD_SEAMS = frozenset([" ", "-"])


def _payment_cards(text: str) -> Iterator[_Span]:
    """Payment card numbers: ISO/IEC 7812-1, 12 to 19 digits with Luhn's check digit (annex B).

    The issuer's range must be one of a known scheme, unless a word such as "card" or "卡号"
    precedes it: Chinese banks issue cards outside them. Visa's old 13 digits and Maestro's 12
    always need it.
    """
    groups = _Groups.of(text)
    for at in range(len(groups.spans)):
        best = None
        for number in groups.joined(at, _CARD_SEAMS, least=12, most=19):
            digits = number.digits
            even = len(set(number.seams)) <= 1 and min(number.lengths[:-1], default=4) >= 4
            if not even or not _has_luhn_digit(digits):
                continue
            cued = _CARD_CUE.search(_before(text, number.start, 24)) is not None
            issued = len(digits) > 12 and _CARD.fullmatch(digits)
            if not issued and not (
                cued and (len(digits) in {13, 16, 17, 18, 19} or _CARD.fullmatch(digits))
            ):
                continue
            if _stands_free(text, number.start, number.end):
                best = number
        if best is not None:
            yield best.start, best.end


def _has_luhn_digit(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value if value < 10 else value - 9
    return total % 10 == 0 and digits.strip("0") != ""


# Length of the whole IBAN by country, from the IBAN registry that SWIFT keeps for ISO 13616.
_IBAN_LENGTHS: dict[str, int] = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22,
    "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
_IBAN_START = re.compile(
    r"(?:(?<![0-9A-Za-z_])|(?<=iban))[A-Za-z]{2}[0-9]{2}(?=[ \-]?[0-9A-Za-z])", re.IGNORECASE
)
_IBAN_PIECE = re.compile(r"[ \-]?[0-9A-Za-z]")


def _ibans(text: str) -> Iterator[_Span]:
    """Account numbers of ISO 13616-1: the length of the country, remainder 1 modulo 97."""
    for match in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2].upper())
        if length is None:
            continue
        end, compact = match.end(), match[0]
        while len(compact) < length and (piece := _IBAN_PIECE.match(text, end)):
            compact += piece[0][-1]
            end = piece.end()
        if len(compact) < length or text[end : end + 1] in _ALNUM or not compact.isascii():
            continue
        if int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1:
            yield match.start(), end


# --- IP addresses --------------------------------------------------------------------------------

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(
    rf"(?:(?<![0-9A-Za-z_.])|(?<=IP)){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z_]|\.[0-9])"
)
_IPV6 = re.compile(r"[0-9A-Za-z_:.]{3,}+")
_IPV6_LABEL = re.compile(r"(?::|[A-Za-z_]{0,32}[G-Zg-z_][A-Fa-f]{0,32}:)(?!:)")
# Words and signs that make four numbers a version or a section of a document.
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:versions?|ver|v|release|released|rel|build|firmware|driver|patch|sdk|section|sec"
    r"|chapter|clause|paragraph|table|figure|list|item|step|heading|oid|chrome|firefox|safari|nginx|apache|openssl"
    r"|openssh|java|jdk|python|node|rv|windows|macos|ios|android|kernel|linux|docker|mysql|postgres"
    r"|postgresql|redis|php)[ :=#(]{0,3}(?:number|no|is|was)?[ :.=]{0,3}"
    r"|\b(?:upgrad|updat|downgrad|revert|roll|migrat|bump|patch|mov)(?:e|ed|es|ing|s)?"
    r"(?: back)? (?:from|to) "
    r"|(?:版本|版|固件|驱动|软件|系统|补丁|升级|更新|降级|回退)(?:号|为|是|到|至|从|自|包|[ :(]){0,4}"
    r"|第 ?|§ ?|(?:[=><~!]=|[><~^]) ?)\Z",
    re.IGNORECASE,
)
_IN_PATH = re.compile(r"[A-Za-z][/_\-]\Z")  # nginx/1.2.3.4, foo-1.2.3.4
_VERSION_AFTER = re.compile(
    r"-[A-Za-z]|[ (]{0,2}(?:版|version\b|release\b|build\b|固件|[节条章款])", re.IGNORECASE
)
_VERSION_LINK = re.compile(
    r" ?(?:(?:to|->|=>|→|到|至|and|or|和|或|与|升级到|,|、|/|-) ?){1,2}", re.IGNORECASE
)


def _ip_addresses(text: str) -> Iterator[_Span]:
    """IPv4 addresses of four decimal octets, IPv6 addresses of RFC 4291, and no versions."""
    version_end = -100
    for match in _IPV4.finditer(text):
        start, end = match.span()
        linked = start - version_end <= 12 and _VERSION_LINK.fullmatch(text, version_end, start)
        before = _before(text, start, 32)
        if (
            linked
            or _VERSION_BEFORE.search(before)
            or _IN_PATH.search(before)
            or _VERSION_AFTER.match(text, end)
        ):
            version_end = end
        else:
            yield start, end
    for match in _IPV6.finditer(text):
        token = match[0]
        if len(token) > 80 or token.count(":") < 2:
            continue
        label = _IPV6_LABEL.match(token)
        start = match.start() + (label.end() if label else 0)
        token = text[start : match.end()].rstrip(".")
        if token.endswith(":") and not token.endswith("::"):
            token = token[:-1]
        if _is_ipv6(token):
            yield start, start + len(token)


def _is_ipv6(token: str) -> bool:
    """Whether it is an address, and none of what only looks alike: times, ratios, slices."""
    if not _is_address(token) or not any(char.isdigit() for char in token):
        return False
    return token == "::1" or any(len(group) >= 3 for group in token.split(":"))  # noqa: S105


def _is_address(literal: str) -> bool:
    try:
        ipaddress.ip_address(literal)
    except ValueError:
        return False
    return True


# --- Keys, tokens and passwords ------------------------------------------------------------------

# Credentials that name themselves, as their issuers document them.
_TOKEN = re.compile(
    r"(?<![0-9A-Za-z_])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"  # AWS
    r"|gh[pousr]_[0-9A-Za-z]{30,}+|github_pat_[0-9A-Za-z_]{30,}+"  # GitHub
    r"|gl(?:pat|ptt|rt|dt|cbt|ft|soat|agent)-[0-9A-Za-z_\-]{18,}+"  # GitLab
    r"|xox[abeoprs]-[0-9A-Za-z\-]{10,}+|xapp-[0-9]-[0-9A-Za-z\-]{10,}+"  # Slack
    r"|https://hooks\.slack\.com/(?:services|workflows)/[0-9A-Za-z/_]{20,}+"
    r"|https://(?:\w{1,10}\.)?discord(?:app)?\.com/api/webhooks/[0-9]{15,20}/[0-9A-Za-z_\-]{40,}+"
    r"|(?P<sk>sk-[0-9A-Za-z_\-]{20,}+)"  # OpenAI, Anthropic, OpenRouter and others
    r"|[sr]k_(?:live|test)_[0-9A-Za-z]{16,}+|whsec_[0-9A-Za-z+/=]{20,}+"  # Stripe
    r"|AIza[0-9A-Za-z_\-]{35}|ya29\.[0-9A-Za-z_\-]{15,}+|GOCSPX-[0-9A-Za-z_\-]{20,}+"  # Google
    r"|hf_[0-9A-Za-z]{30,}+|npm_[0-9A-Za-z]{30,}+|pypi-[0-9A-Za-z_\-]{40,}+|rubygems_[0-9a-f]{40,}+"
    r"|SG\.[0-9A-Za-z_\-]{16,32}\.[0-9A-Za-z_\-]{32,}+"  # SendGrid
    r"|SK[0-9a-f]{32}(?![0-9A-Za-z])"  # Twilio
    r"|[0-9]{8,10}:[0-9A-Za-z_\-]{33,37}(?![0-9A-Za-z_\-])"  # Telegram's bots
    r"|[MNO][0-9A-Za-z_\-]{23,27}\.[0-9A-Za-z_\-]{6,7}\.[0-9A-Za-z_\-]{27,40}"  # Discord's bots
    r"|LTAI[0-9A-Za-z]{12,24}(?![0-9A-Za-z])|AKID[0-9A-Za-z]{32}(?![0-9A-Za-z])"  # Aliyun, Tencent
    r"|do[opr]_v1_[0-9a-f]{60,}+|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|dapi[0-9a-f]{32}"
    r"|hv[sbr]\.[0-9A-Za-z_\-]{20,}+|dckr_pat_[0-9A-Za-z_\-]{20,}+|gsk_[0-9A-Za-z]{40,}+"
    r"|xai-[0-9A-Za-z]{40,}+|r8_[0-9A-Za-z]{30,}+|ntn_[0-9A-Za-z]{30,}+|lin_api_[0-9A-Za-z]{30,}+"
    r"|figd_[0-9A-Za-z_\-]{30,}+|sq0[a-z]{3}-[0-9A-Za-z_\-]{20,}+|AGE-SECRET-KEY-1[0-9A-Z]{50,}+"
    r"|eyJ[0-9A-Za-z_\-]{8,}+\.[0-9A-Za-z_\-]{8,}+\.[0-9A-Za-z_\-]{8,}+"  # JWT, RFC 7519
    r")"
)
_PEM_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_LINES = re.compile(r"[0-9A-Za-z+/=\s]*+")
_CREDENTIAL_HEADER = re.compile(
    r"(?<![0-9A-Za-z_])(?:Authorization['\"]? ?[:=] ?['\"]?)?"
    r"(?:(?:Bearer|Basic|Token|Digest) {1,2})(?P<value>[0-9A-Za-z._~+/=\-]{8,}+)",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"://[^\s/:@]{0,64}+:(?P<value>[^\s/@]{1,128}+)@")
_CURL_PASSWORD = re.compile(
    r"(?<!\S)(?:-u|--user|--proxy-user)[ =]['\"]?[^\s:'\"]{1,64}+:"
    r"(?P<value>(?![0-9]++(?![^\s,;]))[^\s'\"]{1,128}+)"  # "docker run -u 1000:1000" names a user
)

# A word that names a secret. The groups say how much its value may look like an ordinary word.
_SECRET_WORD = re.compile(
    r"(?:(?<![A-Za-z])(?i:(?P<password>passwords?|passwd|passphrase|passcode|pwd|psw|pin(?: code)?"
    r"|passwort|kennwort|contraseña|mot de passe|senha)"
    r"|(?P<short>pass|pw)"
    r"|(?P<token>(?:client|app|api|shared|consumer|webhook|aws)?[_ \-]?secret(?:[_ \-]?access)?"
    r"(?:[_ \-]?key)?(?:_base)?|(?:access|auth|refresh|api|bearer|bot|id|session|oauth|csrf)?[_ \-]?"
    r"token|api[_ \-]?key|(?:access|account|private|encryption|signing|auth|master|service"
    r"|subscription|shared[_ \-]?access)[_ \-]?key|session[_ \-]?id|credentials?)"
    r"|(?P<key>key))(?![A-Za-z])"
    r"|(?<=[a-z0-9])(?:(?P<camel_password>Password|Passwd|Pwd|Passphrase)"
    r"|(?P<camel_token>Token|Secret|ApiKey|AccessKey|SecretKey|PrivateKey)|(?P<camel_key>Key))"
    r"(?![a-z])"
    r"|(?P<han_password>密码|密碼|口令|暗号|通行码)"
    r"|(?P<han_token>密钥|密鑰|秘钥|私钥|令牌|授权码|访问密钥))"
)
_GIVES = re.compile(
    r"['\"]?(?:(?P<equals> ?(?:=>|:=|=(?!=)) ?)|(?P<colon> {0,2}:\s?(?:\s|是|为)?)"
    r"|(?P<prose> (?:is|was|will be|ist|est|es) (?:now )?:? ?"
    r"|(?: ?(?:已|被|就|也|都)?(?:是|为|為|改成|改为|设为|设成|换成|重置为)了? ?:? ?))"
    r"|(?P<space> )|(?P<nothing>(?=[!-~])))"
)
_QUOTED = re.compile(
    r"\"([^\"\n]{1,200}+)\"|'([^'\n]{1,200}+)'|`([^`\n]{1,200}+)`|“([^”\n]{1,200}+)”"
)
_BARE = re.compile(r"[!#-&(-+\--:<-_a-~]{1,512}+")  # ASCII but no space, quote, comma, semicolon
_OPENING = {")": "(", "]": "[", "}": "{", ">": "<"}
_LOGIN = re.compile(r"[^\s/]{1,64}+ ?/ ?")
_NO_VALUE = re.compile(
    r"\[[A-Z_]+\]|<[A-Za-z_ \-]+(?:>|\Z)|<\||\{\{|\{[A-Za-z_.]*\}?\Z|\([a-z_.]{3,}|\*{2,}|•+"
    r"|\$[{(]|\$[A-Z_]{2,}\Z|%\(|%[A-Z_]{2,}%|%s\Z|x{3,}\Z|\.{2,}|-+\Z|_+\Z|(?:your|my|the|some|insert|enter)[_\- ]"
    r"|(?:none|null|nil|true|false|undefined|empty|required|optional|incorrect|invalid|wrong|missing"
    r"|expired|needed|hidden|protected|changed|reset|forgotten|secret|passwords?|token|string"
    r"|text|bytes|unknown|unchanged|ok|yes|no|n/a|todo|tbd|redacted|masked|field|input|value|key)\Z",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"0x[0-9A-Fa-f]{1,8}\Z"
    r"|(?=[a-z]{0,64}_)[a-z_]{0,64}(?:password|token|secret|key)[a-z_]{0,64}\Z"  # an argument
    r"|[A-Za-z_.]{3,}\(|[A-Za-z_.]{2,}\[|[A-Za-z_]\w{2,}\(.*\)\Z|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+\Z|.*://|v?\d+(?:\.\d+)+\Z"
)
_NO_SECRET_KEY = re.compile(
    r"(?:public|primary|foreign|cache|sort|partition|product|licen[cs]e|hot|boarding|season|day|ski"
    r"|rail|gate|map|dict|host)[_ \-]?\Z",
    re.IGNORECASE,
)


def _secrets(text: str) -> Iterator[_Span]:
    """Keys, tokens and passwords: those that name themselves, and those that a word names."""
    for match in _TOKEN.finditer(text):
        mixed = match["sk"] is None or (_has_digit(match[0]) and not match[0].islower())
        if mixed or _is_random(match[0][3:]):
            yield match.span()
    yield from _private_keys(text)
    for match in _CREDENTIAL_HEADER.finditer(text):
        value = match["value"].rstrip(".")
        if match[0][:1] in "Aa" or (len(value) >= 16 and _has_digit(value)):
            yield match.start("value"), match.start("value") + len(value)
    for pattern in (_URL_PASSWORD, _CURL_PASSWORD):
        for match in pattern.finditer(text):
            if not _NO_VALUE.match(match["value"]):
                yield match.span("value")
    for match in _SECRET_WORD.finditer(text):
        if span := _named_secret(text, match):
            yield span


def _private_keys(text: str) -> Iterator[_Span]:
    """Private keys in the textual encoding of RFC 7468 and OpenSSH's, whole or cut off."""
    ends = [match.span() for match in _PEM_END.finditer(text)]
    for match in _PEM_BEGIN.finditer(text):
        at = bisect.bisect_left(ends, match.span())
        body = _PEM_LINES.match(text, match.end())
        assert body is not None  # it may be empty
        stop = ends[at][1] if at < len(ends) and ends[at][0] - match.end() <= 20_000 else body.end()
        yield match.start(), stop


def _named_secret(text: str, word: re.Match[str]) -> _Span | None:
    """The value that a word such as "password" gives, where it looks like one."""
    gives = _GIVES.match(text, word.end())
    if gives is None or _NO_SECRET_KEY.search(_before(text, word.start(), 10)):
        return None
    group, how = word.lastgroup or "", gives.lastgroup or ""
    name = group.removeprefix("camel_").removeprefix("han_")
    if (how == "nothing" and not group.startswith("han_")) or (
        name == "short" and how not in {"equals", "colon"}
    ):
        return None
    start = gives.end()
    if quoted := _QUOTED.match(text, start):
        span = quoted.span(quoted.lastindex or 0)
        return span if _looks_quoted(text[slice(*span)], name=name, how=how) else None
    if text[word.start() - 1 : word.start()] == "/" and (other := _LOGIN.match(text, start)):
        start = other.end()  # "login/password: anna/…"
    bare = _BARE.match(text, start)
    value = bare[0] if bare else ""
    if how == "equals" and (parameter := re.search(r"&[A-Za-z_]{1,32}=", value)):
        value = value[: parameter.start()]
    value = value.rstrip(".:" if how == "equals" else ".:?")
    while value and (opening := _OPENING.get(value[-1])) and opening not in value:
        value = value[:-1].rstrip(".:?")  # "(password: hunter2)."
    end = start + len(value)
    return (start, end) if _looks_secret(text, value, end, name=name, how=how) else None


def _looks_quoted(value: str, *, name: str, how: str) -> bool:
    """What stands in quotes is meant as a value, unless it is a phrase in a sentence."""
    phrase = how == "space" or (how == "prose" and " " in value and not _has_digit(value))
    dull = _NO_VALUE.match(value) or (name == "key" and not _is_random(value))
    return len(value) >= 4 and not phrase and not dull


def _looks_secret(text: str, value: str, end: int, *, name: str, how: str) -> bool:
    """Whether it is more of a secret than of a word, given what names it and how."""
    if len(value) < 4 or _NO_VALUE.match(value) or _CODE.match(value):
        return False
    digit, letter = _has_digit(value), any(char.isalpha() for char in value)
    if name == "key":
        looks = how in {"equals", "colon"} and len(value) >= 16 and _is_random(value)
    elif not letter:  # numbers are passwords and PINs, seldom tokens
        looks = digit and name in {"password", "short"} and how != "space"
    elif how in {"space", "nothing"}:
        looks = digit and len(value) >= 6 and (how == "nothing" or ":" not in value)
    elif digit or any(not char.isalnum() and char not in "-_'." for char in value):
        looks = True
    elif how == "prose" or len(value) < 6:
        looks = False
    elif not (value.islower() or value.istitle() or value.isupper()):
        looks = True  # aBcDeF
    elif how == "equals":
        looks = not text.endswith(" ", 0, end - len(value))  # "password = other" is a program
    else:
        # "password: sunflower" at the end of a line, but not "Password: letters and digits".
        looks = name == "password" and text[end : end + 1] in {"", "\n"}
    return looks


def _has_digit(value: str) -> bool:
    return any(char.isdigit() for char in value)


def _is_random(value: str) -> bool:
    """Whether letters and digits alternate as they do in no word and no number."""
    return (
        _has_digit(value) and any(c.isalpha() for c in value) and len(set(value)) >= len(value) // 4
    )


_RECOGNISERS: tuple[tuple[Kind, _Recogniser], ...] = (
    (Kind.SECRET, _secrets),
    (Kind.RESIDENT_ID, _resident_ids),
    (Kind.IBAN, _ibans),
    (Kind.PAYMENT_CARD, _payment_cards),
    (Kind.IP_ADDRESS, _ip_addresses),
    (Kind.EMAIL, _emails),
    (Kind.PHONE, _phones),
)
# Among findings of one length: a word that names a secret, then a check digit, then a shape.
_PRECEDENCE = {kind: rank for rank, (kind, _) in enumerate(_RECOGNISERS)}
