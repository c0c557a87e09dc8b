"""What the author of a plugin runs to know that it is right; ``mmdiff check NAME`` is the same as a command.

    def test_my_plugin():
        check_plugin("eeg")

    def test_my_modality(tmp_path):
        check_modality(MyModality(), media=[...], folder=tmp_path)

Every check returns what it measured by name, and raises AssertionError with what was expected, what was seen and where
the rule is documented: a docstring, and a section of docs/rules.md.
"""

from mmdiff.testing.data import check_conditioner, check_dataset
from mmdiff.testing.modality import check_modality
from mmdiff.testing.network import check_network
from mmdiff.testing.plugin import check_plugin
from mmdiff.testing.solver import check_solver

__all__ = ["check_conditioner", "check_dataset", "check_modality", "check_network", "check_plugin", "check_solver"]
