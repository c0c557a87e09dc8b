import pytest

from mmdiff.testing import check_modality
from mmdiff_audio.modality import Audio
from mmdiff_audio.notes import Notes
from mmdiff_audio.representations import STFT, LogMel


@pytest.mark.parametrize("representation", [STFT(), LogMel(rate=8000)])
def test_audio_keeps_the_contract_of_a_modality(representation, tmp_path):
    notes = [Notes(size=16)[i][0] for i in range(16)]
    learned = Audio(representation, rate=8000).fit(notes)
    check_modality(Audio(representation, rate=8000, **learned), notes, tmp_path)
