"""what is wrong with a file of rows, and the file without it"""

from melior.data.cleaning.check import CheckConfig, check_file
from melior.data.cleaning.codes import CODES, Code
from melior.data.cleaning.report import CheckReport, Finding, Fixed, Shown

__all__ = ["CODES", "CheckConfig", "CheckReport", "Code", "Finding", "Fixed", "Shown", "check_file"]
