"""What a model's attention looks like: families as data, and reading it off config.json and tensor names."""

from surgery.anatomy.families import FAMILIES, REFUSED, Family, find_family
from surgery.anatomy.reading import Anatomy, AttentionLayer, read_anatomy

__all__ = ["FAMILIES", "REFUSED", "Anatomy", "AttentionLayer", "Family", "find_family", "read_anatomy"]
