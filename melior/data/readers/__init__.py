"""rows of files, folders and hub data sets, one at a time, each with its place"""

from melior.data.readers.json_lines import read_jsonl
from melior.data.readers.rows import Line, Problem
from melior.data.readers.sources import is_part_of, read_rows

__all__ = ["Line", "Problem", "is_part_of", "read_jsonl", "read_rows"]
