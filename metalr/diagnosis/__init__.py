"""What happens along an unroll, and when its hypergradient is to be believed."""

from ._diagnose import Diagnosis as Diagnosis, diagnose as diagnose
from ._findings import Finding as Finding
from ._rough import metasmoothness as metasmoothness
