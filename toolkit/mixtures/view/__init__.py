"""Pictures of a trained mixture: which expert uses which part of a spectrogram."""
