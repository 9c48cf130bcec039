"""Chinese numerals: `六万`, `1.2万`, `几千`, `两三千`, `四十多万`, `一万五`, `六成`, `一半`."""

from __future__ import annotations

from align.advisor.text.number import Number
from align.advisor.text.sentences import Sentence

_HAN = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_MEASURES = frozenset("条个张项块台种份对道件卡则点字处句万千百十")
"""Measure words behind a single numeral that counts; without one, 一 is part of a word (一般)."""
_HAN_VAGUE = {"几": (3, 2, 9), "数": (3, 2, 9)}
_MORE = frozenset("多余来")
"""Words behind a round number that mean somewhat more than that."""
_CARDS = {"单": 1, "双": 2}


def parse_chinese(s: Sentence, at: int, value: float | None, start: int) -> Number | None:
    """Parse a Chinese numeral from ``at`` on: 六万, 1.2万, 几千, 二十亿; 六成 is a share. None where there is none.

    value, start: digits before it (1.2万) and the index of their word; value is None without digits.
    """
    if s.words[at : at + 3] == ("百", "分", "之") or (at and s.words[at - 1] == "第"):
        return None
    if s.words[at : at + 2] == ("两", "两"):  # 两两比较
        return None
    if s.words[at] in _CARDS and s.words[at + 1 : at + 2] in (("卡",), ("张",), ("块",)):
        cards = _CARDS[s.words[at]]
        return Number(cards, start, at + 1, cards, cards)
    if s.words[at : at + 2] == ("一", "半"):
        return Number(0.5, start, at + 2, 0.5, 0.5, share=True)
    # 万 and 亿 close a section of up to four digits, as "thousand" does with three: 二十三万 is (2 x 10 + 3) x 10^4.
    total, section, current = 0.0, 0.0, value
    low = high = 1.0
    vague, begin, last = False, at, 1
    while at < len(s.words):
        c = s.words[at]
        if c in _HAN and value is None:
            if _neighbours(s, at, begin, current):  # 两三千
                first = current or 0
                current, vague = first + 0.5, True
                low, high = first / current, (first + 1) / current
            elif current is not None and current < 10 and at - begin < 6:
                current = current * 10 + _HAN[c]
            else:
                current = _HAN[c]
            last = last if c not in "零〇" else 1
        elif c in HAN_SCALES:
            scale, current = HAN_SCALES[c], current if current is not None or section else 1
            last = scale if scale > 10 else 1
            if scale < 10_000:
                section, current = section + (current or 0) * scale, None
            else:
                here = section + (current or 0)
                total = total + here * scale if total >= scale else (total + here) * scale  # 一亿零一万, 一万亿
                section, current = 0.0, None
        elif c in _HAN_VAGUE and (c != "数" or at == begin):
            typical, least, most = _HAN_VAGUE[c]
            current, low, high, vague = float(typical), least / typical, most / typical, True
        elif c in _MORE and (at > begin or (value is not None and c == "多")) and not vague:
            high, vague, last = 1.5, True, 1
            if s.words[at + 1 : at + 2] not in (("万",), ("亿",)):
                at += 1
                break
        else:
            break
        value = None if c in HAN_SCALES else value
        at += 1
    if current is not None and last > 1 and s.words[at - 1] in _HAN and not vague:
        current *= last / 10  # 一万五
    number = total + section + (current or 0)
    single = at == begin + 1 and start == begin and s.words[begin] in "一两"
    if single and (at >= len(s.words) or s.words[at] not in _MEASURES):
        return None
    if at == begin or (vague and start == begin and at == begin + 1) or (current is None and not number):
        return None
    if at < len(s.words) and s.words[at] == "成" and number <= 10:
        tenths, end = number, at + 1
        if s.words[end : end + 1] and s.words[end] in _HAN:  # 八成五
            tenths, end = tenths + _HAN[s.words[end]] / 10, end + 1
        return Number(tenths / 10, start, end, tenths / 10, tenths / 10, share=True)
    return Number(number, start, at, number * low, number * high, vague)


def _neighbours(s: Sentence, at: int, begin: int, current: float | None) -> bool:
    """Return whether a numeral and the one before it are one guess: 三四百."""
    alone = at == begin + 1 and s.words[at + 1 : at + 2] not in tuple((c,) for c in _HAN)
    return alone and current is not None and 0 < current < 9 and _HAN[s.words[at]] == current + 1
