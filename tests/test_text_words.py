"""The words of a text: tf-idf as their function, and its derivatives through the network."""

import json

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.feature_extraction.text import TfidfVectorizer
from textcorpus import ODD, corpus, small

from gradlib.text.words import pad_texts, padded_batches, tfidf


@pytest.fixture(scope="module")
def model():
    return small().fit(*corpus())


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2), (2, 2), (1, 3)])
def test_word_features_are_those_of_the_vectorizer(ngrams):
    texts, _ = corpus()
    vectorizer = TfidfVectorizer(ngram_range=ngrams, min_df=2).fit(texts)
    padded = pad_texts([*ODD, *texts[:5]], vectorizer)
    found = np.zeros((len(padded.words), len(vectorizer.vocabulary_)))
    values = tfidf(padded.mask.astype(float), padded)
    for b, columns in enumerate(padded.columns):
        np.add.at(found[b], columns, values[b])
    np.testing.assert_allclose(found, vectorizer.transform([*ODD, *texts[:5]]).toarray(), atol=1e-12)


@pytest.mark.parametrize("target", ["prob", "logit"])
def test_jacobian_is_that_of_central_differences(model, target):
    texts = [*ODD, *corpus(9, seed=5)[0]]
    found = model.jacobian(texts, target)
    f, weights = model.word_function(texts, target, np.float64)
    step = 1e-6
    for t in range(weights.shape[1]):
        e = np.zeros_like(weights)
        e[:, t] = step
        numeric = (f(weights + e) - f(weights - e)) / (2 * step) * found.mask[:, t, None]
        np.testing.assert_allclose(found.values[:, :, t], numeric, atol=2e-5 * max(1, abs(found.values).max()))
    assert abs(found.values).max() > 0.05
    assert (found.values.transpose(0, 2, 1)[~found.mask] == 0).all()


def test_jacobian_sees_what_predict_sees(model):
    found = model.jacobian(ODD)
    np.testing.assert_allclose(found.outputs, model.predict_proba(ODD), atol=1e-6)
    assert found.values.shape == (len(ODD), 3, 9) and found.values.dtype == np.float32
    assert found.values.flags.c_contiguous
    np.testing.assert_allclose(found.values.sum(axis=1), 0, atol=1e-6)  # probabilities sum to 1


def test_jacobian_of_many_texts_is_that_of_each(model, monkeypatch):
    texts = [*ODD, *corpus(20, seed=6)[0]]
    whole = model.jacobian(texts)
    sizes = []

    def batches(texts, vectorizer):
        for padded in padded_batches(texts, vectorizer, limit=400):
            sizes.append(len(padded.words))
            yield padded

    monkeypatch.setattr("gradlib.text.classifier.padded_batches", batches)
    parts = model.jacobian(texts)
    assert len(sizes) > 3 and sum(sizes) == len(texts) and max(sizes) > 1
    assert parts.words == whole.words and (parts.mask == whole.mask).all()
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-6)
    np.testing.assert_allclose(parts.outputs, whole.outputs, atol=1e-6)


def test_a_long_text_does_not_need_much_memory(model):
    text = "the sun was so great and the rain was awful " * 300
    found = model.jacobian(["great"] * 50 + [text])
    assert found.values.shape == (51, 3, 3000)
    np.testing.assert_allclose(found[50].values, model.explain(text).values, atol=1e-6)


def test_derivative_of_a_word_by_hand():
    """u = (w i_a, i_b) / r, r² = w² i_a² + i_b²: at w = 1, ∂u_a/∂w = i_a i_b² / r³ and ∂u_b/∂w = -i_a² i_b / r³."""
    model = small(ngram_range=(1, 1), hidden_layer_sizes=(), min_df=1).fit(["aa bb", "aa", "bb cc"], [0, 1, 1])
    vocabulary, idf = model.vectorizer_.vocabulary_, model.vectorizer_.idf_
    a, b = idf[vocabulary["aa"]], idf[vocabulary["bb"]]
    w = model.params_[0]["w"].astype(float)
    expected = (a * b * b * w[vocabulary["aa"]] - a * a * b * w[vocabulary["bb"]]) / np.hypot(a, b) ** 3
    np.testing.assert_allclose(model.explain("aa bb", "logit").values[0], expected, rtol=1e-5)


def test_explain_is_the_view_of_one_text(model):
    found = model.jacobian(ODD)
    for i, text in enumerate(ODD):
        one = model.explain(text)
        assert one.words == found.words[i] and one.values.shape == (len(one.words), 3)
        np.testing.assert_allclose(one.values, found[i].values, atol=1e-6)
    assert model.explain("Sun, rain zzz!").words == ["sun", "rain", "zzz", "!"]
    assert model.explain("I don't; won't?").words == ["i", "don't", "won't", "?"]
    assert (model.explain("Sun, rain zzz!").values[2] == 0).all()


def test_explanation_reads_well(model):
    found = model.explain("The sun was great")
    table = str(found)
    assert table.splitlines()[0] == f"predicted: {found.predicted}"
    assert all(word in table for word in ("sun", "great", "down", "flat", "up"))
    assert len({len(line) for line in table.splitlines()[1:]}) == 1
    again = json.loads(json.dumps(found.to_dict()))
    assert again["words"] == found.words and np.shape(again["values"]) == (4, 3)
    assert str(model.explain("")).count("\n") == 4 and "×9" in repr(model.jacobian(ODD))


def test_a_word_raises_its_own_class():
    """In a linear model of single words: ∂logit/∂w_t = u_t (W_t - u_t logit), positive for the word that speaks up."""
    model = small(hidden_layer_sizes=(), ngram_range=(1, 1)).fit(*corpus())
    found = model.explain("the day was great", "logit")
    assert found.words[3] == "great" and found.classes.tolist() == ["down", "flat", "up"]
    assert found.values[3].argmax() == 2 and found.values[3, 2] > 0.05
    assert found.values[3, 2] > 3 * abs(found.values[:3, 2]).max() or found.values[:3, 2].max() < 0
