"""Mutations of plain values and of bytes, drawn from a seed: what damage, mistakes and malice make of a file."""

import copy
import json
import random
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, -1e-9, 1e308, 2**31, 2**63, 10**30, 10**40, float("nan"), float("inf"), ""),
    *(
        "x",
        "1",
        "nan",
        "../../x",
        "/etc/passwd",
        "a\x00b",
        "a\x1b[2J\u202eb",
        "\ud83d\ude00" * 50,
        "x" * 5000,
        "{name}",
    ),
    *([], {}, [[]], [None], {"a": {"b": []}}, {"": 0}, [1, "a", None], "\n\n", "2020-01-01", "- a: b", "\ufeff"),
]
"""Values that nobody wrote on purpose."""

_OVERWRITING = (b"\xff\xfe", b"\x00" * 8, b"\xef\xbb\xbf", b"\r\n", b"[" * 3000, b'"', b"}")
_INSERTED = (b"-", b"9" * 30, b"&a *a", b"!!int ''", b"<<<<<<< HEAD\n", b": ", b"\t", b"\\")


def mutated(value: Any, draw: random.Random, times: int = 1) -> Any:
    """Return a copy of plain values in which so many places are changed: replaced, lost, doubled or nested."""
    result = copy.deepcopy(value)
    for _ in range(times):
        result = _once(result, draw)
    return result


def _once(value: Any, draw: random.Random) -> Any:
    holders = list(_holders(value))
    if not holders or draw.random() < 0.02:
        return copy.deepcopy(draw.choice(ODD))
    holder = draw.choice(holders)
    key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match draw.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice([f"{key}s", f"_{key}", "x", "", "a.b", "a\nb", "\x1b[2J"])] = holder[key]
        case 1:
            holder.append(copy.deepcopy(holder[key]))
        case 2:
            deep: Any = 0
            for _ in range(draw.choice([3, 60, 400])):
                deep = [deep] if draw.random() < 0.5 else {"a": deep}
            holder[key] = deep
        case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = draw.choice([-holder[key], holder[key] * 10**12, holder[key] / 7, str(holder[key])])
        case 4 if isinstance(holder[key], str):
            holder[key] = holder[key][: draw.randrange(len(holder[key]) + 1)] + draw.choice(["", "\n", "/..", "\x00"])
        case _:
            holder[key] = copy.deepcopy(draw.choice(ODD))
    return value


def _holders(value: Any) -> Any:
    if isinstance(value, dict | list) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return content that a disk, a transfer or an editor has damaged."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice([1, 4, 64]))
        match draw.randrange(7):
            case 0:
                del data[at:]
            case 1:
                del data[at:end]
            case 2 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 3:
                data[at:end] = draw.choice(
                    [b"\xff\xfe", b"\x00" * 8, b"\xef\xbb\xbf", b"\r\n", b"[" * 3000, b'"', b"}"]
                )
            case 4:
                data[at:at] = data[at:end]
            case 5:
                data[at:end] = draw.randbytes(end - at)
            case _:
                data[at:at] = draw.choice(
                    [b"-", b"9" * 30, b"&a *a", b"!!int ''", b"<<<<<<< HEAD\n", b": ", b"\t", b"\\"]
                )
    return bytes(data)


def mutated_json(content: bytes, draw: random.Random) -> bytes:
    """Return a JSON file damaged in its values, or now and then in its bytes."""
    if draw.random() < 0.2:
        return mutated_bytes(content, draw)
    value = mutated(json.loads(content), draw, draw.choice([1, 1, 1, 3]))
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
