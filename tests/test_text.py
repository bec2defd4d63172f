"""TextClassifier: learning, scikit-learn's conventions, bad input."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from textcorpus import corpus, small

import gradlib as gl
from gradlib.text import TextClassifier
from gradlib.text.checks import check_labels
from gradlib.text.training import batch_size_for, split


@pytest.fixture(scope="module")
def model():
    return small().fit(*corpus())


# --- learning ---------------------------------------------------------------------------------------------------------


def test_learns_and_generalises(model):
    assert model.score(*corpus(seed=1)) > 0.95
    assert model.n_iter_ == len(model.loss_curve_) == len(model.accuracy_curve_) == len(model.validation_curve_)
    assert model.loss_curve_[-1] < 0.7 * model.loss_curve_[0]
    assert model.classes_.tolist() == ["down", "flat", "up"]


def test_keeps_the_best_epoch_and_stops():
    texts, labels = corpus(200)
    noise = np.random.default_rng(0).permutation(labels).tolist()  # nothing to learn: must stop early
    model = small(max_iter=200, n_iter_no_change=4).fit(texts, noise)
    assert model.n_iter_ == model.best_iter_ + 4 < 200
    assert model.validation_loss_curve_[model.best_iter_ - 1] == min(model.validation_loss_curve_)


def test_kept_parameters_are_those_of_the_best_epoch():
    texts, labels = corpus(60)
    noise = np.random.default_rng(0).permutation(labels).tolist()
    long = small(max_iter=30, n_iter_no_change=10).fit(texts, noise)
    short = small(max_iter=long.best_iter_, n_iter_no_change=10).fit(texts, noise)
    assert long.n_iter_ > long.best_iter_
    np.testing.assert_array_equal(long.predict_proba(texts), short.predict_proba(texts))


def test_same_random_state_same_model_and_global_state_untouched():
    texts, labels = corpus()
    before = np.random.get_state()[1].copy()
    a, b, c = (small(random_state=s).fit(texts, labels).predict_proba(texts) for s in (1, 1, 2))
    assert (np.random.get_state()[1] == before).all()
    assert (a == b).all() and (a != c).any()


def test_without_held_out_part_all_epochs_run():
    model = small(validation_fraction=0, max_iter=7).fit(*corpus(30))
    assert model.n_iter_ == model.best_iter_ == 7 and model.validation_curve_ == []


def test_split_is_stratified_and_never_takes_a_whole_class():
    labels = np.array([0] * 40 + [1] * 10 + [2])
    rows, held_out = split(labels, 0.3, np.random.default_rng(0))
    assert sorted([*rows, *held_out]) == list(range(51))
    assert np.bincount(labels[held_out], minlength=3).tolist() == [12, 3, 0]
    assert len(split(np.array([0, 1, 1]), 0.9, np.random.default_rng(0))[0]) == 2


def test_automatic_batch_size_gives_about_a_hundred_batches():
    assert [batch_size_for(n) for n in (1, 900, 5000, 10**6)] == [8, 9, 50, 256]


def test_default_settings_learn_from_few_texts():
    assert TextClassifier(random_state=0).fit(*corpus(60)).score(*corpus(90, seed=3)) > 0.9


def test_sparse_path_is_never_dense(monkeypatch):
    import scipy.sparse

    monkeypatch.setattr(scipy.sparse.csr_matrix, "toarray", lambda *a, **k: pytest.fail("densified"))
    monkeypatch.setattr(scipy.sparse.csr_array, "toarray", lambda *a, **k: pytest.fail("densified"))
    small(max_iter=1).fit(*corpus(30)).predict(["the sun"])


def test_progress_bar_shows_loss_and_accuracy(capsys):
    small(max_iter=2, verbose=True).fit(*corpus(40))
    shown = capsys.readouterr().err
    assert "loss" in shown and "accuracy" in shown and "held out" in shown


# --- conventions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_valid_tag_types",
        "check_estimator_get_tags_default_keys",
    ],
)
def test_estimator_checks(check):
    if not hasattr(estimator_checks, check):
        pytest.skip("not in this version of scikit-learn")
    getattr(estimator_checks, check)("TextClassifier", TextClassifier())


def test_clone_and_fit_leave_parameters_alone():
    original = small(ngram_range=(1, 3), min_df=1)
    copy = clone(original)
    assert copy is not original and copy.get_params() == original.get_params()
    assert copy.fit(*corpus(30)) is copy
    assert copy.get_params() == original.get_params()


def test_works_in_cross_validation_and_pipelines():
    texts, labels = corpus(90)
    assert cross_val_score(small(), np.array(texts, dtype=object), labels, cv=3).mean() > 0.8
    pipeline = make_pipeline(FunctionTransformer(lambda x: [t.upper() for t in x]), small())
    assert pipeline.fit(texts, labels).score(texts, labels) > 0.9


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "explain", "jacobian", "save"])
def test_not_fitted(method, tmp_path):
    argument = {"explain": "a text", "save": tmp_path / "m"}.get(method, ["a text"])
    with pytest.raises(NotFittedError):
        getattr(TextClassifier(), method)(argument)


def test_outputs_agree(model):
    texts = ["great love", "table", "", "unknown words only"]
    p = model.predict_proba(texts)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(gl.softmax(model.decision_function(texts)), p, rtol=1e-6)
    assert (model.classes_[p.argmax(axis=1)] == model.predict(texts)).all()
    np.testing.assert_array_equal(p[2], p[3])  # both have no features: the biases alone


def test_two_classes_follow_the_convention_of_decision_function():
    texts, labels = corpus(60, classes=("up", "down"))
    model = small().fit(texts, labels)
    d = model.decision_function(texts)
    assert d.shape == (60,)
    np.testing.assert_array_equal(model.classes_[(d > 0).astype(int)], model.predict(texts))


@pytest.mark.parametrize("labels", [["a", "b"], [3, -1], [True, False], np.array(["x", "y"], dtype=object)])
def test_labels_keep_their_type(labels, tmp_path):
    texts, _ = corpus(40, classes=("up", "down"))
    y = [labels[i % 2] for i in range(40)]
    model = small(max_iter=3).fit(texts, y)
    loaded = (model.save(tmp_path / "m"), TextClassifier.load(tmp_path / "m"))[1]
    for m in (model, loaded):
        assert m.classes_.tolist() == sorted(labels)
        assert type(m.predict(texts[:1]).tolist()[0]) is type(
            next(iter(labels.tolist() if hasattr(labels, "tolist") else labels))
        )
    assert loaded.classes_.dtype == model.classes_.dtype


def test_accepts_tuples_arrays_and_series():
    texts, labels = corpus(30)
    expected = small(max_iter=2).fit(texts, labels).predict_proba(texts)
    for wrap in (tuple, np.array, lambda x: np.array(x, dtype=object)):
        np.testing.assert_array_equal(
            small(max_iter=2).fit(wrap(texts), wrap(labels)).predict_proba(wrap(texts)), expected
        )
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"t": texts, "l": labels}, index=range(100, 130))
    np.testing.assert_array_equal(small(max_iter=2).fit(frame.t, frame.l).predict_proba(frame.t), expected)


# --- bad input --------------------------------------------------------------------------------------------------------

TWO = ["a word", "other word"]


@pytest.mark.parametrize(
    ("texts", "labels", "error", "message"),
    [
        ("one text", ["a"], TypeError, "list of texts, got a single str"),
        (b"one text", ["a"], TypeError, "single bytes"),
        ([], [], ValueError, "at least one text"),
        (5, [1], TypeError, "got int"),
        ({"a": 1}, [1], TypeError, "got dict"),
        (["a b", None], ["x", "y"], TypeError, "missing value .None. at position 1"),
        (["a b", float("nan")], ["x", "y"], TypeError, "missing value .nan. at position 1"),
        (["a b", 7], ["x", "y"], TypeError, "got int .7. at position 1"),
        (np.array([TWO]), ["x"], ValueError, "one-dimensional"),
        (TWO, ["x"], ValueError, "2 texts and 1 labels"),
        (TWO, ["x", "x"], ValueError, "only one class, .*x"),
        (TWO, ["x", None], ValueError, "label at position 1 is missing"),
        (TWO, [1.0, float("nan")], ValueError, "label at position 1 is missing"),
        (TWO, ["x", 1], TypeError, "one kind, got numbers and str"),
        (TWO, None, ValueError, "y"),
        (TWO, "xy", TypeError, "single str"),
        (TWO, [[1, 0], [0, 1]], ValueError, "shape"),
        (TWO, [0.5, 1.5], ValueError, "continuous"),
        (["", "  "], ["x", "y"], ValueError, "hold no words"),
        (["one", "two"], ["x", "y"], ValueError, "min_df=2"),
    ],
)
def test_bad_input_of_fit(texts, labels, error, message, monkeypatch):
    monkeypatch.setattr("gradlib.text.classifier.train", lambda *a: pytest.fail("trained on bad input"))
    with pytest.raises(error, match=message):
        small().fit(texts, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes"),
        ({"hidden_layer_sizes": 64}, "hidden_layer_sizes"),
        ({"ngram_range": (2, 1)}, "ngram_range"),
        ({"ngram_range": 2}, "ngram_range"),
        ({"token_pattern": "("}, "token_pattern"),
        ({"token_pattern": None}, "token_pattern"),
        ({"dropout": 1.0}, "dropout"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_iter": 1.5}, "max_iter"),
        ({"validation_fraction": 1}, "validation_fraction"),
        ({"n_iter_no_change": True}, "n_iter_no_change"),
    ],
)
def test_bad_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change).fit(*corpus(12))


def test_bad_input_of_prediction(model):
    for bad, error in (("text", TypeError), ([], ValueError), ([None], TypeError)):
        with pytest.raises(error, match="TextClassifier"):
            model.predict(bad)
        with pytest.raises(error, match="TextClassifier"):
            model.jacobian(bad)
    with pytest.raises(TypeError, match="one text"):
        model.explain(["a text"])
    with pytest.raises(ValueError, match="target"):
        model.explain("a text", target="loss")


def test_divergence_is_an_error():
    with pytest.raises(ValueError, match="learning_rate"), np.errstate(all="ignore"):
        small(learning_rate=1e30, max_iter=30, validation_fraction=0).fit(*corpus(60))


def test_label_classes_are_sorted_and_indexed():
    classes, index = check_labels(["b", "a", "b"], 3)
    assert classes.tolist() == ["a", "b"] and index.tolist() == [1, 0, 1]
