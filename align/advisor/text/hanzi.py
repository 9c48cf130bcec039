"""Chinese numerals: `六万`, `1.2万`, `几千`, `六成`."""

from __future__ import annotations

from align.advisor.text.number import Number
from align.advisor.text.words import Sentence

_HAN = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_MEASURES = frozenset("条个张项块台种份对道件卡则点字万千百十")
"""What stands behind a single numeral that counts; without one, 一 is part of a word (一般)."""
_HAN_VAGUE = {"几": (3, 2, 9), "数": (3, 2, 9), "多": (1, 1, 2)}


def chinese(s: Sentence, at: int, value: float | None, start: int) -> Number | None:
    """Chinese numerals from ``at`` on: 六万, 1.2万, 几千, 二十亿; 六成 is a share."""
    if s.words[at : at + 3] == ("百", "分", "之") or (at and s.words[at - 1] == "第"):
        return None
    if s.words[at] == "单" and s.words[at + 1 : at + 2] in (("卡",), ("张",), ("块",)):
        return Number(1, start, at + 1, 1, 1)
    total, section, current = 0.0, 0.0, value
    low = high = 1.0
    vague, begin = False, at
    while at < len(s.words):
        c = s.words[at]
        if c in _HAN and value is None:
            current = (
                (current or 0) * 10 + _HAN[c] if current is not None and current < 10 and at - begin < 6 else _HAN[c]
            )
        elif c in HAN_SCALES:
            scale, current = HAN_SCALES[c], current if current is not None or section else 1
            if scale < 10_000:
                section, current = section + (current or 0) * scale, None
            else:
                here = section + (current or 0)
                total = total + here * scale if total >= scale else (total + here) * scale  # 一亿零一万, 一万亿
                section, current = 0.0, None
        elif c in _HAN_VAGUE and (c != "数" or at == begin) and (c != "多" or at > begin):
            typical, least, most = _HAN_VAGUE[c]
            if c == "多":
                high, at, vague = high * 1.5, at + 1, True
                break
            current, low, high, vague = float(typical), least / typical, most / typical, True
        else:
            break
        value = None if c in HAN_SCALES else value
        at += 1
    number = total + section + (current or 0)
    single = at == begin + 1 and start == begin and s.words[begin] in "一两"
    if single and (at >= len(s.words) or s.words[at] not in _MEASURES):
        return None
    if at == begin or (vague and start == begin and at == begin + 1) or (current is None and not number):
        return None
    if at < len(s.words) and s.words[at] == "成" and number <= 10:
        return Number(number / 10, start, at + 1, number / 10, number / 10, share=True)
    return Number(number, start, at, number * low, number * high, vague)
