"""What is known of a finished rung, of a ladder, of a family and of a study: one typed record each.

A record is a frozen dataclass with a field for every key of its JSON file. The ladder and the study call its
constructor, `to_dict` writes it, `read` is the one reader, and the `*.schema.json` files here are made of it.

The functions that read configurations (`config.strict_yaml`) read records too. Pydantic would check the same types and
ranges and make the schemas, but not refuse a key given twice in YAML or name the nearest right key. It would bring a
compiled dependency that nothing else here needs, and 0.15 s to every start: too much for the two hundred lines that it
could replace.
"""
