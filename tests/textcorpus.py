"""What the tests of TextClassifier share: a small corpus, a small classifier, and odd texts."""

import numpy as np

from gradlib.text import TextClassifier

WORDS = {"up": ["great", "love", "fine", "sun"], "down": ["awful", "hate", "broken", "rain"], "flat": ["table", "road"]}

ODD = ["The SUN was great, great great! So great.", "", "zzz", "rain", "x it was the the the", "so so so so so so so"]


def corpus(n=120, seed=0, classes=("up", "down", "flat")):
    """Texts whose class shows in some of their words, among words that say nothing."""
    rng = np.random.default_rng(seed)
    labels = [classes[i % len(classes)] for i in range(n)]
    filler = ["the", "so", "very", "and", "day", "it", "was"]
    texts = [" ".join([*rng.choice(filler, 4), *rng.choice(WORDS[c], 2), *rng.choice(filler, 2)]) for c in labels]
    return texts, labels


def small(**changes):
    return TextClassifier(
        **{"hidden_layer_sizes": (12, 6), "max_iter": 30, "dropout": 0.2, "learning_rate": 0.02, "random_state": 0}
        | changes
    )
