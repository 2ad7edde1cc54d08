"""See the experts: who listens to what in a trained mixture, drawn over a spectrogram."""
