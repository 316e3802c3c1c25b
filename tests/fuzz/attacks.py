"""A file that is damaged again and again, and read each time: in one line or not at all, and soon."""

import json
import os
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from mutations import mutated_bytes, mutated_json

Mutation = Callable[[bytes, random.Random], bytes]
LONGEST_LINE = 8000
"""Characters, one odd name repeated among them; the command line shows the first 4,000."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file, how it is damaged, and what reads it."""

    path: Path
    read: Callable[[], object]
    mutate: Mutation


def as_yaml(content: bytes, draw: random.Random) -> bytes:
    """Damage a YAML file in its values, which are written in brackets, or in its bytes."""
    if draw.random() < 0.4:
        return mutated_bytes(content, draw)
    return mutated_json(json.dumps(yaml.safe_load(content)).encode(), draw)


def as_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Damage the header of a safetensors file, or its bytes."""
    if draw.random() < 0.3:
        return mutated_bytes(content, draw)
    length = struct.unpack("<Q", content[:8])[0]
    header = mutated_json(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def in_lines(content: bytes, draw: random.Random) -> bytes:
    """Damage one line of a file of JSON lines."""
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = mutated_json(lines[at], draw)
    return b"\n".join(lines)


def attack(target: Target, numbers: range) -> None:
    """Damage a file again and again, and read it each time."""
    content, faults = target.path.read_bytes(), []
    files = names_beside(target.path)
    target.read()
    try:
        for number in numbers:
            target.path.write_bytes(target.mutate(content, random.Random(number)))
            began = time.process_time()
            try:
                target.read()
            except (ValueError, OSError) as error:
                line = str(error)
                if "\n" in line.strip() or not line.strip() or len(line) > LONGEST_LINE:
                    faults.append(f"{number}: {len(line)} characters: {line[:200]!r}")
            except BaseException as error:  # whatever it is, it is what is looked for
                faults.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
            if (spent := time.process_time() - began) > 1:
                faults.append(f"{number}: {spent:.1f} s")
    finally:
        target.path.write_bytes(content)
    assert names_beside(target.path) == files
    assert not faults, f"{len(faults)} of {len(numbers)}:\n" + "\n".join(faults[:30])


def names_beside(path: Path) -> set[str]:
    """List all that lies around a file, two folders up."""
    return {os.path.join(place, name) for place, _, files in os.walk(path.parent) for name in files}
