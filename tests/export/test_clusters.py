import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.export import TwoStage
from tfmetarec.export.clusters import Clusters, ClusterSearch, fit
from tfmetarec.export.tables import Table

# Eight items in three clusters, in the order of the clusters; the query of the tests looks along the first axis.
VECTORS = np.array(
    [[9, 0], [8, 1], [7, 0], [0, 5], [1, 6], [-4, 0], [-5, 0], [-6, 1]],
    np.float32,
)
STARTS = np.array([0, 3, 5, 8], np.int32)
CENTROIDS = np.array([[8, 1 / 3], [0.5, 5.5], [-5, 1 / 3]], np.float32)


def searched(probes, queries, count):
    clusters = Clusters(np.arange(8), STARTS, CENTROIDS, probes)
    search = ClusterSearch(clusters, Table(tf.constant(VECTORS), "float32"))
    products, places = search.search(tf.constant(queries, tf.float32), tf.constant(count))
    return products.numpy().tolist(), places.numpy().tolist()


def test_only_the_items_of_the_nearest_clusters_are_scored():
    products, places = searched(1, [[1.0, 0.0], [-1.0, 0.0]], 3)
    assert products == [[9, 8, 7], [6, 5, 4]]
    assert places == [[0, 1, 2], [7, 6, 5]]


def test_clusters_of_different_sizes_share_a_batch_and_too_few_items_end_in_minus_infinity():
    products, places = searched(1, [[0.0, 1.0], [1.0, 0.0]], 4)
    assert products == [[6, 5, -np.inf, -np.inf], [9, 8, 7, -np.inf]]
    assert [row[:2] for row in places] == [[4, 3], [0, 1]]
    assert all(0 <= place < 8 for row in places for place in row)


def test_all_clusters_together_are_an_exact_search():
    queries = np.random.default_rng(0).normal(size=(5, 2))
    _, places = searched(3, queries, 8)
    np.testing.assert_array_equal(places, np.argsort(-(queries @ VECTORS.T), axis=1))


def planted(rng, clusters=20, each=50, width=16, spread=0.2):
    centres = rng.normal(size=(clusters, width))
    vectors = np.repeat(centres, each, axis=0) + spread * rng.normal(size=(clusters * each, width))
    return vectors.astype(np.float32), (centres + 0.1 * rng.normal(size=centres.shape)).astype(np.float32)


def test_planted_clusters_are_found_and_few_of_them_hold_the_best_items():
    vectors, queries = planted(np.random.default_rng(0))
    clusters = fit(vectors, queries, 10, TwoStage(0.95, 20))
    assert clusters.is_worth_it
    assert clusters.recall >= 0.95
    assert clusters.share < 0.2
    assert sorted(clusters.order) == list(range(1000))
    assert clusters.starts[-1] == 1000
    assert (np.diff(clusters.starts) > 0).all()
    first = clusters.order[clusters.starts[0] : clusters.starts[1]]
    np.testing.assert_allclose(clusters.centroids[0], vectors[first].mean(axis=0), rtol=1e-5)


def test_the_recall_is_the_share_of_the_exact_list_that_the_search_finds():
    vectors, queries = planted(np.random.default_rng(1), spread=1.0)
    clusters = fit(vectors, queries, 10, TwoStage(0.8, 20))
    search = ClusterSearch(clusters, Table(tf.constant(vectors[clusters.order]), "float32"))
    _, places = search.search(tf.constant(queries), tf.constant(10))
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = [len(set(clusters.order[row]) & set(best)) / 10 for row, best in zip(places.numpy(), exact, strict=True)]
    assert np.mean(found) == pytest.approx(clusters.recall)
    assert clusters.recall >= 0.8
    fewer = [recall for probes, recall, _ in clusters.curve if probes < clusters.probes]
    assert all(recall < 0.8 for recall in fewer)


def test_without_clusters_the_recall_takes_too_much_of_the_catalogue_and_that_is_known():
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 32)).astype(np.float32) for n in (1000, 30))
    clusters = fit(vectors, queries, 10, TwoStage(0.95, 20))
    assert not clusters.is_worth_it
    assert clusters.recall >= 0.95
    assert clusters.share > 0.25


def test_equal_seeds_give_equal_clusters():
    vectors, queries = planted(np.random.default_rng(0))
    first, second = (fit(vectors, queries, 10, TwoStage(0.95, 20, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(first.order, second.order)
    np.testing.assert_array_equal(first.centroids, second.centroids)


def test_more_clusters_than_items_are_as_many_as_items():
    vectors = np.eye(3, dtype=np.float32)
    clusters = fit(vectors, vectors, 1, TwoStage(1.0, 50))
    assert len(clusters.centroids) == 3
    assert (clusters.probes, clusters.recall) == (1, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recall": 0.0}, "`recall` must be greater than 0 and at most 1. Received: recall=0.0"),
        ({"recall": 1.5}, "`recall` must be greater than 0 and at most 1. Received: recall=1.5"),
        ({"clusters": 1}, "`clusters` must be at least 2. Received: clusters=1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TwoStage(**options)
