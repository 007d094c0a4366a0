"""What a family's attention looks like, as data, and how to read it off config.json and tensor names."""

from surgery.anatomy.families import FAMILIES, Family, find_family

__all__ = ["FAMILIES", "Family", "find_family"]
