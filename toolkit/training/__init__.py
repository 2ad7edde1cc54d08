"""Training and evaluation: SpeechBrain's Brain, cross-validation, results."""

import logging

# SpeechBrain warns on import that figures cannot go to TensorBoard without torchvision; none do.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)
